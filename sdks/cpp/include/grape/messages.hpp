/// The messages of docs/protocol.md, sections 2 and 3. What is read stays in its frame: texts and bodies are slices of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "msgpack.hpp"
#include "topology.hpp"

namespace grape::detail {

inline constexpr std::int64_t protocol_version = 1;
inline constexpr std::size_t max_frame = 96U << 20U;

namespace tag {
inline constexpr std::int64_t welcome = 1, assign = 2, revoke = 3, work = 4, values = 5, drain = 6, peers_changed = 7, leased = 9,
                              fetched = 10, levels_changed = 11;
inline constexpr std::int64_t hello = 32, refusal = 33, ask = 34, announce = 35, beat = 36, stuck = 37, result = 38, lease = 40,
                              fetch = 41, keep = 42;
}  // namespace tag

/// The fields of an array by position: those that were left out keep their default, those behind are passed over.
class Fields {
 public:
  explicit Fields(Reader& reader) : reader_(reader), left_(reader.array()) {}

  /// Whether another field is there; then the caller reads it.
  bool next() {
    if (left_ == 0) return false;
    --left_;
    return true;
  }

  void integer(std::int64_t& out) {
    if (next()) out = reader_.integer();
  }
  void boolean(bool& out) {
    if (next()) out = reader_.boolean();
  }
  void real(double& out) {
    if (next()) out = reader_.real();
  }
  void text(std::string_view& out) {
    if (next()) out = reader_.text();
  }
  void bytes(std::string_view& out) {
    if (next()) out = reader_.bytes();
  }
  void done() {
    while (next()) reader_.skip();
  }

 private:
  Reader& reader_;
  std::uint32_t left_;
};

inline std::vector<std::pair<std::string, std::string>> read_pairs(Reader& reader) {
  std::vector<std::pair<std::string, std::string>> out;
  for (std::uint32_t left = reader.array(); left > 0; --left) {
    Fields pair(reader);
    std::string_view first;
    std::string_view second;
    pair.text(first);
    pair.text(second);
    pair.done();
    out.emplace_back(first, second);
  }
  return out;
}

/// How much handlers log, by node.
inline std::vector<std::pair<std::string, std::string>> read_levels(Reader& reader) {
  std::vector<std::pair<std::string, std::string>> out;
  for (std::uint32_t left = reader.map(); left > 0; --left) {
    std::string node(reader.text());
    out.emplace_back(std::move(node), std::string(reader.text()));
  }
  return out;
}

/// Other apps of the server, with the events that they listen to.
inline Peers read_peers(Reader& reader) {
  Peers out;
  for (std::uint32_t left = reader.map(); left > 0; --left) {
    std::string app(reader.text());
    if (reader.nil()) {
      out[std::move(app)] = std::nullopt;
    } else {
      out[std::move(app)] = read_texts(reader);
    }
  }
  return out;
}

struct Welcome {
  std::int64_t version = 0;
  std::string_view pool;
  std::string_view worker;
  std::int64_t partitions = 0;
  Limits limits;
  std::vector<std::string> taken;
  std::vector<std::pair<std::string, std::string>> unchained;
  std::int64_t boot_offset = 0;
  double heartbeat_timeout = 30.0;
  std::optional<TopologySpec> topology;
  Peers peers;
  std::vector<std::pair<std::string, std::string>> namespaces;
  std::vector<std::pair<std::string, std::string>> levels;

  explicit Welcome(Reader& reader) {
    Fields fields(reader);
    fields.next();  // the tag
    reader.skip();
    fields.integer(version);
    fields.text(pool);
    fields.text(worker);
    fields.integer(partitions);
    if (fields.next()) limits = read_limits(reader);
    if (fields.next()) taken = read_texts(reader);
    if (fields.next()) unchained = read_pairs(reader);
    fields.integer(boot_offset);
    fields.real(heartbeat_timeout);
    if (fields.next()) reader.skip();  // concurrency: of async slots
    if (fields.next() && !reader.nil()) topology = read_topology(reader);
    if (fields.next()) peers = read_peers(reader);
    if (fields.next()) {
      for (std::uint32_t left = reader.map(); left > 0; --left) {
        std::string name(reader.text());
        namespaces.emplace_back(std::move(name), reader.text());
      }
    }
    if (fields.next()) levels = read_levels(reader);
    fields.done();
  }
};

/// The other apps of the server are these from now on.
struct PeersChanged {
  Peers peers;

  explicit PeersChanged(Reader& reader) {
    Fields fields(reader);
    fields.next();  // the tag
    reader.skip();
    if (fields.next()) peers = read_peers(reader);
    fields.done();
  }
};

/// Handlers log as much as this from now on.
struct LevelsChanged {
  std::vector<std::pair<std::string, std::string>> levels;

