/// Runs works: events in, one result out. Knows the protocol's rules; the socket is behind `Channel`.
///
/// The way of a work: retries first, then each batch event by event, at every node that listens. After each root event a work
/// may end early, and the engine sends what is left once more. Where nodes chain, some root events (a chunk) go first, and what they
/// emitted over chained pairs is the next stage, node by node: so the state that a stage needs is asked for at once. What an event does is collected in `Event`, and taken over here
/// when its handler has returned; so a failed one has nothing to be undone.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "batch.hpp"
#include "channel.hpp"
#include "child.hpp"
#include "crc.hpp"
#include "event.hpp"
#include "log.hpp"
#include "messages.hpp"
#include "outbox.hpp"
#include "routes.hpp"
#include "slot.hpp"
#include "state.hpp"
#include "storage.hpp"
#include "watch.hpp"

namespace grape::detail {

/// What a failure is told as.
struct Blame {
  std::string kind;
  std::string text;
  std::string trace;
};

/// The exceptions that an exception was thrown over (std::throw_with_nested), one a line.
inline void nested_in(const std::exception& error, std::string& out, int depth = 0) {
  if (depth == 20) return;
  try {
    std::rethrow_if_nested(error);
  } catch (const std::exception& inner) {
    out += "caused by " + demangled(typeid(inner).name()) + ": " + inner.what() + "\n";
    nested_in(inner, out, depth + 1);
  } catch (...) {
    out += "caused by something that is no std::exception\n";
  }
}

/// Of the exception that is being handled.
inline Blame blame() {
  Blame out;
  try {
    throw;
  } catch (const Error& e) {
    out.kind = e.kind();
    out.text = e.what();
    nested_in(e, out.trace);
  } catch (const std::exception& e) {
    out.kind = demangled(typeid(e).name());
    out.text = e.what();
    nested_in(e, out.trace);
  } catch (const std::string& text) {
    out.kind = "std::string";
    out.text = text;
  } catch (const char* text) {
    out.kind = "const char*";
    out.text = text == nullptr ? "" : text;
  } catch (...) {
    const std::type_info* type = abi::__cxa_current_exception_type();
    out.kind = type == nullptr ? "unknown" : demangled(type->name());
    out.text = "the handler threw a " + out.kind + ", which is no std::exception";
  }
  return out;
}

/// The event that waited for its turn is not to be begun here any more, nor is what stands behind it in its work.
struct GivenBack {};

/// A slot that this program declares.
struct Declared {
  SlotSpec spec;
  Handler handler;
  std::size_t number = 0;
};

class Runtime {
 public:
  Runtime(Channel& channel, const std::deque<NodeSpec>& nodes, const std::deque<Declared>& slots) : channel_(channel), slots_(slots), objects_(channel) {
    for (const auto& node : nodes) {
      Unit& unit = units_.emplace_back();
      unit.node = &node;
      unit.number = units_.size() - 1;
    }
    for (const auto& slot : slots) {
      counted_.push_back(slot.spec.event + ">" + slot.spec.node);
      if (slot.spec.rate > 0) rated_.emplace(slot.spec.event);
    }
    processed_.resize(slots.size());
    turns_.resize(slots.size());
  }

  void welcome(const Welcome& welcome) {
    limits_ = welcome.limits;
    partitions_ = static_cast<std::size_t>(std::clamp<std::int64_t>(welcome.partitions, 1, 1 << 16));
    boot_offset_ = welcome.boot_offset;
    TopologySpec topology = welcome.topology ? *welcome.topology : own_topology(welcome.pool);
    routes_ = std::make_unique<Routes>(topology, welcome.pool, welcome.taken, welcome.peers);
    find_chains(welcome);
    find_branches(topology, welcome.pool);
    outbox_ = std::make_unique<Outbox>(*routes_, limits_, partitions_);
    emit_counts_.assign(routes_->size(), 0);
    parts_.resize(partitions_);
    event_.routes_ = routes_.get();
    event_.limits_ = &limits_;
    event_.watch_ = &watch();
    objects_.namespaces = welcome.namespaces;
    event_.objects_ = &objects_;
    watch().here();
    log_levels().set(welcome.levels);
  }

  void change_peers(const PeersChanged& message) {
    routes_->change_peers(message.peers);
    event_.last_name_ = {};
  }

  void assign(const Assign& assign) {
    if (assign.partition < 0 || static_cast<std::size_t>(assign.partition) >= parts_.size())
      throw ProtocolError("an assigned partition out of range");
    auto part = std::make_unique<Part>();
    part->number = assign.partition;
    part->epoch = assign.epoch;
    part->chain_new = assign.chain_new;
    part->locks.resize(units_.size());
    for (const auto& unit : units_) part->tables.emplace_back(*unit.node, assign.empty);
    for (const auto& [node, key] : assign.held) {
      if (const Unit* unit = unit_of(node)) part->locks[unit->number].insert(key);
    }
    watch().traces(nullptr);
    parts_[static_cast<std::size_t>(assign.partition)] = std::move(part);
  }

  void revoke(const Revoke& revoke) {
    watch().traces(nullptr);
    if (part_of(revoke.partition) != nullptr) parts_[static_cast<std::size_t>(revoke.partition)].reset();
  }

  /// The engine has given turns.
  void leased(const Leased& leased) {
    const Declared* slot = slot_of(leased.event, leased.node);
    if (slot == nullptr || leased.count < 0) throw ProtocolError("turns of a slot that is not here");
    turns_[slot->number].has += leased.count;
    turns_[slot->number].is_asked = false;
  }

  /// Runs a work and sends its results; nothing comes back for a partition that is no longer this worker's. Throws `GivenBack`.
  void work(const Work& work) {
    Part* part = part_of(work.partition);
    if (part == nullptr || part->epoch != work.epoch) return;
    part_ = part;
    if (work.context_base == 0) {  // contexts are numbered anew when no work is out
      part->deadlines.clear();
      part->traced.clear();
    }
    part->deadlines.insert(work.deadlines.begin(), work.deadlines.end());
    part->traced.insert(work.traced.begin(), work.traced.end());
    watch().traces(&part->traced);
    bound_cache();
    careful_ = work.careful;
    named_ = &work.named;
    waits_ = may_wait(work);
    is_single_ = careful_ || waits_;
    stuck_.clear();
    start_clock();
    begun_ = started_;
    std::size_t next = 0;
    Before before = as_it_is();
    try {
      run_work(work, next, before);
      return;
    } catch (const TooMuch&) {
      undo(before);
    }
    is_single_ = true;
    run_work(work, next, before);
  }

