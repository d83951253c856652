/// Runs works: events in, one result out. Knows the protocol's rules; the socket is behind `Channel`.
///
/// The way of a work: retries first, then each batch event by event, at every node that listens. After each root event a work
/// may end early, and the engine sends what is left once more. What an event does is collected in `Event`, and taken over here
/// when its handler has returned; so a failed one has nothing to be undone.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <deque>
#include <exception>
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
#include "messages.hpp"
#include "outbox.hpp"
#include "routes.hpp"
#include "slot.hpp"
#include "state.hpp"
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

/// A slot that this program declares.
struct Declared {
  SlotSpec spec;
  Handler handler;
  std::size_t number = 0;
};

class Runtime {
 public:
  Runtime(Channel& channel, const std::deque<NodeSpec>& nodes, const std::deque<Declared>& slots) : channel_(channel), slots_(slots) {
    for (const auto& node : nodes) units_.push_back({&node, units_.size()});
    for (const auto& slot : slots) counted_.push_back(slot.spec.event + ">" + slot.spec.node);
    processed_.resize(slots.size());
  }

  void welcome(const Welcome& welcome) {
    limits_ = welcome.limits;
    partitions_ = static_cast<std::size_t>(std::clamp<std::int64_t>(welcome.partitions, 1, 1 << 16));
    boot_offset_ = welcome.boot_offset;
    TopologySpec topology = welcome.topology ? *welcome.topology : own_topology(welcome.pool);
    routes_ = std::make_unique<Routes>(topology, welcome.pool, welcome.taken);
    outbox_ = std::make_unique<Outbox>(*routes_, limits_, partitions_);
    emit_counts_.assign(routes_->size(), 0);
    parts_.resize(partitions_);
    event_.routes_ = routes_.get();
    event_.limits_ = &limits_;
    event_.watch_ = &watch();
  }

  void assign(const Assign& assign) {
    if (assign.partition < 0 || static_cast<std::size_t>(assign.partition) >= parts_.size())
      throw ProtocolError("an assigned partition out of range");
    auto part = std::make_unique<Part>();
    part->number = assign.partition;
    part->epoch = assign.epoch;
    part->locks.resize(units_.size());
    for (const auto& unit : units_) part->tables.emplace_back(*unit.node, assign.empty);
    for (const auto& [node, key] : assign.held) {
      if (const Unit* unit = unit_of(node)) part->locks[unit->number].insert(key);
    }
    parts_[static_cast<std::size_t>(assign.partition)] = std::move(part);
  }

  void revoke(const Revoke& revoke) {
    if (part_of(revoke.partition) != nullptr) parts_[static_cast<std::size_t>(revoke.partition)].reset();
  }

  /// Runs a work and sends its results; nothing comes back for a partition that is no longer this worker's.
  void work(const Work& work) {
    Part* part = part_of(work.partition);
    if (part == nullptr || part->epoch != work.epoch) return;
    part_ = part;
    if (work.context_base == 0) part->deadlines.clear();  // contexts are numbered anew when no work is out
    part->deadlines.insert(work.deadlines.begin(), work.deadlines.end());
    bound_cache();
    careful_ = work.careful;
    named_ = &work.named;
    stuck_.clear();
    start_clock();
    std::int64_t context = work.context_base;
    for (const auto& item : work.retries) {
      run_retry(item, context++);
      if (careful_ || is_long()) {
        hand_in(nullptr);
        start_clock();
      }
    }
    for (const auto& item : work.batches) {
      if (!run_batch(item, context)) break;
      context += item.contexts;
    }
    hand_in(&work.seq);
  }

 private:
  static constexpr std::chrono::milliseconds work_time{100};
  static constexpr std::size_t work_bytes = 16U << 20U;
  static constexpr std::size_t ask_bytes = 16U << 20U;
  static constexpr std::size_t ask_events = 4'096;
  static constexpr std::int64_t most_hops = std::int64_t{1} << 31;

  using Line = std::pair<std::size_t, std::string>;

  struct Unit {
    const NodeSpec* node = nullptr;
    std::size_t number = 0;
  };