  explicit LevelsChanged(Reader& reader) {
    Fields fields(reader);
    fields.next();  // the tag
    reader.skip();
    if (fields.next()) levels = read_levels(reader);
    fields.done();
  }
};

/// So many events may be handed to a slot with a rate.
struct Leased {
  std::string_view event;
  std::string_view node;
  std::int64_t count = 0;

  explicit Leased(Reader& reader) {
    Fields fields(reader);
    fields.next();  // the tag
    reader.skip();
    fields.text(event);
    fields.text(node);
    fields.integer(count);
    fields.done();
  }
};

struct Assign {
  std::int64_t partition = 0;
  std::int64_t epoch = 0;
  std::vector<std::pair<std::string, std::string>> held;
  bool empty = false;
  bool chain_new = true;

  explicit Assign(Reader& reader) {
    Fields fields(reader);
    fields.next();
    reader.skip();
    fields.integer(partition);
    fields.integer(epoch);
    if (fields.next()) held = read_pairs(reader);
    fields.boolean(empty);
    fields.boolean(chain_new);
    fields.done();
  }
};

struct Revoke {
  std::int64_t partition = 0;
  std::int64_t epoch = 0;

  explicit Revoke(Reader& reader) {
    Fields fields(reader);
    fields.next();
    reader.skip();
    fields.integer(partition);
    fields.integer(epoch);
    fields.done();
  }
};

/// How far a batch is done: everything before `first`, and behind it what `behind` marks.
struct Progress {
  std::int64_t first = 0;
  std::string_view behind;

  void read(Reader& reader) {
    Fields fields(reader);
    fields.integer(first);
    fields.bytes(behind);
    fields.done();
  }

  [[nodiscard]] bool is_done(std::int64_t index) const noexcept {
    if (index <= first) return index < first;
    const auto at = static_cast<std::size_t>(index - first - 1);
    return at / 8 < behind.size() && ((static_cast<unsigned char>(behind[at / 8]) >> (at % 8)) & 1U) != 0;
  }

  /// The same, and everything before `end` is done too.
  void pack_up_to(Buffer& out, std::int64_t end) const {
    end = std::max(end, first);
    while (is_done(end)) ++end;
    const auto all = static_cast<std::int64_t>(behind.size()) * 8 + first + 1;
    Buffer bits;
    for (std::int64_t i = end + 1; i < all; ++i) {
      const auto at = static_cast<std::size_t>(i - end - 1);
      if (at % 8 == 0) bits.push_back('\0');
      if (is_done(i)) bits[at / 8] = static_cast<char>(static_cast<unsigned char>(bits[at / 8]) | 1U << (at % 8));
    }
    while (!bits.empty() && bits.back() == '\0') bits.pop_back();
    pack_array(out, 2);
    pack_int(out, end);
    pack_bin(out, bits);
  }
};

struct BatchItem {
  std::int64_t position = 0;
  std::string_view id_prefix;
  std::int64_t created = 0;
  std::int64_t events = 0;
  std::string_view body;
  Progress done;
  std::int64_t contexts = 0;
  bool calls = false;

  explicit BatchItem(Reader& reader) {
    Fields fields(reader);
    fields.integer(position);
    fields.text(id_prefix);
    fields.integer(created);
    fields.integer(events);
    fields.bytes(body);
    if (fields.next()) done.read(reader);
    fields.integer(contexts);
    fields.boolean(calls);
    fields.done();
  }
};

/// To a call that a handler has made.
struct Answer {
  std::string_view digest;
  std::string_view data;
  bool is_error = false;

  explicit Answer(Reader& reader) {
    Fields fields(reader);
    fields.bytes(digest);
    fields.bytes(data);
    fields.boolean(is_error);
    fields.done();
  }
};

struct RetryItem {
  std::int64_t hold = 0;
  std::string_view node;
  std::string_view id;
  std::int64_t attempt = 1;
  std::int64_t named_deaths = 0;
  std::int64_t created = 0;
  std::string_view body;
  bool rest = false;
  std::int64_t context = -1;
  std::vector<Answer> answers;

  explicit RetryItem(Reader& reader) {
    Fields fields(reader);
    fields.integer(hold);
    fields.text(node);
    fields.text(id);
    fields.integer(attempt);
    fields.integer(named_deaths);
    fields.integer(created);
    fields.bytes(body);
    fields.boolean(rest);
    fields.integer(context);
    if (fields.next()) {
      for (std::uint32_t left = reader.array(); left > 0; --left) answers.emplace_back(reader);
    }
    fields.done();
  }
};

struct Named {
  std::string_view id;
  std::string_view node;
  std::string_view kind;
  std::string_view text;
  bool death = false;
  std::string_view trace;