 private:
  static constexpr std::chrono::milliseconds work_time{100};
  static constexpr std::chrono::milliseconds chunk_time{10};
  static constexpr std::size_t work_bytes = 16U << 20U;
  static constexpr std::size_t ask_bytes = 16U << 20U;
  static constexpr std::size_t ask_events = 4'096;
  static constexpr std::int64_t most_hops = std::int64_t{1} << 31;

  static constexpr std::size_t chunk_bytes = 4U << 20U;
  static constexpr unsigned chunk_events = 1'024;
  static constexpr std::size_t child_bytes = 48;

  using Line = std::pair<std::size_t, std::string>;

  struct Unit;

  /// A node that gets events of a name at once.
  struct Next {
    const Unit* unit = nullptr;
    const Declared* slot = nullptr;
  };

  /// Where a name leads within its partition: nodes that run at once (none: it does not chain), and logs for all the others.
  struct Chain {
    std::vector<Next> next;
    std::vector<Lead> leads;
  };

  /// `chains`: by the number of the name; where pairs that are new do not chain, and where they do. Empty: nothing does.
  struct Unit {
    const NodeSpec* node = nullptr;
    std::size_t number = 0;
    std::array<std::vector<Chain>, 2> chains{};
  };

  /// A chained event. Key, data and id stand in the texts of its stage.
  struct Child {
    const Declared* slot = nullptr;
    bool has_key = false;
    std::size_t key = 0;
    std::size_t key_size = 0;
    std::size_t data = 0;
    std::size_t size = 0;
    std::int64_t hops = 0;
    std::int64_t context = -1;
    std::int64_t created = 0;
    std::size_t id = 0;  ///< its parent's, a point, and the branch; then comes `ordinal`
    std::size_t id_size = 0;
    std::int64_t ordinal = 0;
  };

  /// What chains into one node. `parent`: number of the event that emitted last.
  struct Stage {
    const Unit* unit = nullptr;
    std::vector<Child> children;
    Buffer texts;
    std::uint64_t parent = 0;
  };

  using Locks = std::vector<std::unordered_set<std::string>>;
  using Lines = std::map<Line, std::set<std::string>>;

  /// What has to be as it was, if what was done since the last result has not happened.
  struct Before {
    Locks locks;
    Lines lines;
    std::set<Line> stuck;
  };

  /// The root events since the last result did more than a result can hold: they have to run one by one.
  struct TooMuch {};

  /// A partition of this worker. `lines`: ids of the events that were handed in as failed or behind, by the (node, key) whose
  /// line they stand in, until they have been retried: when the engine sends the first one back it may not know all of them yet.
  struct Part {
    std::int64_t number = 0;
    std::int64_t epoch = 0;
    bool chain_new = true;
    std::vector<Table> tables;
    Locks locks;
    Lines lines;
    std::unordered_map<std::int64_t, std::int64_t> deadlines;
    Shelf shelf;
    std::unordered_map<std::int64_t, std::string> traced;
  };

  /// Of a slot with a rate. `has`: given and not used.
  struct Turns {
    std::int64_t has = 0;
    bool is_asked = false;
  };

  struct Moved {
    std::int64_t position = 0;
    Progress before;
    std::int64_t end = 0;
  };

  /// A node that a run is for, and its slots by the names of the run.
  struct Listening {
    const Unit* unit = nullptr;
    std::vector<const Declared*> slots;
  };

  Channel& channel_;
  const std::deque<Declared>& slots_;
  Objects objects_;
  std::vector<std::string> branches_;  ///< by the number of a slot
  std::deque<Unit> units_;
  Limits limits_;
  std::size_t partitions_ = 1;
  std::int64_t boot_offset_ = 0;
  std::unique_ptr<Routes> routes_;
  std::vector<std::unique_ptr<Part>> parts_;

  // What runs.
  Part* part_ = nullptr;
  Event event_;
  bool careful_ = false;
  const std::vector<Named>* named_ = nullptr;
  std::set<Line> stuck_;
  std::size_t root_size_ = 0;
  std::size_t record_size_ = 64;  ///< bytes, lately: so many records are asked for at once as fit the memory
  bool has_asked_ = false;
  RunReader run_;
  std::vector<Listening> listening_;
  std::vector<Change> changes_;

  // What has a rate.
  std::set<std::string, std::less<>> rated_;  ///< names of events
  std::vector<Turns> turns_;                  ///< by the number of the slot
  bool waits_ = false;                        ///< an event of the work may have to wait for its turn
  std::chrono::steady_clock::time_point begun_;

  // What chains.
  bool has_chains_ = false;
  bool is_single_ = false;  ///< each root event is handed in alone
  std::vector<std::unique_ptr<Stage>> chained_;
  std::vector<std::unique_ptr<Stage>> spare_;
  std::uint64_t parent_ = 0;        ///< number of the event that has run last
  std::size_t chunk_start_ = 0;     ///< where the effects of the chunk begin
  std::vector<unsigned> chunks_;    ///< root events in a chunk, by the number of the name

  // What it has done since the last result.
  std::unique_ptr<Outbox> outbox_;
  std::size_t size_ = 0;
  std::vector<Moved> moved_;
  std::vector<std::int64_t> retried_;
  Buffer timers_;
  std::size_t timer_count_ = 0;
  Buffer failures_;
  std::size_t failure_count_ = 0;
  Buffer replies_;
  std::size_t reply_count_ = 0;
  std::vector<WrittenPtr> written_;
  std::vector<std::string> counted_;
  std::vector<std::int64_t> processed_;
  std::vector<std::int64_t> emit_counts_;
  Buffer frame_;

  // When the work was begun, and when to look at the clock again.
  std::chrono::steady_clock::time_point started_;
  std::chrono::steady_clock::time_point looked_;
  unsigned until_look_ = 0;
  unsigned stride_ = 1;

  // ------------------------------------------------------------------ small things

  [[nodiscard]] TopologySpec own_topology(std::string_view pool) const {
    TopologySpec out;
    for (const auto& unit : units_) out.nodes.push_back({unit.node->name, std::string(pool), {}, false});
    for (const auto& slot : slots_) out.slots.push_back(slot.spec);
    return out;
  }

  /// What tells the ids of events that a node has chained from those of other nodes that heard the same event: its number
  /// among them, if it is not the first.
  void find_branches(const TopologySpec& topology, std::string_view pool) {
    branches_.assign(slots_.size(), {});
    for (const auto& slot : slots_) {
      std::size_t number = 0;
      for (const auto& other : topology.slots) {
        if (other.event != slot.spec.event) continue;
        if (other.node == slot.spec.node) break;
        for (const auto& node : topology.nodes) number += node.name == other.node && node.pool == pool ? 1 : 0;
      }
      if (number > 0) branches_[slot.number] = std::to_string(number) + "-";
    }
  }

