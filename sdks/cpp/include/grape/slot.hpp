/// How a slot is declared: which node gets the event, what it keeps and emits, what happens when it fails.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "rate.hpp"
#include "text.hpp"
#include "topology.hpp"

namespace grape {

class Event;
using Handler = std::function<void(Event&)>;
using Seconds = std::chrono::duration<double>;

enum class OnFail { dead, stop };

/// `grape::Slot("Count").state("count").emits({"total"}).retries(5)`. What is not said has the default of docs/protocol.md.
class Slot {
 public:
  explicit Slot(std::string node) {
    node_.name = node;
    spec_.node = std::move(node);
  }

  /// Named state of the node, kept for each key; with a time to live it goes so long after it was last set.
  Slot& state(std::string name, std::optional<Seconds> ttl = std::nullopt) {
    node_.states.push_back({std::move(name), ttl ? std::optional<double>(ttl->count()) : std::nullopt});
    return *this;
  }

  /// Names that the handler emits. To other nodes of the same program they chain.
  Slot& emits(std::initializer_list<std::string> names) {
    spec_.emits.insert(spec_.emits.end(), names.begin(), names.end());
    return *this;
  }
  Slot& emits(std::string name) {
    spec_.emits.push_back(std::move(name));
    return *this;
  }

  /// Attempts after the first one.
  Slot& retries(std::int64_t count) { return set(spec_.retries, count); }
  /// The wait before the second attempt; it doubles with every further one.
  Slot& backoff(Seconds time) { return set(spec_.backoff, time.count()); }
  Slot& backoff_max(Seconds time) { return set(spec_.backoff_max, time.count()); }
  /// Longest run of one event; 0: none.
  Slot& timeout(Seconds time) { return set(spec_.timeout, time.count()); }
  /// After the last attempt: `dead` frees the key, `stop` keeps it until an operator acts.
  Slot& on_fail(OnFail what) { return set(spec_.on_fail, std::string(what == OnFail::stop ? "stop" : "dead")); }
  /// Later events of the same key wait while one is retried.
  Slot& ordered(bool is_ordered) { return set(spec_.ordered, is_ordered); }
  /// Whether what other nodes of this program emit to it runs at once, if they say that they emit it; false: by the log.
  Slot& chain(bool may_chain) { return set(spec_.chain, may_chain); }
  /// Whether a client's event runs before it is accepted, which answers it sooner; every slot of the event has to say so.
  Slot& eager(bool is_eager) { return set(spec_.eager, is_eager); }
  /// Events that its handler gets at most, over all workers of the app: "100/s", "20/min", "500/h", "10/day". The rest waits.
  Slot& rate(std::string_view rate) { return take(detail::rate_of(rate), "'" + detail::clean_text(rate, 60) + "'"); }
  /// A number of events a second.
  Slot& rate(double rate) { return take(detail::rate_of(rate), std::to_string(rate)); }
  /// Events of a rate that it may get at once, after a pause.
  Slot& burst(std::int64_t events) { return set(spec_.burst, events); }
  /// Of async nodes, which this SDK does not have: it is told to the engine, and has no effect.
  Slot& concurrency(std::int64_t events) { return set(spec_.concurrency, events); }
  /// Of handlers that get lists, which this SDK does not have: it is told to the engine, and has no effect.
  Slot& batch(std::int64_t events) { return set(spec_.batch, events); }

  [[nodiscard]] const detail::NodeSpec& node_spec() const noexcept { return node_; }
  [[nodiscard]] const detail::SlotSpec& spec() const noexcept { return spec_; }
  /// What of it cannot be, for the author; "": nothing.
  [[nodiscard]] const std::string& problem() const noexcept { return problem_; }

 private:
  detail::NodeSpec node_;
  detail::SlotSpec spec_;
  std::string problem_;

  Slot& take(std::optional<double> rate, const std::string& said) {
    if (!rate) problem_ = "rate: a rate is events a second, or text such as '100/s', '20/min' or '500/h', not " + said;
    return set(spec_.rate, rate.value_or(1.0));  // it has one, if not this
  }

  template <class T>
  Slot& set(T& field, T value) {
    field = std::move(value);
    return *this;
  }
};

}  // namespace grape
