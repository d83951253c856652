/// Keyed state: the records of one node in one partition, cached as they are stored.
///
/// A record is a msgpack map {state name: value}, with expiry times under the empty name (docs/protocol.md, section 10). It is
/// kept encoded: a handler reads one value out of it, and the result of the work sends it as it stands.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "msgpack.hpp"
#include "topology.hpp"

namespace grape::detail {

/// `record` empty: none is stored. `due`: when all of it has expired, 0: never. `is_scheduled`: the engine will look then.
struct Entry {
  std::string key;
  std::string record;
  std::int64_t due = 0;
  std::uint32_t hash = 0;
  bool is_dirty = false;
  bool is_scheduled = false;
};

/// What an event does to one state: `packed` empty deletes it.
struct Change {
  std::size_t state = 0;
  std::string_view packed;
};

class Table {
 public:
  Table(const NodeSpec& node, bool is_complete) : is_complete(is_complete), node_(&node) {
    for (const auto& state : node.states) has_ttl_ |= state.ttl.has_value();
    if (node.states.size() == 1) {
      head_.push_back('\x81');
      pack_str(head_, node.states[0].name);
    }
    index_.resize(64);
  }

  bool is_complete;  ///< what is not here is not stored

  [[nodiscard]] const NodeSpec& node() const noexcept { return *node_; }
  [[nodiscard]] bool has_ttl() const noexcept { return has_ttl_; }

  [[nodiscard]] Entry* find(std::string_view key) noexcept {
    const std::uint32_t hash = hash_of(key);
    for (std::size_t i = hash;; ++i) {
      const Cell& cell = index_[i & (index_.size() - 1)];
      if (cell.at == 0) return nullptr;
      if (cell.hash == hash && entries_[cell.at - 1].key == key) return &entries_[cell.at - 1];
    }
  }

  /// The entry of a key, made if it is not there. Pointers to others are no longer valid.
  Entry& obtain(std::string_view key) {
    if (Entry* entry = find(key)) return *entry;
    if (2 * (entries_.size() + 1) > index_.size()) index(2 * index_.size());
    Entry& entry = entries_.emplace_back();
    entry.key = key;
    entry.hash = hash_of(key);
    enter(entry.hash, entries_.size());
    size_ += entry_size + key.size();
    return entry;
  }

  /// Takes what is stored.
  void fill(std::string_view key, std::string_view record) {
    Entry& entry = obtain(key);
    size_ += record.size();
    size_ -= entry.record.size();
    entry.record = record;
    try {
      entry.due = all_due(record);
    } catch (const Mismatch&) {
      entry.due = 0;  // no record: whoever reads it fails, not the worker
    }
    entry.is_scheduled = entry.due != 0;
  }

  /// The value of a state, empty if it is not set or has expired.
  [[nodiscard]] std::string_view read(const Entry& entry, std::size_t state, std::int64_t now) const {
    const std::string_view record = entry.record;
    if (record.empty()) return {};
    if (is_plain(record)) return record.substr(head_.size());
    const std::string& name = node_->states[state].name;
    std::string_view found;
    std::int64_t due = 0;
    Reader reader(record);
    for (std::uint32_t left = reader.map(); left > 0; --left) {
      const std::string_view field = reader.text();
      if (field.empty()) {
        for (std::uint32_t times = reader.map(); times > 0; --times) {
          const bool is_it = reader.text() == name;
          const std::int64_t time = reader.integer();
          if (is_it) due = time;
        }
      } else if (field == name) {
        found = reader.skip();
      } else {
        reader.skip();
      }
    }
    return due != 0 && due <= now ? std::string_view{} : found;
  }

  /// Works out the record that `changes` make of `entry` (null: none yet), for `store`; returns its size.
  std::size_t prepare(const Entry* entry, const std::vector<Change>& changes, std::int64_t now) {
    const std::string_view old = entry == nullptr ? std::string_view{} : std::string_view(entry->record);
    new_due_ = 0;
    new_record_.clear();
    if (!head_.empty() && !has_ttl_ && (old.empty() || is_plain(old))) {
      if (!changes.back().packed.empty()) new_record_.append(head_).append(changes.back().packed);
      return new_record_.size();
    }
    merge(old, changes, now);
    return new_record_.size();
  }