  [[nodiscard]] const Unit* unit_of(std::string_view node) const {
    for (const auto& unit : units_) {
      if (unit.node->name == node) return &unit;
    }
    return nullptr;
  }

  [[nodiscard]] const Declared* slot_of(std::string_view event, std::string_view node) const {
    for (const auto& slot : slots_) {
      if (slot.spec.event == event && slot.spec.node == node) return &slot;
    }
    return nullptr;
  }

  [[nodiscard]] Part* part_of(std::int64_t number) const {
    return number < 0 || static_cast<std::size_t>(number) >= parts_.size() ? nullptr : parts_[static_cast<std::size_t>(number)].get();
  }

  /// The engine's wall time, which goes on evenly when somebody sets the clock.
  [[nodiscard]] std::int64_t now() const {
    timespec time{};
    ::clock_gettime(CLOCK_BOOTTIME, &time);
    return boot_offset_ + std::int64_t{time.tv_sec} * 1'000'000 + time.tv_nsec / 1'000;
  }

  void start_clock() {
    started_ = looked_ = std::chrono::steady_clock::now();
    until_look_ = stride_ = 1;
  }

  /// Whether the work should be handed in. Looks at the clock seldom when events are quick.
  bool is_long() {
    if (size_ > work_bytes) return true;
    if (--until_look_ > 0) return false;
    const auto now = std::chrono::steady_clock::now();
    stride_ = now - looked_ < std::chrono::milliseconds(1) ? std::min(2 * stride_, 256U) : 1;
    looked_ = now;
    until_look_ = stride_;
    return now - started_ > work_time;
  }

  void bound_cache() {
    std::size_t size = 0;
    for (const auto& part : parts_) {
      if (part) {
        for (const auto& table : part->tables) size += table.size();
      }
    }
    if (size <= limits_.cache_bytes) return;
    for (const auto& part : parts_) {
      if (part) {
        for (auto& table : part->tables) table.evict();
      }
    }
  }

  // ------------------------------------------------------------------ retries and batches

  /// Runs what is left of a work, from the retry number `next` on, which is the first one that was not handed in.
  void run_work(const Work& work, std::size_t& next, Before& before) {
    for (std::size_t i = next; i < work.retries.size(); ++i) {
      run_retry(work.retries[i], work.context_base + static_cast<std::int64_t>(i));
      if (is_single_ || is_long()) {
        hand_in(nullptr);
        next = i + 1;
        before = as_it_is();
        start_clock();
      }
    }
    std::int64_t context = work.context_base + static_cast<std::int64_t>(work.retries.size());
    for (const auto& item : work.batches) {
      if (!run_batch(item, context)) break;
      context += item.contexts;
    }
    hand_in(&work.seq);
  }

  /// Lets a held event pass the lock of its key. One that fails again keeps those that stand behind it in its line, and the lock
  /// stays as long as another event of the line is held.
  void run_retry(const RetryItem& item, std::int64_t context) {
    const Unit* unit = unit_of(item.node);
    run_.start(item.body);
    if (!run_.next()) throw ProtocolError("a retried event without a body");
    run_.read_columns();
    const Declared* slot = unit == nullptr ? nullptr : slot_of(run_.names[0], item.node);
    if (slot == nullptr) return;
    const Key key = run_.key_at(0);
    Incoming in;
    in.name = slot->spec.event;
    in.key = key;
    in.data = run_.data_at(0);
    in.hops = run_.hops_at(0);
    in.context = item.context >= 0 ? context : -1;
    in.created = item.created;
    in.attempt = item.attempt;
    in.id_prefix = item.id;
    std::optional<Line> line;
    if (key.exists && slot->spec.ordered) line.emplace(unit->number, key.text);
    if (line && stuck_.count(*line) != 0) return;
    wait_for_turn(*unit, *slot, in, true);
    if (line) part_->locks[unit->number].erase(line->second);
    listening_.clear();
    listening_.push_back({unit, {slot}});
    ask_for(0, 1, nullptr, 0);
    bool has_failed = false;
    const bool is_done = run_root([&] {
      has_failed = !run_at(*unit, *slot, in, &item);
      finish_chunk();
    });
    if (!is_done) {
      has_failed = true;
      fail(*unit, *slot, in, &item, too_much(), nullptr, false);
    }
    if (!has_failed) retried_.push_back(item.hold);
    if (!line) return;
    auto& locks = part_->locks[unit->number];
    if (locks.count(line->second) != 0) {
      stuck_.insert(std::move(*line));
      return;
    }
    const auto held = part_->lines.find(*line);
    bool is_held = item.rest;
    if (held != part_->lines.end()) {
      held->second.erase(std::string(item.id));
      if (held->second.empty()) {
        part_->lines.erase(held);
      } else {
        is_held = true;
      }
    }
    if (is_held) locks.insert(std::move(line->second));
  }

  /// Runs what is not done of a batch; false: the work is to be handed in.
  bool run_batch(const BatchItem& item, std::int64_t context_base) {
    std::int64_t offset = 0;
    run_.start(item.body);
    while (run_.next()) {
      const auto count = static_cast<std::int64_t>(run_.count);
      if (offset + count > item.done.first) {
        run_.read_columns();
        find_listening();
        if (!run_events(item, offset, context_base)) return false;
      }
      offset += count;
    }
    if (item.events == 0) moved_.push_back({item.position, item.done, 0});
    return true;
  }

  void find_listening() {
    listening_.clear();
    const auto add = [&](std::string_view node) {
      const Unit* unit = unit_of(node);
      if (unit == nullptr) return;
      Listening& listening = listening_.emplace_back();
      listening.unit = unit;
      for (const auto name : run_.names) listening.slots.push_back(slot_of(name, node));
    };
    if (run_.has_only) {
      for (const auto node : run_.only) add(node);
    } else {
      // Older code may have put names together that have not the same listeners any more: these have no slot for some of them.
      for (const auto name : run_.names) {
        const std::uint32_t* number = routes_->find(name);
        if (number == nullptr) continue;
        for (const auto& node : (*routes_)[*number].listeners) {
          const auto is_it = [&](const Listening& listening) { return listening.unit->node->name == node; };
          if (std::none_of(listening_.begin(), listening_.end(), is_it)) add(node);
        }
      }
    }
  }

