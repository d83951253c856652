/// What a handler gets: the event, the state of its key, and the ways out.
#pragma once

#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "batch.hpp"
#include "error.hpp"
#include "messages.hpp"
#include "objects.hpp"
#include "routes.hpp"
#include "state.hpp"
#include "value.hpp"
#include "watch.hpp"

namespace grape {

/// Where an emit goes, and when: `grape::Emit().key("a").delay(5s)`. Without a key it has that of the event being handled.
class Emit {
 public:
  /// Text of 1 to 4,096 bytes.
  Emit& key(std::string_view key) {
    key_ = key;
    has_key_ = true;
    inherits_ = false;
    return *this;
  }
  Emit& keyless() {
    has_key_ = false;
    inherits_ = false;
    return *this;
  }
  /// How long until it is due; the timer is durable.
  template <class Rep, class Period>
  Emit& delay(std::chrono::duration<Rep, Period> time) {
    const double micros = std::chrono::duration<double, std::micro>(time).count();
    if (!(micros >= 0 && micros <= 4.6e18)) throw Error("bad-value", "a delay is from 0 to 146,000 years");
    delay_ = static_cast<std::int64_t>(micros);
    return *this;
  }
  /// With a delay: a name, one of this node and key. It takes the place of the timer that was set under it before.
  Emit& timer(std::string_view name) {
    timer_ = name;
    return *this;
  }

 private:
  friend class Event;
  std::optional<std::string> timer_;
  std::string key_;  ///< its own: an Emit may outlive what it was made of
  bool has_key_ = false;
  bool inherits_ = true;
  std::int64_t delay_ = -1;
};

/// How a call asks: `grape::Ask().key("a").timeout(5s)`. Without a key it asks with that of the event being handled, for 30 s.
class Ask {
 public:
  Ask& key(std::string_view key) {
    key_ = key;
    has_key_ = true;
    inherits_ = false;
    return *this;
  }
  Ask& keyless() {
    has_key_ = false;
    inherits_ = false;
    return *this;
  }
  template <class Rep, class Period>
  Ask& timeout(std::chrono::duration<Rep, Period> time) {
    const double micros = std::chrono::duration<double, std::micro>(time).count();
    if (!(micros >= 1 && micros <= 2.3e18)) throw Error("bad-value", "a timeout is longer than 0, and at most 72,000 years");
    timeout_ = static_cast<std::int64_t>(micros);
    return *this;
  }

 private:
  friend class Event;
  std::string key_;
  bool has_key_ = false;
  bool inherits_ = true;
  std::int64_t timeout_ = 30'000'000;
};

class Event;
class State;
class Storage;

namespace detail {

class Runtime;

/// An event on its way to a node, wherever it comes from.
struct Incoming {
  std::string_view name;
  Key key;
  std::string_view data;
  std::int64_t hops = 0;
  std::int64_t context = -1;
  std::int64_t created = 0;
  std::int64_t attempt = 1;
  std::string_view id_prefix;
  std::int64_t id_number = -1;  ///< -1: the prefix is all of it

  [[nodiscard]] std::string id() const {
    std::string out;
    append_id(out);
    return out;
  }

  void append_id(std::string& out) const {
    out.append(id_prefix);
    if (id_number < 0) return;
    std::array<char, 20> digits{};
    const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), id_number).ptr;
    out.append(digits.data(), end);
  }
};

struct Emitted {
  std::uint32_t name = 0;
  bool inherits = true;
  bool is_keyless = false;
  std::size_t key = 0;  ///< where it stands among the texts of the event
  std::size_t key_size = 0;
  std::size_t data = 0;
  std::size_t size = 0;
  std::int64_t delay = -1;
  bool is_cancelled = false;  ///< no emit: the timer of this name is taken back
  std::size_t timer = 0;
  std::size_t timer_size = 0;  ///< 0: it has no name
};

/// By what an event was left.
struct Called {
  std::uint32_t name = 0;
  bool inherits = true;
  bool has_key = false;
  std::string key;
  Buffer data;
  Buffer digest;
  std::int64_t timeout = 0;
};

struct Stored {
  std::size_t state = 0;
  std::size_t data = 0;
  std::size_t size = 0;  ///< 0: deleted
};

struct Replied {
  std::size_t data = 0;
  std::size_t size = 0;
  bool is_final = true;
};

}  // namespace detail

/// One state of the key of an event. What is set is seen by this event at once, by others when it has succeeded.
class State {
 public:
  /// Its value; `fallback` if it is not set.
  ///
  /// Throws Error "bad-state": it is of another type.
  template <class T>
  [[nodiscard]] T get(T fallback = T{}) const {
    const std::string_view packed = bytes();
    return packed.empty() ? std::move(fallback) : read<T>(packed);
  }