  explicit Named(Reader& reader) {
    Fields fields(reader);
    fields.text(id);
    fields.text(node);
    fields.text(kind);
    fields.text(text);
    fields.boolean(death);
    fields.text(trace);
    fields.done();
  }
};

struct Work {
  std::int64_t partition = 0;
  std::int64_t epoch = 0;
  std::int64_t seq = 0;
  std::vector<BatchItem> batches;
  std::vector<RetryItem> retries;
  bool careful = false;
  std::vector<Named> named;
  std::int64_t context_base = 0;
  std::unordered_map<std::int64_t, std::int64_t> deadlines;
  std::unordered_map<std::int64_t, std::string> traced;  ///< ids of traces

  explicit Work(Reader& reader) {
    Fields fields(reader);
    fields.next();
    reader.skip();
    fields.integer(partition);
    fields.integer(epoch);
    fields.integer(seq);
    if (fields.next()) {
      for (std::uint32_t left = reader.array(); left > 0; --left) batches.emplace_back(reader);
    }
    if (fields.next()) {
      for (std::uint32_t left = reader.array(); left > 0; --left) retries.emplace_back(reader);
    }
    fields.boolean(careful);
    if (fields.next()) {
      for (std::uint32_t left = reader.array(); left > 0; --left) named.emplace_back(reader);
    }
    fields.integer(context_base);
    if (fields.next()) {
      for (std::uint32_t left = reader.map(); left > 0; --left) {
        const std::int64_t context = reader.integer();
        deadlines[context] = reader.integer();
      }
    }
    if (fields.next()) {
      for (std::uint32_t left = reader.map(); left > 0; --left) {
        const std::int64_t context = reader.integer();
        traced[context] = std::string(reader.text().substr(0, 32));
      }
    }
    fields.done();
  }
};

/// Of any message.
inline std::int64_t tag_of(std::string_view message) {
  Reader reader(message);
  if (reader.array() == 0) throw ProtocolError("a message without a tag");
  return reader.integer();
}

/// A frame that is being written: room for its length, then the message.
inline Buffer open_frame() { return Buffer(4, '\0'); }

/// Puts the length before the message.
inline void close_frame(Buffer& frame) {
  const std::size_t size = frame.size() - 4;
  if (size > max_frame) throw ProtocolError("a frame of " + std::to_string(size) + " bytes is over the limit of 96 MiB");
  for (std::size_t i = 0; i < 4; ++i) frame[i] = static_cast<char>(size >> (8 * i));
}

template <class Nodes, class Slots>
Buffer hello_frame(std::int64_t pid, const Nodes& nodes, const Slots& slots) {
  Buffer frame = open_frame();
  pack_array(frame, 6);
  pack_int(frame, tag::hello);
  pack_int(frame, protocol_version);
  pack_int(frame, pid);
  pack_str(frame, "cpp");
  pack_topology(frame, nodes, slots);
  pack_array(frame, 9);
  for (const auto* capability : {"partition", "cache", "chain", "timers", "calls", "peers", "rates", "objects", "logs"}) pack_str(frame, capability);
  close_frame(frame);
  return frame;
}

inline Buffer refusal_frame(std::string_view kind, std::string_view text) {
  Buffer frame = open_frame();
  pack_array(frame, 3);
  pack_int(frame, tag::refusal);
  pack_str(frame, clean_text(kind, 255));
  pack_str(frame, clean_text(text));
  close_frame(frame);
  return frame;
}

/// `is_running`: a handler runs, or nobody knows.
inline Buffer beat_frame(bool is_running = true) {
  Buffer frame = open_frame();
  pack_array(frame, 2);
  pack_int(frame, tag::beat);
  pack_bool(frame, is_running);
  close_frame(frame);
  return frame;
}

inline Buffer announce_frame(std::int64_t partition, std::int64_t epoch, std::string_view id, std::string_view node) {
  Buffer frame = open_frame();
  pack_array(frame, 5);
  pack_int(frame, tag::announce);
  pack_int(frame, partition);
  pack_int(frame, epoch);
  pack_str(frame, id);
  pack_str(frame, node);
  close_frame(frame);
  return frame;
}

/// Asks for the turns of so many events of a slot with a rate.
inline Buffer lease_frame(std::string_view event, std::string_view node, std::int64_t count) {
  Buffer frame = open_frame();
  pack_array(frame, 4);
  pack_int(frame, tag::lease);
  pack_str(frame, event);
  pack_str(frame, node);
  pack_int(frame, count);
  close_frame(frame);
  return frame;
}

inline Buffer stuck_frame(std::int64_t partition, std::int64_t epoch, std::string_view id, std::string_view node, std::string_view text,
                          std::string_view trace) {
  Buffer frame = open_frame();
  pack_array(frame, 7);
  pack_int(frame, tag::stuck);
  pack_int(frame, partition);
  pack_int(frame, epoch);
  pack_str(frame, id);
  pack_str(frame, node);
  pack_str(frame, clean_text(text));
  pack_str(frame, clean_text(trace));
  close_frame(frame);
  return frame;
}

}  // namespace grape::detail