  bool run_events(const BatchItem& item, std::int64_t offset, std::int64_t context_base) {
    Incoming in;
    in.created = item.created;
    std::size_t asked = 0;
    Chunk chunk(*this, item);
    for (std::size_t i = 0; i < run_.count; ++i) {
      const std::int64_t index = offset + static_cast<std::int64_t>(i);
      if (item.done.is_done(index)) continue;
      if (i >= asked) asked = ask_ahead(i, item.done, offset);
      in.key = run_.key_at(i);
      in.data = run_.data_at(i);
      in.hops = run_.hops_at(i);
      in.context = context_of(item, index, i, context_base);
      in.id_prefix = item.id_prefix;
      in.id_number = index;
      if (!run_.ids.empty()) {
        if (const auto id = run_.ids.find(static_cast<std::int64_t>(i)); id != run_.ids.end()) {
          in.id_prefix = id->second;
          in.id_number = -1;
        }
      }
      const std::size_t name = run_.name_at(i);
      in.name = run_.names[name];
      if (is_single_) {
        wait_for_turns(in, name);
        if (!run_root([&] { run_everywhere(in, name); })) {
          refuse_everywhere(in, name);
          asked = i + 1;  // nothing is cached any more
        }
        note_done(item, index + 1);
        hand_in(nullptr);
        if (waits_ && std::chrono::steady_clock::now() - begun_ > work_time) return false;
        continue;
      }
      run_everywhere(in, name);
      if (has_chains_ && !chunk.is_full(index + 1)) continue;
      if (!has_chains_) note_done(item, index + 1);
      if (is_long()) return chunk.finish(), false;
    }
    chunk.finish();
    return true;
  }

  /// Some root events, until all that chains from them has run.
  class Chunk {
   public:
    Chunk(Runtime& runtime, const BatchItem& item) : runtime_(runtime), item_(item) {}

    /// Another one has run, up to `end` of its batch; true: it was the last, and all is finished.
    bool is_full(std::int64_t end) {
      if (events_ == 0) started_ = std::chrono::steady_clock::now();
      end_ = end;
      const std::uint32_t* number = runtime_.routes_->find(runtime_.run_.names[0]);
      most_ = number == nullptr ? nullptr : &runtime_.chunks_[*number];
      const bool is_full = ++events_ >= (most_ == nullptr ? 1U : *most_) || runtime_.size_ - runtime_.chunk_start_ > chunk_bytes;
      if (is_full) finish();
      return is_full;
    }

    void finish() {
      if (events_ == 0) return;
      const std::size_t start = runtime_.chunk_start_;
      runtime_.finish_chunk();
      runtime_.note_done(item_, end_);
      if (most_ != nullptr) adapt(runtime_.size_ - std::min(start, runtime_.size_));
      events_ = 0;
    }

   private:
    Runtime& runtime_;
    const BatchItem& item_;
    unsigned events_ = 0;
    std::int64_t end_ = 0;
    unsigned* most_ = nullptr;
    std::chrono::steady_clock::time_point started_;

    /// It should take some milliseconds, and not fill the memory.
    void adapt(std::size_t bytes) {
      const auto took = std::chrono::steady_clock::now() - started_;
      if (took > 2 * chunk_time || bytes > 2 * chunk_bytes) {
        *most_ = std::max(1U, std::min(*most_, events_) / 2);
      } else if (events_ >= *most_ && took < chunk_time / 2 && bytes < chunk_bytes / 2) {
        *most_ = std::min(chunk_events, 4 * *most_);
      }
    }
  };

  void run_everywhere(const Incoming& in, std::size_t name) {
    root_size_ = 0;
    for (const auto& listening : listening_) {
      const Declared* slot = listening.slots[name];
      if (slot == nullptr) continue;
      if (has_chains_) root_size_ = 0;
      run_at(*listening.unit, *slot, in, nullptr);
      if (has_chains_) check_size();
      if (is_single_) run_chained();
    }
  }

  /// The event did too much together with what chained from it.
  void refuse_everywhere(const Incoming& in, std::size_t name) {
    for (const auto& listening : listening_) {
      const Declared* slot = listening.slots[name];
      if (slot != nullptr && !is_behind(*listening.unit, *slot, in, nullptr)) {
        fail(*listening.unit, *slot, in, nullptr, too_much(), nullptr, false);
      }
    }
  }

  [[nodiscard]] Blame too_much() const {
    return {"too-large", "one event had effects of over " + std::to_string(limits_.max_result) +
                             " bytes (max-result), with what chained from it: emits, state and replies together", ""};
  }

  // ------------------------------------------------------------------ what has a rate

  /// Whether some of its events may have to wait for their turn.
  [[nodiscard]] bool may_wait(const Work& work) {
    if (rated_.empty()) return false;
    const auto is_rated = [&](std::string_view node) {
      return std::any_of(slots_.begin(), slots_.end(), [&](const Declared& slot) { return slot.spec.rate > 0 && slot.spec.node == node; });
    };
    for (const auto& item : work.retries) {
      if (is_rated(item.node)) return true;
    }
    for (const auto& item : work.batches) {
      run_.start(item.body);
      while (run_.next()) {
        for (const auto name : run_.names) {
          if (rated_.count(name) != 0) return true;
        }
      }
    }
    return false;
  }

  /// Waits until an event may be handed to all of its nodes; none begins before. Throws `GivenBack`.
  void wait_for_turns(const Incoming& in, std::size_t name) {
    if (!waits_) return;
    for (const auto& listening : listening_) {
      if (listening.slots[name] != nullptr) wait_for_turn(*listening.unit, *listening.slots[name], in, false);
    }
  }

  void wait_for_turn(const Unit& unit, const Declared& slot, const Incoming& in, bool is_retry) {
    if (slot.spec.rate <= 0) return;
    // What keeps an event from running keeps it from counting to the rate.
    const bool is_behind = !is_retry && in.key.exists && slot.spec.ordered && part_->locks[unit.number].count(std::string(in.key.text)) != 0;
    if (is_behind || named(unit, in) != nullptr || why_lost(unit, in)) return;
    Turns& turns = turns_[slot.number];
    watch().wait(turns.has == 0);
    while (turns.has == 0) {
      if (!turns.is_asked) channel_.send(lease_frame(slot.spec.event, slot.spec.node, 1));
      turns.is_asked = true;
      auto frame = channel_.receive_unless(tag::leased, [&](std::string_view message) { return is_unwanted(message); });
      if (!frame) {
        watch().wait(false);
        throw GivenBack();
      }
      Reader reader(frame->message());
      leased(Leased(reader));
      channel_.recycle(std::move(*frame));
    }
    watch().wait(false);
    --turns.has;
  }