  /// Its value, if it is set.
  template <class T>
  [[nodiscard]] std::optional<T> find() const {
    const std::string_view packed = bytes();
    return packed.empty() ? std::nullopt : std::optional<T>(read<T>(packed));
  }

  [[nodiscard]] bool exists() const { return !bytes().empty(); }

  /// As msgpack; empty if it is not set. Valid until the event sets or deletes a state.
  [[nodiscard]] std::string_view bytes() const;

  /// Throws Error "bad-value", "too-large": it cannot be stored.
  template <class T>
  void set(const T& value);

  void erase();

 private:
  friend class Event;
  Event& event_;
  std::size_t index_;

  State(Event& event, std::size_t index) : event_(event), index_(index) {}

  template <class T>
  static T read(std::string_view packed) {
    try {
      return Raw(packed).as<T>();
    } catch (const detail::Mismatch& e) {
      throw Error("bad-state", std::string("the stored value does not fit: ") + e.what());
    }
  }
};

/// Valid while its handler runs, and only there. Everything it does becomes effective when the handler returns; if it throws,
/// nothing does.
class Event {
 public:
  Event(const Event&) = delete;  // what a copy emits would be lost: a handler takes `Event&`
  Event& operator=(const Event&) = delete;

  [[nodiscard]] std::string_view name() const noexcept { return in_.name; }
  [[nodiscard]] std::optional<std::string_view> key() const noexcept {
    return in_.key.exists ? std::optional<std::string_view>(in_.key.text) : std::nullopt;
  }
  /// The payload.
  [[nodiscard]] Raw data() const noexcept { return Raw(in_.data); }
  /// The payload as a `T`.
  ///
  /// Throws Error "bad-payload": it is something else.
  template <class T>
  [[nodiscard]] T as() const {
    return data().as<T>();
  }
  [[nodiscard]] std::string id() const { return in_.id(); }
  /// Which try this is, from 1.
  [[nodiscard]] std::int64_t attempt() const noexcept { return in_.attempt; }
  [[nodiscard]] std::chrono::system_clock::time_point created() const noexcept {
    return std::chrono::system_clock::time_point(std::chrono::microseconds(in_.created));
  }

  /// Throws Error "no-key": the event has none; "bad-state": the node does not declare it.
  [[nodiscard]] State state(std::string_view name) {
    check_open();
    const auto& states = node_->states;
    for (std::size_t i = 0; i < states.size(); ++i) {
      if (states[i].name == name) {
        if (!in_.key.exists) no_key(name);
        return {*this, i};
      }
    }
    throw Error("bad-state", "node '" + node_->name + "' has no state '" + std::string(name) + "'; declare it with Slot::state");
  }

  /// Throws Error "unknown-event", "bad-value", "too-large": it cannot be emitted.
  template <class T>
  void emit(std::string_view name, const T& value, const Emit& how = Emit()) {
    const std::uint32_t number = resolve(name);
    const std::size_t at = texts_.size();
    detail::pack_whole(texts_, value, limits_->max_event);
    note(number, at, how);
  }
  void emit(std::string_view name) { emit(name, nullptr); }

  /// Takes back the timer of that name, if it is not due yet.
  ///
  /// Throws Error "bad-value": the name is not 1 to 255 bytes of UTF-8; "no-key": the event has none.
  void cancel_timer(std::string_view name) {
    check_open();
    detail::Emitted out;
    out.is_cancelled = true;
    name_timer(out, name);
    emitted_.push_back(out);
    check_size();
  }

  /// Asks another node, and returns its reply, valid while the handler runs. The handler is left here (`Suspended`), and runs
  /// from its beginning when the answer is there; so up to its last call it has to do the same every time.
  ///
  /// Throws CallFailed, NoAnswer; Error "unknown-event", "bad-value", "too-large": it cannot be asked.
  template <class T>
  Raw call(std::string_view name, const T& value, const Ask& how = Ask()) {
    detail::Called asked;
    asked.name = resolve(name, "calls");
    if ((*routes_)[asked.name].is_output && !(*routes_)[asked.name].is_foreign) {
      throw Error("unknown-event", "node '" + node_->name + "' calls '" + std::string(name) + "', which is an output: nothing answers there");
    }
    if (how.has_key_) check_key(how.key_);
    asked.inherits = how.inherits_;
    asked.has_key = how.has_key_;
    asked.key = how.key_;
    asked.timeout = how.timeout_;
    detail::pack_whole(asked.data, value, limits_->max_event);
    return answer(std::move(asked));
  }