  /// Makes what was prepared the record of `key`; returns how much the result of the work has grown by it.
  std::ptrdiff_t store(std::string_view key, std::int64_t now) {
    Entry& entry = obtain(key);
    if (entry.record == new_record_ && !has_ttl_) return 0;
    const std::ptrdiff_t before = entry.is_dirty ? static_cast<std::ptrdiff_t>(entry.record.size() + key.size()) : 0;
    size_ += new_record_.size();
    size_ -= entry.record.size();
    entry.record = new_record_;
    // The engine looks at a record when it was told to, and not again if it found it to have no end then.
    if (entry.due <= now) entry.is_scheduled = false;
    entry.due = new_due_;
    if (!entry.is_dirty) {
      entry.is_dirty = true;
      dirty_.push_back(static_cast<std::uint32_t>(&entry - entries_.data()));
    }
    return static_cast<std::ptrdiff_t>(entry.record.size() + key.size()) - before;
  }

  /// Appends a `StateChanges` with everything that has changed since the last time; false: nothing has.
  bool pack_changes(Buffer& out) {
    if (dirty_.empty()) return false;
    pack_array(out, 4);
    pack_str(out, node_->name);
    pack_array(out, dirty_.size());
    for (const auto at : dirty_) pack_bin(out, entries_[at].key);
    pack_array(out, dirty_.size());
    for (const auto at : dirty_) {
      if (entries_[at].record.empty()) {
        pack_nil(out);
      } else {
        pack_bin(out, entries_[at].record);
      }
    }
    if (has_ttl_) {
      pack_array(out, dirty_.size());
    } else {
      pack_nil(out);
    }
    for (const auto at : dirty_) {
      Entry& entry = entries_[at];
      entry.is_dirty = false;
      if (!has_ttl_) continue;
      pack_int(out, entry.is_scheduled ? 0 : entry.due);
      entry.is_scheduled = entry.due != 0;
    }
    dirty_.clear();
    return true;
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  /// Forgets the older half. Only when nothing has changed that is not handed in.
  void evict() {
    if (!dirty_.empty() || entries_.empty()) return;
    is_complete = false;
    entries_.erase(entries_.begin(), entries_.begin() + static_cast<std::ptrdiff_t>((entries_.size() + 1) / 2));
    size_ = 0;
    for (const auto& entry : entries_) size_ += entry_size + entry.key.size() + entry.record.size();
    std::size_t cells = 64;
    while (cells < 4 * entries_.size()) cells *= 2;
    index(cells);
  }

 private:
  struct Cell {
    std::uint32_t hash = 0;
    std::uint32_t at = 0;  ///< number of the entry, from 1; 0: free
  };
  struct Due {
    std::string_view state;
    std::int64_t time = 0;
  };
  static constexpr std::size_t entry_size = sizeof(Entry) + 4 * sizeof(Cell);

  const NodeSpec* node_;
  bool has_ttl_ = false;
  Buffer head_;  ///< what every record of a node with one state begins with
  std::vector<Entry> entries_;
  std::vector<Cell> index_;
  std::vector<std::uint32_t> dirty_;
  std::size_t size_ = 0;
  Buffer new_record_;
  std::int64_t new_due_ = 0;
  Buffer fields_;
  std::vector<Due> dues_;
  std::vector<Due> new_dues_;
  std::vector<bool> applied_;

  static std::uint32_t hash_of(std::string_view key) noexcept { return static_cast<std::uint32_t>(std::hash<std::string_view>{}(key)); }

  [[nodiscard]] bool is_plain(std::string_view record) const {
    return !head_.empty() && record.size() > head_.size() && record.compare(0, head_.size(), head_) == 0;
  }

  void enter(std::uint32_t hash, std::size_t number) {
    for (std::size_t i = hash;; ++i) {
      Cell& cell = index_[i & (index_.size() - 1)];
      if (cell.at == 0) {
        cell = {hash, static_cast<std::uint32_t>(number)};
        return;
      }
    }
  }

  void index(std::size_t cells) {
    index_.assign(cells, Cell{});
    for (std::size_t i = 0; i < entries_.size(); ++i) enter(entries_[i].hash, i + 1);
  }

  static void read_dues(Reader& reader, std::vector<Due>& dues) {
    for (std::uint32_t left = reader.map(); left > 0; --left) {
      Due& due = dues.emplace_back();
      due.state = reader.text();
      due.time = reader.integer();
    }
  }

  /// When everything in a record has expired; 0: never.
  std::int64_t all_due(std::string_view record) {
    if (record.empty() || is_plain(record)) return 0;
    dues_.clear();
    std::size_t fields = 0;
    Reader reader(record);
    for (std::uint32_t left = reader.map(); left > 0; --left) {
      if (reader.text().empty()) {
        read_dues(reader, dues_);
      } else {
        reader.skip();
        ++fields;
      }
    }
    return fields == dues_.size() ? latest(dues_) : 0;
  }

  static std::int64_t latest(const std::vector<Due>& dues) {
    std::int64_t last = 0;
    for (const auto& due : dues) last = std::max(last, due.time);
    return last;
  }

  void merge(std::string_view old, const std::vector<Change>& changes, std::int64_t now) {
    fields_.clear();
    dues_.clear();
    new_dues_.clear();
    applied_.assign(changes.size(), false);
    std::size_t count = 0;
    const auto put = [&](std::string_view name, std::string_view value, std::int64_t due) {
      pack_str(fields_, name);
      fields_.append(value);
      ++count;
      if (due != 0) new_dues_.push_back({name, due});
    };
    const auto apply = [&](std::size_t i) {
      applied_[i] = true;
      const StateSpec& state = node_->states[changes[i].state];
      if (!changes[i].packed.empty()) put(state.name, changes[i].packed, state.ttl ? due_after(*state.ttl, now) : 0);
    };
    if (!old.empty()) {
      for_each_field(
          old, [&](std::string_view, Reader& reader) { read_dues(reader, dues_); }, true);
      for_each_field(
          old,
          [&](std::string_view name, Reader& reader) {
            const std::string_view value = reader.skip();
            const auto change =
                std::find_if(changes.begin(), changes.end(), [&](const Change& c) { return node_->states[c.state].name == name; });
            if (change != changes.end()) return apply(static_cast<std::size_t>(change - changes.begin()));
            const auto due = std::find_if(dues_.begin(), dues_.end(), [&](const Due& d) { return d.state == name; });
            if (due == dues_.end()) {
              put(name, value, 0);
            } else if (due->time > now) {
              put(name, value, due->time);
            }
          },
          false);
    }
    for (std::size_t i = 0; i < changes.size(); ++i) {
      if (!applied_[i]) apply(i);
    }
    if (count == 0) return;
    pack_map(new_record_, count + (new_dues_.empty() ? 0 : 1));
    new_record_.append(fields_);
    if (new_dues_.empty()) return;
    pack_str(new_record_, "");
    pack_map(new_record_, new_dues_.size());
    for (const auto& due : new_dues_) {
      pack_str(new_record_, due.state);
      pack_int(new_record_, due.time);
    }
    if (new_dues_.size() == count) new_due_ = latest(new_dues_);
  }

  static std::int64_t due_after(double ttl, std::int64_t now) {
    constexpr double most = 4e18;  // below 2^62: 146,000 years from now on
    return now + static_cast<std::int64_t>(std::round(std::min(ttl * 1e6, most - static_cast<double>(now))));
  }

  /// Every field of a record, or (`times`) the one with the expiry times.
  template <class Field>
  static void for_each_field(std::string_view record, Field&& field, bool times) {
    Reader reader(record);
    for (std::uint32_t left = reader.map(); left > 0; --left) {
      const std::string_view name = reader.text();
      if (name.empty() == times) {
        field(name, reader);
      } else {
        reader.skip();
      }
    }
  }
};

}  // namespace grape::detail