  /// Whether a message says that the work which runs is not to be gone on with.
  [[nodiscard]] bool is_unwanted(std::string_view message) const {
    const std::int64_t kind = tag_of(message);
    if (kind != tag::revoke) return kind == tag::drain;
    Reader reader(message);
    return Revoke(reader).partition == part_->number;
  }

  /// What a careful work says of the event: it is handed in as failed instead of run. Null: nothing.
  [[nodiscard]] const Named* named(const Unit& unit, const Incoming& in) const {
    if (!careful_ || named_->empty()) return nullptr;
    const std::string id = in.id();
    for (const auto& named : *named_) {
      if (named.id == id && named.node == unit.node->name) return &named;
    }
    return nullptr;
  }

  // ------------------------------------------------------------------ what chains

  void find_chains(const Welcome& welcome) {
    chunks_.assign(routes_->size(), 1);
    Pairs old = routes_->chained();
    for (const auto& pair : welcome.unchained) old.erase(pair);
    for (auto& unit : units_) {
      unit.chains[0] = chains_of(*unit.node, old, welcome.pool);
      unit.chains[1] = chains_of(*unit.node, routes_->chained(), welcome.pool);
      has_chains_ |= !unit.chains[1].empty();
    }
  }

  std::vector<Chain> chains_of(const NodeSpec& node, const Pairs& pairs, std::string_view pool) {
    std::vector<Chain> out(routes_->size());
    bool is_any = false;
    for (std::uint32_t number = 0; number < out.size(); ++number) {
      const Name& name = (*routes_)[number];
      Chain& chain = out[number];
      std::vector<std::string> rest;
      for (const auto& target : name.listeners) {
        const Unit* unit = pairs.count({node.name, target}) == 0 ? nullptr : unit_of(target);
        if (unit == nullptr) {
          rest.push_back(target);
        } else {
          chain.next.push_back({unit, slot_of(name.text, target)});
        }
      }
      if (chain.next.empty()) continue;
      is_any = true;
      for (const auto lead : name.leads) {
        const bool is_here = routes_->targets()[lead.target].name == pool;
        if (!is_here) chain.leads.push_back(lead);
        if (is_here && !rest.empty()) chain.leads.push_back(routes_->lead_for(lead, rest));
      }
    }
    return is_any ? out : std::vector<Chain>();
  }

  /// The chain of a name for events of `unit` that stay in the partition; null: there is none.
  [[nodiscard]] const Chain* chain_of(const Unit& unit, std::uint32_t name) const {
    const auto& chains = unit.chains[part_->chain_new ? 1 : 0];
    return chains.empty() || chains[name].next.empty() ? nullptr : &chains[name];
  }

  /// The stage of a node among those that are to run next.
  Stage& stage_of(const Unit& unit) {
    for (auto& stage : chained_) {
      if (stage->unit == &unit) return *stage;
    }
    if (spare_.empty()) {
      chained_.push_back(std::make_unique<Stage>());
    } else {
      chained_.push_back(std::move(spare_.back()));
      spare_.pop_back();
    }
    Stage& stage = *chained_.back();
    stage.unit = &unit;
    stage.parent = 0;
    return stage;
  }

  void chain(const Next& next, const Declared& slot, const Incoming& in, std::int64_t ordinal, Key key, std::string_view data) {
    Stage& stage = stage_of(*next.unit);
    Child child;
    if (stage.parent == parent_) {
      child.id = stage.children.back().id;
      child.id_size = stage.children.back().id_size;
    } else {
      stage.parent = parent_;
      child.id = stage.texts.size();
      in.append_id(stage.texts);
      stage.texts.push_back('.');
      stage.texts.append(branches_[slot.number]);
      child.id_size = stage.texts.size() - child.id;
    }
    child.slot = next.slot;
    child.has_key = key.exists;
    child.key = stage.texts.size();
    child.key_size = key.text.size();
    stage.texts.append(key.text);
    child.data = stage.texts.size();
    child.size = data.size();
    stage.texts.append(data);
    child.hops = std::min(in.hops + 1, most_hops);
    child.context = in.context;
    child.created = in.created;
    child.ordinal = ordinal;
    stage.children.push_back(child);
    size_ += data.size() + key.text.size() + child_bytes;
  }

  /// Runs what has been chained, and all that chains from that.
  void run_chained() {
    if (chained_.empty()) return;
    std::vector<std::unique_ptr<Stage>> stages;
    stages.swap(chained_);
    for (auto& stage : stages) {
      ask_for(*stage);
      const std::string_view texts = stage->texts;
      for (const auto& child : stage->children) {
        Incoming in;
        in.name = child.slot->spec.event;
        if (child.has_key) in.key = {texts.substr(child.key, child.key_size), true};
        in.data = texts.substr(child.data, child.size);
        in.hops = child.hops;
        in.context = child.context;
        in.created = child.created;
        in.id_prefix = texts.substr(child.id, child.id_size);
        in.id_number = child.ordinal;
        root_size_ = 0;
        run_at(*stage->unit, *child.slot, in, nullptr);
        check_size();
        if (careful_) run_chained();
      }
      run_chained();
      stage->children.clear();
      stage->texts.clear();
      if (stage->texts.capacity() <= chunk_bytes && spare_.size() < units_.size()) spare_.push_back(std::move(stage));
    }
  }

  void ask_for(const Stage& stage) {
    Table& table = part_->tables[stage.unit->number];
    if (table.is_complete || stage.unit->node->states.empty()) return;
    std::vector<std::string_view> missing;
    for (const auto& child : stage.children) {
      const std::string_view key = std::string_view(stage.texts).substr(child.key, child.key_size);
      if (child.has_key && table.find(key) == nullptr) missing.push_back(key);
    }
    ask_once(table, missing);
  }

  /// The root events of a chunk have run: now what chains from them.
  void finish_chunk() {
    run_chained();
    chunk_start_ = size_;
  }

  void check_size() const {
    if (size_ > chunk_start_ + limits_.max_result) throw TooMuch();
  }

  /// Runs a root event. If it is alone, and does too much together with what chains from it, it has done nothing: false.
  template <class Run>
  bool run_root(Run&& run) {
    if (!is_single_) {
      run();
      return true;
    }
    Before before = as_it_is();
    try {
      run();
      return true;
    } catch (const TooMuch&) {
      undo(before);
    }
    return false;
  }

  [[nodiscard]] Before as_it_is() const { return has_chains_ ? Before{part_->locks, part_->lines, stuck_} : Before{}; }