  /// Answers the caller from outside, if there is one; the first final answer ends the call.
  template <class T>
  void reply(const T& value, bool is_final = true) {
    check_open();
    const std::size_t at = texts_.size();
    detail::pack_whole(texts_, value, limits_->max_event);
    replies_.push_back({at, texts_.size() - at, is_final});
    check_size();
  }

  /// The objects of the app's own namespace.
  [[nodiscard]] Storage storage();
  /// Those of another one, if grape.toml grants it. Throws Error "bad-argument": it cannot be the name of one.
  [[nodiscard]] Storage storage(std::string_view name);

  /// The handler is alive: its timeout starts anew.
  void progress() noexcept { watch_->tick(); }

 private:
  friend class State;
  friend class Storage;
  friend class detail::Runtime;

  Event() = default;

  detail::Incoming in_;
  const detail::NodeSpec* node_ = nullptr;
  detail::Routes* routes_ = nullptr;
  const detail::Limits* limits_ = nullptr;
  detail::Watch* watch_ = nullptr;
  detail::Objects* objects_ = nullptr;
  detail::Table* table_ = nullptr;
  std::int64_t now_ = 0;
  bool is_open_ = false;

  detail::Buffer texts_;  ///< keys and values of emits and replies
  std::vector<detail::Emitted> emitted_;
  std::vector<detail::Replied> replies_;
  detail::Buffer values_;  ///< of states
  std::vector<detail::Stored> stored_;
  std::vector<detail::WrittenPtr> written_;  ///< objects
  std::size_t objects_size_ = 0;
  detail::Buffer scratch_;      ///< a new value may be a slice of the old one: it is packed here first
  std::string_view last_name_;  ///< the one of the last emit: most handlers emit one name only
  std::uint32_t last_number_ = 0;

  const std::vector<detail::Answer>* answers_ = nullptr;  ///< to the calls that it has made before
  std::size_t calls_ = 0;
  std::optional<detail::Called> called_;  ///< it is left; this stays if the handler has caught that

  static constexpr std::size_t most_calls = 1'000;

  Raw answer(detail::Called asked) {
    asked.digest = digest_of(asked);
    if (called_) throw Suspended();  // it has caught that
    const std::size_t ordinal = calls_++;
    if (answers_ == nullptr || ordinal >= answers_->size()) {
      if (ordinal >= most_calls) throw Error("handler", "node '" + node_->name + "' has made 1,000 calls for one event");
      called_ = std::move(asked);
      throw Suspended();
    }
    const detail::Answer& answer = (*answers_)[ordinal];
    if (answer.digest != asked.digest) {
      throw Error("handler", "call " + std::to_string(ordinal + 1) + " of node '" + node_->name +
                                 "' was another one when its event ran before: up to its last call a handler must do the same every time "
                                 "(no time, no chance, nothing from outside)");
    }
    if (answer.is_error) throw_error(answer.data);
    return Raw(answer.data);
  }

  /// FNV-1a of all that is asked.
  [[nodiscard]] detail::Buffer digest_of(const detail::Called& asked) const {
    detail::Buffer all;
    detail::pack_str(all, (*routes_)[asked.name].text);
    detail::pack_int(all, asked.inherits ? 0 : asked.has_key ? 1 : 2);
    detail::pack_str(all, asked.key);
    all += asked.data;
    std::uint64_t hash = 0xCBF29CE484222325U;
    for (const char byte : all) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001B3U;
    detail::Buffer out;
    for (std::size_t i = 0; i < 8; ++i) out.push_back(static_cast<char>(hash >> (8 * i)));
    return out;
  }

  [[noreturn]] static void throw_error(std::string_view packed) {
    std::string code;
    std::string text;
    std::string node;
    detail::Reader reader(packed);
    detail::read_map(reader, [&](std::string_view field) {
      if (field != "error") return false;
      detail::read_map(reader, [&](std::string_view part) {
        std::string* to = part == "code" ? &code : part == "text" ? &text : part == "node" ? &node : nullptr;
        if (to != nullptr) *to = reader.text();
        return to != nullptr;
      });
      return true;
    });
    if (code == "no-answer") throw NoAnswer(text);
    throw CallFailed(code, text, node);
  }

  void name_timer(detail::Emitted& out, std::string_view name) {
    if (name.empty() || name.size() > 255 || !detail::is_utf8(name)) {
      throw Error("bad-value", "the name of a timer has 1 to 255 bytes of UTF-8, this one has " + std::to_string(name.size()));
    }
    if (!in_.key.exists) {
      throw Error("no-key", "node '" + node_->name + "' used timer '" + std::string(name) + "' in an event '" + std::string(in_.name) +
                                "' that has no key: a timer's name is one of a node and key");
    }
    out.timer = texts_.size();
    out.timer_size = name.size();
    texts_.append(name);
  }