  /// A partition of this worker. `lines`: ids of the events that were handed in as failed or behind, by the (node, key) whose
  /// line they stand in, until they have been retried: when the engine sends the first one back it may not know all of them yet.
  struct Part {
    std::int64_t number = 0;
    std::int64_t epoch = 0;
    std::vector<Table> tables;
    std::vector<std::unordered_set<std::string>> locks;
    std::map<Line, std::set<std::string>> lines;
    std::unordered_map<std::int64_t, std::int64_t> deadlines;
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
  std::vector<Unit> units_;
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
    for (const auto& unit : units_) out.nodes.push_back({unit.node->name, std::string(pool), {}});
    for (const auto& slot : slots_) out.slots.push_back(slot.spec);
    return out;
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
    auto& locks = part_->locks[unit->number];
    std::optional<Line> line;
    if (key.exists && slot->spec.ordered) {
      line.emplace(unit->number, key.text);
      if (stuck_.count(*line) != 0) return;
      locks.erase(line->second);
    }
    listening_.clear();
    listening_.push_back({unit, {slot}});
    ask_for(0, 1, nullptr, 0);
    Incoming in;
    in.name = slot->spec.event;
    in.key = key;
    in.data = run_.data_at(0);
    in.hops = run_.hops_at(0);
    in.context = item.context >= 0 ? context : -1;
    in.created = item.created;
    in.attempt = item.attempt;
    in.id_prefix = item.id;
    root_size_ = 0;
    const bool has_failed = !run_at(*unit, *slot, in, &item);
    if (!has_failed) retried_.push_back(item.hold);
    if (!line) return;
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
      root_size_ = 0;
      const std::size_t name = run_.name_at(i);
      in.name = run_.names[name];
      for (const auto& listening : listening_) {
        if (const Declared* slot = listening.slots[name]) run_at(*listening.unit, *slot, in, nullptr);
      }
      note_done(item, index + 1);
      if (careful_) {
        hand_in(nullptr);
      } else if (is_long()) {
        return false;
      }
    }
    return true;
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
      if (missing.empty()) continue;
      std::sort(missing.begin(), missing.end());  // the store finds neighbours faster
      missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
      ask(table, missing);
    }
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
    if (careful_) {
      const std::string id = in.id();
      for (const auto& named : *named_) {
        if (named.id == id && named.node == unit.node->name) {
          fail(unit, slot, in, retry, {std::string(named.kind), std::string(named.text), std::string(named.trace)}, &named, false);
          return false;
        }
      }
    }
    const auto& locks = part_->locks[unit.number];
    if (!locks.empty() && in.key.exists && slot.spec.ordered && locks.count(std::string(in.key.text)) != 0) {
      part_->lines[{unit.number, std::string(in.key.text)}].insert(in.id());
      record_failure(unit, in, retry, Blame{}, true, false, false);
      return false;
    }
    if (careful_) channel_.send(announce_frame(part_->number, part_->epoch, in.id(), unit.node->name));
    return execute(unit, slot, in, retry);
  }

  bool execute(const Unit& unit, const Declared& slot, const Incoming& in, const RetryItem* retry) {
    Table& table = part_->tables[unit.number];
    const std::int64_t time = table.has_ttl() ? now() : 0;
    event_.begin(in, *unit.node, &table, time);
    try {
      watch().enter(slot.spec, in, part_->number, part_->epoch);
      slot.handler(event_);
      end_child(nullptr);
      watch().leave();
      check_effects(in, table, time);
    } catch (...) {
      const Blame blamed = blame();
      end_child(&blamed.text);
      watch().leave();
      event_.end();
      fail(unit, slot, in, retry, blamed, nullptr, false);
      return false;
    }
    take_effects(in, table, time);
    event_.end();
    ++processed_[slot.number];
    return true;
  }

  /// What can still be refused of what the event did. Throws what it fails of.
  void check_effects(const Incoming& in, Table& table, std::int64_t time) {
    std::size_t size = event_.texts_.size();
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

  void take_effects(const Incoming& in, Table& table, std::int64_t time) {
    if (!event_.stored_.empty()) size_ = static_cast<std::size_t>(static_cast<std::ptrdiff_t>(size_) + table.store(in.key.text, time));
    const std::string_view texts = event_.texts_;
    const auto own = static_cast<std::size_t>(part_->number);
    for (const auto& emitted : event_.emitted_) {
      const Name& name = (*routes_)[emitted.name];
      ++emit_counts_[emitted.name];
      if (name.leads.empty()) continue;
      Key key = in.key;
      if (!emitted.inherits) key = emitted.is_keyless ? Key{} : Key{texts.substr(emitted.key, emitted.key_size), true};
      const bool stays = emitted.inherits || emitted.is_keyless || name.is_output;
      const std::size_t partition = stays ? own : partition_of(key.text, static_cast<std::uint32_t>(partitions_));
      const std::string_view data = texts.substr(emitted.data, emitted.size);
      size_ += name.leads.size() * (emitted.size + key.text.size() + 16);
      for (const auto lead : name.leads) {
        if (emitted.delay >= 0) {
          add_timer(emitted.delay, lead, partition, name, key, data, in.context);
        } else {
          outbox_->append(lead, partition, emitted.name, key, data, std::min(in.hops + 1, most_hops), in.context);
        }
      }
    }
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

  void add_timer(std::int64_t delay, Lead lead, std::size_t partition, const Name& name, Key key, std::string_view data,
                 std::int64_t context) {
    pack_array(timers_, 2);
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
    if (in.key.exists && slot.spec.ordered && !is_final && stays_held(slot.spec, in.attempt, deaths)) {
      part_->locks[unit.number].emplace(in.key.text);
      part_->lines[{unit.number, std::string(in.key.text)}].insert(in.id());
    }
    record_failure(unit, in, retry, why, false, is_death, is_final);
  }

  void record_failure(const Unit& unit, const Incoming& in, const RetryItem* retry, const Blame& why, bool behind, bool death,
                      bool is_final) {
    const std::size_t before = failures_.size();
    pack_array(failures_, 14);
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
    ++failure_count_;
    size_ += failures_.size() - before;
  }

  // ------------------------------------------------------------------ results

  /// Sends what has been done since the last result. `ended`: the work of which nothing more comes.
  void hand_in(const std::int64_t* ended) {
    frame_.assign(4, '\0');
    pack_array(frame_, 13);
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
    close_frame(frame_);
    channel_.send(frame_);
    moved_.clear();
    retried_.clear();
    for (auto* buffer : {&timers_, &failures_, &replies_}) buffer->clear();
    timer_count_ = failure_count_ = reply_count_ = 0;
    size_ = 0;
    if (frame_.capacity() > 2 * work_bytes) frame_ = Buffer();
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