  /// What was done since the last result has not happened. What is stored can be asked for again.
  void undo(const Before& before) {
    part_->locks = before.locks;
    part_->lines = before.lines;
    stuck_ = before.stuck;
    part_->tables.clear();
    for (const auto& unit : units_) part_->tables.emplace_back(*unit.node, false);
    part_->shelf.clear();
    outbox_->clear();
    chained_.clear();
    std::fill(processed_.begin(), processed_.end(), 0);
    std::fill(emit_counts_.begin(), emit_counts_.end(), 0);
    forget();
  }

  [[nodiscard]] std::int64_t context_of(const BatchItem& item, std::int64_t index, std::size_t i, std::int64_t base) const {
    if (item.calls) return base + index;
    const std::int64_t context = run_.context_at(i);
    return context < 0 ? -1 : base + context;
  }

  void note_done(const BatchItem& item, std::int64_t end) {
    if (moved_.empty() || moved_.back().position != item.position) moved_.push_back({item.position, item.done, 0});
    moved_.back().end = end;
  }

  // ------------------------------------------------------------------ state that is not here

  /// Asks for what the events from `first` on need and is not here; returns up to which one.
  std::size_t ask_ahead(std::size_t first, const Progress& done, std::int64_t offset) {
    const std::size_t most = has_asked_ ? std::clamp<std::size_t>(ask_bytes / record_size_, 1, ask_events) : 256;
    const std::size_t end = std::min(run_.count, first + most);
    ask_for(first, end, &done, offset);
    return end;
  }

  void ask_for(std::size_t first, std::size_t end, const Progress* done, std::int64_t offset) {
    for (const auto& listening : listening_) {
      if (listening.unit->node->states.empty()) continue;
      Table& table = part_->tables[listening.unit->number];
      if (table.is_complete || run_.keys.empty()) continue;
      std::vector<std::string_view> missing;
      for (std::size_t i = first; i < end; ++i) {
        const Key key = run_.keys[i];
        if (!key.exists || table.find(key.text) != nullptr) continue;
        if (done == nullptr || !done->is_done(offset + static_cast<std::int64_t>(i))) missing.push_back(key.text);
      }
      ask_once(table, missing);
    }
  }

  void ask_once(Table& table, std::vector<std::string_view>& keys) {
    if (keys.empty()) return;
    std::sort(keys.begin(), keys.end());  // the store finds neighbours faster
    keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
    ask(table, keys);
  }

  void ask(Table& table, const std::vector<std::string_view>& keys) {
    std::size_t bytes = 0;
    for (std::size_t from = 0; from < keys.size();) {
      Buffer frame = open_frame();
      pack_array(frame, 5);
      pack_int(frame, tag::ask);
      pack_int(frame, part_->number);
      pack_int(frame, part_->epoch);
      pack_str(frame, table.node().name);
      pack_array(frame, keys.size() - from);
      for (std::size_t i = from; i < keys.size(); ++i) pack_bin(frame, keys[i]);
      close_frame(frame);
      channel_.send(frame);
      Frame answer = channel_.receive_only(tag::values);
      Reader reader(answer.message());
      Fields fields(reader);
      fields.next();
      reader.skip();
      std::uint32_t count = fields.next() ? reader.array() : 0;
      if (count == 0 || count > keys.size() - from) throw ProtocolError("an answer with another number of values than was asked for");
      for (; count > 0; --count) {
        const std::string_view record = reader.nil() ? std::string_view{} : reader.bytes();
        table.fill(keys[from++], record);
        bytes += record.size();
      }
      channel_.recycle(std::move(answer));
    }
    record_size_ = std::max(record_size_ / 2, bytes / keys.size() + 1);
    has_asked_ = true;
  }

  // ------------------------------------------------------------------ one event at one node

  /// False: it failed.
  bool run_at(const Unit& unit, const Declared& slot, const Incoming& in, const RetryItem* retry) {
    if (const auto lost = why_lost(unit, in)) {
      fail(unit, slot, in, retry, *lost, nullptr, true);
      return false;
    }
    if (const Named* what = named(unit, in)) {
      fail(unit, slot, in, retry, {std::string(what->kind), std::string(what->text), std::string(what->trace)}, what, false);
      return false;
    }
    if (is_behind(unit, slot, in, retry)) return false;
    if (careful_) channel_.send(announce_frame(part_->number, part_->epoch, in.id(), unit.node->name));
    return execute(unit, slot, in, retry);
  }

  /// Whether the event has to wait behind a failed one of its key; then it has been handed in so.
  bool is_behind(const Unit& unit, const Declared& slot, const Incoming& in, const RetryItem* retry) {
    const auto& locks = part_->locks[unit.number];
    if (locks.empty() || !in.key.exists || !slot.spec.ordered || locks.count(std::string(in.key.text)) == 0) return false;
    part_->lines[{unit.number, std::string(in.key.text)}].insert(in.id());
    record_failure(unit, in, retry, Blame{}, true, false, false);
    return true;
  }

  bool execute(const Unit& unit, const Declared& slot, const Incoming& in, const RetryItem* retry) {
    Table& table = part_->tables[unit.number];
    const std::int64_t time = table.has_ttl() ? now() : 0;
    objects_.enter(part_->number, part_->epoch, part_->shelf);
    event_.begin(in, *unit.node, &table, time, retry == nullptr ? nullptr : &retry->answers);
    try {
      watch().enter(slot.spec, in, part_->number, part_->epoch);
      slot.handler(event_);
      end_child(nullptr);
      watch().leave();
      if (event_.called_) throw caught();
      check_effects(in, table, time);
    } catch (const Suspended&) {
      const std::string text = "waits for an answer";
      end_child(&text);
      watch().leave();
      event_.undo();
      event_.end();
      if (event_.called_) {
        suspend(unit, slot, in, retry);
      } else {
        fail(unit, slot, in, retry, {"handler", "node '" + unit.node->name + "' threw a Suspended of its own", ""}, nullptr, false);
      }
      return false;
    } catch (...) {
      Blame blamed = blame();
      end_child(&blamed.text);
      watch().leave();
      if (event_.called_) blamed = {"handler", caught().what(), ""};
      event_.undo();
      event_.end();
      fail(unit, slot, in, retry, blamed, nullptr, false);
      return false;
    }
    take_effects(unit, slot, in, table, time);
    event_.end();
    ++processed_[slot.number];
    return true;
  }

  /// The handler went on although it was left.
  [[nodiscard]] Error caught() const {
    return {"handler", "node '" + event_.node_->name + "' caught what ends its handler while it waits for the answer to '" +
                           (*routes_)[event_.called_->name].text + "': a catch (...) has to throw again"};
  }