  void check_open() const {
    if (!is_open_) throw Error("event-over", "an event was used after its handler had returned");
  }

  [[noreturn]] void no_key(std::string_view state) const {
    throw Error("no-key", "node '" + node_->name + "' used its state '" + std::string(state) + "' in an event '" + std::string(in_.name) +
                              "' that has no key; emit it with a key, or feed it with one");
  }

  std::uint32_t resolve(std::string_view name, std::string_view does = "emits") {
    check_open();
    if (!name.empty() && name == last_name_) return last_number_;
    const std::uint32_t* found = routes_->find(name);
    if (name.find('@') != std::string_view::npos) found = routes_->to_other(name);
    if (found == nullptr) throw Error("unknown-event", routes_->unknown(name, node_->name, does));
    last_name_ = (*routes_)[*found].text;
    return last_number_ = *found;
  }

  /// An emit whose value stands behind `at`.
  void note(std::uint32_t number, std::size_t at, const Emit& how) {
    detail::Emitted out;
    out.name = number;
    out.inherits = how.inherits_;
    out.data = at;
    out.size = texts_.size() - at;
    out.delay = how.delay_;
    if (!how.inherits_) {
      out.is_keyless = !how.has_key_;
      if (how.has_key_) check_key(how.key_);
      out.key = texts_.size();
      out.key_size = how.has_key_ ? how.key_.size() : 0;
      if (how.has_key_) texts_.append(how.key_);
    }
    if (how.timer_) {
      if (how.delay_ < 0) throw Error("bad-value", "timer '" + *how.timer_ + "' names an emit with a delay, and this one has none");
      name_timer(out, *how.timer_);
    }
    emitted_.push_back(out);
    check_size();
  }

  static void check_key(std::string_view key) {
    if (key.empty() || key.size() > 4'096) {
      throw Error("bad-value", "a key has 1 to 4,096 bytes of UTF-8, this one has " + std::to_string(key.size()));
    }
    if (!detail::is_utf8(key)) throw Error("bad-value", "a key must be valid UTF-8");
  }

  void check_size() const {
    if (texts_.size() + values_.size() + objects_size_ > limits_->max_result) {
      throw Error("too-large", "one event had effects of over " + std::to_string(limits_->max_result) +
                                   " bytes (max-result); do less, or emit events to itself that go on with the rest");
    }
  }

  /// What the event has said about a state, if it has.
  [[nodiscard]] const detail::Stored* said(std::size_t state) const {
    for (const auto& stored : stored_) {
      if (stored.state == state) return &stored;
    }
    return nullptr;
  }

  /// `packed` empty: deleted.
  void store(std::size_t state, std::string_view packed) {
    const std::size_t at = values_.size();
    const std::size_t size = packed.size();
    values_.append(packed);
    for (auto& stored : stored_) {
      if (stored.state == state) {
        stored = {state, at, size};
        return check_size();
      }
    }
    stored_.push_back({state, at, size});
    check_size();
  }

  void begin(const detail::Incoming& in, const detail::NodeSpec& node, detail::Table* table, std::int64_t now,
             const std::vector<detail::Answer>* answers) {
    in_ = in;
    node_ = &node;
    table_ = table;
    now_ = now;
    texts_.clear();
    emitted_.clear();
    replies_.clear();
    values_.clear();
    stored_.clear();
    written_.clear();
    objects_size_ = 0;
    answers_ = answers;
    calls_ = 0;
    called_.reset();
    is_open_ = true;
  }

  /// The event has failed.
  void undo() noexcept {
    for (const auto& written : written_) written->is_undone = true;
  }

  void end() noexcept {
    is_open_ = false;
    for (auto* buffer : {&texts_, &values_, &scratch_}) {
      if (buffer->capacity() > (1U << 20U)) *buffer = detail::Buffer();
    }
  }
};

inline std::string_view State::bytes() const {
  event_.check_open();
  if (const auto* said = event_.said(index_)) return std::string_view(event_.values_).substr(said->data, said->size);
  const detail::Entry* entry = event_.table_->find(event_.in_.key.text);
  if (entry == nullptr) return {};
  try {
    return event_.table_->read(*entry, index_, event_.now_);
  } catch (const detail::Mismatch& e) {
    throw Error("bad-state", std::string("the stored record cannot be read: ") + e.what());
  }
}

template <class T>
void State::set(const T& value) {
  event_.check_open();
  event_.scratch_.clear();
  detail::pack_whole(event_.scratch_, value, event_.limits_->max_event);
  event_.store(index_, event_.scratch_);
}

inline void State::erase() {
  event_.check_open();
  event_.store(index_, {});
}

}  // namespace grape
