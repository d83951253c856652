/// The body of a record batch (docs/protocol.md, section 4), read in place.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "msgpack.hpp"
#include "topology.hpp"

namespace grape::detail {

inline std::uint32_t load_u32(std::string_view bytes, std::size_t at) noexcept {
  std::uint32_t value = 0;
  for (std::size_t i = 4; i > 0; --i) value = value << 8U | static_cast<unsigned char>(bytes[at + i - 1]);
  return value;
}

inline void append_u32(Buffer& out, std::size_t value) {
  for (std::size_t i = 0; i < 4; ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}

/// A text that may be missing, as keys are.
struct Key {
  std::string_view text;
  bool exists = false;
};

/// The runs of a body, one after the other. The columns are used again for the next one: a work has many runs.
class RunReader {
 public:
  /// What follows is about this body.
  void start(std::string_view body) { body_ = body; }

  std::size_t count = 0;
  std::vector<std::string_view> names;
  std::string_view index;
  std::vector<Key> keys;
  std::vector<std::string_view> data;
  std::vector<std::string_view> only;
  bool has_only = false;
  std::unordered_map<std::int64_t, std::string_view> ids;

  /// Reads the next run, without its keys and data; false: there is none.
  bool next() {
    if (body_.empty()) return false;
    if (body_.size() < 16) throw ProtocolError("a run is cut off in its header");
    count = load_u32(body_, 0);
    const std::size_t meta = load_u32(body_, 4);
    const std::size_t key = load_u32(body_, 8);
    const std::size_t value = load_u32(body_, 12);
    if (meta + key + value > body_.size() - 16) throw ProtocolError("a run is longer than its batch");
    read_meta(body_.substr(16, meta));
    packed_keys_ = body_.substr(16 + meta, key);
    packed_data_ = body_.substr(16 + meta + key, value);
    body_.remove_prefix(16 + meta + key + value);
    return true;
  }

  /// Finds where each key and value stands.
  void read_columns() {
    keys.clear();
    data.clear();
    if (!packed_keys_.empty()) {
      Reader reader(packed_keys_);
      if (reader.array() != count) throw ProtocolError("a run with another number of keys");
      keys.reserve(count);
      for (std::size_t i = 0; i < count; ++i) {
        if (reader.nil()) {
          keys.emplace_back();
        } else {
          keys.push_back({reader.text(), true});
        }
      }
    }
    if (!packed_data_.empty()) {
      Reader reader(packed_data_);
      if (reader.array() != count) throw ProtocolError("a run with another number of values");
      data.reserve(count);
      for (std::size_t i = 0; i < count; ++i) data.push_back(reader.skip());
    }
  }

  [[nodiscard]] std::size_t name_at(std::size_t i) const noexcept { return index.empty() ? 0 : static_cast<unsigned char>(index[i]); }
  [[nodiscard]] Key key_at(std::size_t i) const noexcept { return keys.empty() ? Key{} : keys[i]; }
  [[nodiscard]] std::string_view data_at(std::size_t i) const noexcept { return data.empty() ? std::string_view{} : data[i]; }
  [[nodiscard]] std::int64_t hops_at(std::size_t i) const noexcept { return each_hops_.empty() ? hops_ : each_hops_[i]; }
  /// Index into the contexts of the batch, -1 for none.
  [[nodiscard]] std::int64_t context_at(std::size_t i) const noexcept { return contexts_.empty() ? -1 : contexts_[i]; }

 private:
  std::string_view body_;
  std::string_view packed_keys_;
  std::string_view packed_data_;
  std::int64_t hops_ = 0;
  std::vector<std::int64_t> each_hops_;
  std::vector<std::int64_t> contexts_;

  void read_meta(std::string_view meta) {
    names.clear();
    only.clear();
    ids.clear();
    each_hops_.clear();
    contexts_.clear();
    index = {};
    has_only = false;
    hops_ = 0;
    Reader reader(meta);
    read_map(reader, [&](std::string_view field) {
      if (field == "names") {
        read_each(reader, [&] { names.push_back(reader.text()); });
      } else if (field == "index") {
        if (!reader.nil()) index = reader.bytes();
      } else if (field == "hops") {
        if (reader.kind() == Kind::integer) {
          hops_ = reader.integer();
        } else {
          read_each(reader, [&] { each_hops_.push_back(reader.integer()); });
        }
      } else if (field == "only") {
        has_only = !reader.nil();
        if (has_only) read_each(reader, [&] { only.push_back(reader.text()); });
      } else if (field == "ids") {
        if (!reader.nil()) {
          for (std::uint32_t left = reader.map(); left > 0; --left) {
            const std::int64_t at = reader.integer();
            ids[at] = reader.text();
          }
        }
      } else if (field == "contexts") {
        if (!reader.nil()) read_each(reader, [&] { contexts_.push_back(reader.integer()); });
      } else {
        return false;
      }
      return true;
    });
    const auto fits = [&](std::size_t size) { return size == 0 || size == count; };
    const auto within = [&](char at) { return static_cast<unsigned char>(at) < names.size(); };
    if (names.empty() || !fits(index.size()) || !fits(each_hops_.size()) || !fits(contexts_.size()) ||
        !std::all_of(index.begin(), index.end(), within)) {
      throw ProtocolError("a run whose columns do not fit together");
    }
  }

  template <class Item>
  static void read_each(Reader& reader, Item&& item) {
    for (std::uint32_t left = reader.array(); left > 0; --left) item();
  }
};

/// The body of a single event. `context`: whether it has the only one of its table.
inline void append_single(Buffer& out, std::string_view name, Key key, std::string_view data, std::int64_t hops, bool context) {
  const std::size_t start = out.size();
  out.append(16, '\0');
  pack_map(out, 1U + (hops != 0 ? 1U : 0U) + (context ? 1U : 0U));
  pack_str(out, "names");
  pack_array(out, 1);
  pack_str(out, name);
  if (hops != 0) {
    pack_str(out, "hops");
    pack_int(out, hops);
  }
  if (context) {
    pack_str(out, "contexts");
    pack_array(out, 1);
    pack_int(out, 0);
  }
  const std::size_t meta = out.size() - start - 16;
  if (key.exists) {
    pack_array(out, 1);
    pack_str(out, key.text);
  }
  const std::size_t keys = out.size() - start - 16 - meta;
  const bool has_data = !data.empty() && data != std::string_view("\xC0", 1);
  if (has_data) {
    pack_array(out, 1);
    out.append(data);
  }
  const std::array<std::size_t, 4> sizes{1, meta, keys, has_data ? data.size() + 1 : 0};
  for (std::size_t i = 0; i < 4; ++i) {
    for (std::size_t b = 0; b < 4; ++b) out[start + 4 * i + b] = static_cast<char>(sizes[i] >> (8 * b));
  }
}

}  // namespace grape::detail