  /// What can still be refused of what the event did. Throws what it fails of.
  void check_effects(const Incoming& in, Table& table, std::int64_t time) {
    std::size_t size = event_.texts_.size() + event_.objects_size_;
    if (size > (1U << 20U)) {  // then it matters that an emit goes to every pool that listens
      for (const auto& emitted : event_.emitted_) {
        const std::size_t leads = (*routes_)[emitted.name].leads.size();
        if (leads > 1) size += (leads - 1) * (emitted.size + emitted.key_size);
      }
    }
    if (!event_.stored_.empty()) {
      changes_.clear();
      for (const auto& stored : event_.stored_) {
        changes_.push_back({stored.state, std::string_view(event_.values_).substr(stored.data, stored.size)});
      }
      try {
        size += table.prepare(table.find(in.key.text), changes_, time);
      } catch (const Mismatch& e) {
        throw Error("bad-state", std::string("the stored record cannot be read: ") + e.what());
      }
    }
    if (root_size_ + size > limits_.max_result) {
      throw Error("too-large", "one event had effects of over " + std::to_string(limits_.max_result) +
                                   " bytes (max-result): emits, state and replies together");
    }
    root_size_ += size;
  }

  void take_effects(const Unit& unit, const Declared& slot, const Incoming& in, Table& table, std::int64_t time) {
    ++parent_;
    if (!event_.stored_.empty()) size_ = static_cast<std::size_t>(static_cast<std::ptrdiff_t>(size_) + table.store(in.key.text, time));
    const std::string_view texts = event_.texts_;
    const auto own = static_cast<std::size_t>(part_->number);
    for (std::size_t ordinal = 0; ordinal < event_.emitted_.size(); ++ordinal) {
      const Emitted& emitted = event_.emitted_[ordinal];
      const TimerName timer{event_.node_->name, in.key.text, texts.substr(emitted.timer, emitted.timer_size)};
      if (!timer.name.empty()) cancel_timer(timer);  // it takes the place of the one before
      if (emitted.is_cancelled) continue;
      const Name& name = (*routes_)[emitted.name];
      if (emitted.name >= emit_counts_.size()) emit_counts_.resize(routes_->size(), 0);  // the first one to another app
      ++emit_counts_[emitted.name];
      if (name.leads.empty()) continue;
      Key key = in.key;
      if (!emitted.inherits) key = emitted.is_keyless ? Key{} : Key{texts.substr(emitted.key, emitted.key_size), true};
      const bool stays = emitted.inherits || emitted.is_keyless || name.is_output;
      const std::size_t partition = stays ? own : partition_of(key.text, static_cast<std::uint32_t>(partitions_));
      const std::string_view data = texts.substr(emitted.data, emitted.size);
      const Chain* chained = emitted.delay >= 0 || partition != own ? nullptr : chain_of(unit, emitted.name);
      if (chained != nullptr) {
        for (const auto& next : chained->next) chain(next, slot, in, static_cast<std::int64_t>(ordinal), key, data);
      }
      const std::vector<Lead>& leads = chained == nullptr ? name.leads : chained->leads;
      size_ += leads.size() * (emitted.size + key.text.size() + 16);
      for (const auto lead : leads) {
        if (emitted.delay >= 0) {
          add_timer(emitted.delay, lead, partition, name, key, data, in.context, timer);
        } else {
          outbox_->append(lead, partition, emitted.name, key, data, std::min(in.hops + 1, most_hops), in.context);
        }
      }
    }
    for (const auto& written : event_.written_) written_.push_back(written);
    size_ += event_.objects_size_;
    if (in.context < 0) return;  // nobody waits for an answer
    for (const auto& reply : event_.replies_) {
      pack_array(replies_, 3);
      pack_int(replies_, in.context);
      pack_bin(replies_, texts.substr(reply.data, reply.size));
      pack_bool(replies_, reply.is_final);
      ++reply_count_;
      size_ += reply.size;
    }
  }

  /// By which a timer is found again. Without a name: not at all.
  struct TimerName {
    std::string_view node;
    std::string_view key;
    std::string_view name;

    void pack(Buffer& out) const {
      pack_array(out, 3);
      pack_str(out, node);
      pack_bin(out, key);
      pack_str(out, name);
    }
  };

  void cancel_timer(const TimerName& timer) {
    const std::size_t before = timers_.size();
    pack_array(timers_, 3);
    pack_int(timers_, 0);
    pack_nil(timers_);
    timer.pack(timers_);
    ++timer_count_;
    size_ += timers_.size() - before;
  }

  void add_timer(std::int64_t delay, Lead lead, std::size_t partition, const Name& name, Key key, std::string_view data,
                 std::int64_t context, const TimerName& timer) {
    pack_array(timers_, timer.name.empty() ? 2 : 3);
    pack_int(timers_, delay);
    pack_array(timers_, 5);
    pack_str(timers_, routes_->targets()[lead.target].name);
    pack_uint(timers_, partition);
    pack_int(timers_, 1);
    const std::size_t body = pack_open(timers_, open_bin);
    append_single(timers_, name.text, key, data, 0, context >= 0);
    fill_in(timers_, body, timers_.size() - body);
    pack_array(timers_, context >= 0 ? 1 : 0);
    if (context >= 0) pack_int(timers_, context);
    if (!timer.name.empty()) timer.pack(timers_);
    ++timer_count_;
  }

  // ------------------------------------------------------------------ failures

  /// Why the event must not be processed any more: it has come too far, or too late.
  [[nodiscard]] std::optional<Blame> why_lost(const Unit& unit, const Incoming& in) const {
    if (limits_.max_hops != 0 && in.hops > limits_.max_hops) {
      return Blame{"too-many-hops",
                   "the event was emitted over " + std::to_string(limits_.max_hops) + " hops away from the outside (max-hops): does '" +
                       std::string(in.name) + "' go round in a circle? A delayed emit starts at 0 again",
                   ""};
    }
    if (part_->deadlines.empty() || in.context < 0) return std::nullopt;
    const auto deadline = part_->deadlines.find(in.context);
    if (deadline == part_->deadlines.end()) return std::nullopt;
    const std::int64_t late = now() - deadline->second;
    if (late <= 0) return std::nullopt;
    std::array<char, 400> text{};
    std::snprintf(text.data(), text.size(), "its deadline had passed %.3f s before '%s' could get it", static_cast<double>(late) / 1e6,
                  unit.node->name.c_str());
    return Blame{"deadline", text.data(), ""};
  }

  /// Whether an event that fails now is tried again, or waits for an operator: then later ones of its key wait behind it.
  [[nodiscard]] bool stays_held(const SlotSpec& slot, std::int64_t attempt, std::int64_t deaths) const {
    if (deaths > 0 ? deaths < limits_.named_deaths : attempt <= slot.retries) return true;
    return slot.on_fail == "stop";
  }

  void fail(const Unit& unit, const Declared& slot, const Incoming& in, const RetryItem* retry, const Blame& why, const Named* named,
            bool is_final) {
    const bool is_death = named != nullptr && named->death;
    const std::int64_t deaths = is_death ? (retry == nullptr ? 0 : retry->named_deaths) + 1 : 0;
    if (!is_final && stays_held(slot.spec, in.attempt, deaths)) lock(unit, slot, in);
    record_failure(unit, in, retry, why, false, is_death, is_final);
  }

  /// Later events of its key wait.
  void lock(const Unit& unit, const Declared& slot, const Incoming& in) {
    if (!in.key.exists || !slot.spec.ordered) return;
    part_->locks[unit.number].emplace(in.key.text);
    part_->lines[{unit.number, std::string(in.key.text)}].insert(in.id());
  }

  /// The event waits for the answer to what it has called.
  void suspend(const Unit& unit, const Declared& slot, const Incoming& in, const RetryItem* retry) {
    lock(unit, slot, in);
    record_failure(unit, in, retry, Blame{}, false, false, false, &*event_.called_);
  }

  void pack_call(const Incoming& in, const Called& called) {
    const Name& name = (*routes_)[called.name];
    const Key key = called.inherits ? in.key : called.has_key ? Key{called.key, true} : Key{};
    const bool stays = called.inherits || !called.has_key || name.is_foreign;
    const std::size_t partition =
        stays ? static_cast<std::size_t>(part_->number) : partition_of(key.text, static_cast<std::uint32_t>(partitions_));
    pack_array(failures_, 4);
    pack_str(failures_, name.text);
    pack_bin(failures_, called.digest);
    pack_int(failures_, called.timeout);
    pack_array(failures_, name.leads.size());
    for (const auto lead : name.leads) {
      pack_array(failures_, 4);
      pack_str(failures_, routes_->targets()[lead.target].name);
      pack_uint(failures_, partition);
      pack_int(failures_, 1);
      const std::size_t body = pack_open(failures_, open_bin);
      append_single(failures_, name.text, key, called.data, std::min(in.hops + 1, most_hops), true);
      fill_in(failures_, body, failures_.size() - body);
    }
  }

  void record_failure(const Unit& unit, const Incoming& in, const RetryItem* retry, const Blame& why, bool behind, bool death,
                      bool is_final, const Called* called = nullptr) {
    const std::size_t before = failures_.size();
    pack_array(failures_, called == nullptr ? 14 : 15);
    pack_str(failures_, unit.node->name);
    pack_str(failures_, in.name);
    pack_str(failures_, in.id());
    if (in.key.exists) {
      pack_str(failures_, in.key.text);
    } else {
      pack_nil(failures_);
    }
    pack_int(failures_, in.created);
    const std::size_t body = pack_open(failures_, open_bin);
    append_single(failures_, in.name, in.key, in.data, in.hops, false);
    fill_in(failures_, body, failures_.size() - body);
    pack_int(failures_, retry == nullptr ? -1 : retry->hold);
    pack_bool(failures_, behind);
    pack_int(failures_, in.context);
    pack_str(failures_, one_line(why.kind, 255));
    pack_str(failures_, one_line(why.text));
    pack_str(failures_, clean_text(why.trace));
    pack_bool(failures_, death);
    pack_bool(failures_, is_final);
    if (called != nullptr) pack_call(in, *called);
    ++failure_count_;
    size_ += failures_.size() - before;
  }

  // ------------------------------------------------------------------ results

  /// Sends what has been done since the last result. `ended`: the work of which nothing more comes.
  void hand_in(const std::int64_t* ended) {
    frame_.assign(4, '\0');
    pack_array(frame_, written_.empty() ? 13 : 16);
    pack_int(frame_, tag::result);
    pack_int(frame_, part_->number);
    pack_int(frame_, part_->epoch);
    pack_array(frame_, ended == nullptr ? 0 : 1);
    if (ended != nullptr) pack_int(frame_, *ended);
    pack_array(frame_, moved_.size());
    for (const auto& moved : moved_) {
      pack_array(frame_, 2);
      pack_int(frame_, moved.position);
      moved.before.pack_up_to(frame_, moved.end);
    }
    pack_array(frame_, retried_.size());
    for (const auto hold : retried_) pack_int(frame_, hold);
    outbox_->pack(frame_);
    const std::size_t states = pack_open(frame_, open_array);
    std::size_t tables = 0;
    for (auto& table : part_->tables) tables += table.pack_changes(frame_) ? 1 : 0;
    fill_in(frame_, states, tables);
    pack_array(frame_, timer_count_);
    frame_.append(timers_);
    pack_array(frame_, failure_count_);
    frame_.append(failures_);
    pack_array(frame_, reply_count_);
    frame_.append(replies_);
    pack_counts(processed_, [&](std::size_t i) -> const std::string& { return counted_[i]; });
    pack_counts(emit_counts_, [&](std::size_t i) -> const std::string& { return (*routes_)[static_cast<std::uint32_t>(i)].text; });
    if (!written_.empty()) {
      pack_array(frame_, 0);  // contexts and spans
      pack_array(frame_, 0);
      pack_array(frame_, written_.size());
      for (const auto& written : written_) written->pack(frame_);
    }
    close_frame(frame_);
    channel_.send(frame_);
    part_->shelf.clear();  // the engine knows of it: nothing runs now
    forget();
    if (frame_.capacity() > 2 * work_bytes) frame_ = Buffer();
  }

  void forget() {
    moved_.clear();
    retried_.clear();
    written_.clear();
    for (auto* buffer : {&timers_, &failures_, &replies_}) buffer->clear();
    timer_count_ = failure_count_ = reply_count_ = 0;
    size_ = chunk_start_ = 0;
  }

  template <class Text>
  void pack_counts(std::vector<std::int64_t>& counts, Text&& text) {
    pack_map(frame_, static_cast<std::size_t>(std::count_if(counts.begin(), counts.end(), [](std::int64_t n) { return n != 0; })));
    for (std::size_t i = 0; i < counts.size(); ++i) {
      if (counts[i] == 0) continue;
      pack_str(frame_, text(i));
      pack_int(frame_, counts[i]);
      counts[i] = 0;
    }
  }
};

}  // namespace grape::detail
