/// What an app consists of, as it is told to the engine and by it. Names as in docs/protocol.md, section 8.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "msgpack.hpp"

namespace grape::detail {

/// Other apps of the server -> the events that they listen to; nothing: that is not known.
using Peers = std::map<std::string, std::optional<std::vector<std::string>>>;

struct StateSpec {
  std::string name;
  std::optional<double> ttl;
};

struct NodeSpec {
  std::string name;
  std::string pool = "main";
  std::vector<StateSpec> states;
  bool is_async = false;  ///< of nodes in other languages
};

struct SlotSpec {
  std::string event;
  std::string node;
  std::vector<std::string> emits;
  std::int64_t retries = 3;
  double backoff = 1.0;
  double backoff_max = 60.0;
  double timeout = 60.0;
  std::string on_fail = "dead";
  bool ordered = true;
  bool chain = true;
  std::int64_t concurrency = 100;
  std::int64_t batch = 1;
  bool eager = false;
  double rate = 0.0;  ///< events a second over all workers; 0: any number
  std::int64_t burst = 1;
  std::string where;
};

struct TopologySpec {
  std::string name;
  std::vector<NodeSpec> nodes;
  std::vector<SlotSpec> slots;
  std::vector<std::string> outputs;
};

struct Limits {
  std::size_t max_event = 8U << 20U;
  std::size_t batch_target = 128U << 10U;
  std::size_t batch_max = 512U << 10U;
  std::size_t max_result = 64U << 20U;
  std::int64_t max_hops = 10'000;
  std::size_t cache_bytes = 64U << 20U;
  std::int64_t named_deaths = 3;
};

/// Calls `field(name)` for every entry of a map; what it does not take (false) is passed over.
template <class Field>
void read_map(Reader& reader, Field&& field) {
  for (std::uint32_t left = reader.map(); left > 0; --left) {
    const std::string_view name = reader.text();
    if (!field(name)) reader.skip();
  }
}

inline std::vector<std::string> read_texts(Reader& reader) {
  std::vector<std::string> out;
  for (std::uint32_t left = reader.array(); left > 0; --left) out.emplace_back(reader.text());
  return out;
}

/// Only what a worker acts on: where names lead, and what chains. The options of its own slots it knows.
inline TopologySpec read_topology(Reader& reader) {
  TopologySpec out;
  const auto node = [&] {
    NodeSpec& spec = out.nodes.emplace_back();
    read_map(reader, [&](std::string_view name) {
      if (name == "name") return spec.name = reader.text(), true;
      if (name == "pool") return spec.pool = reader.text(), true;
      if (name == "is_async") return spec.is_async = reader.boolean(), true;
      return false;
    });
  };
  const auto slot = [&] {
    SlotSpec& spec = out.slots.emplace_back();
    read_map(reader, [&](std::string_view name) {
      if (name == "event") return spec.event = reader.text(), true;
      if (name == "node") return spec.node = reader.text(), true;
      if (name == "emits") return spec.emits = read_texts(reader), true;
      if (name == "chain") return spec.chain = reader.boolean(), true;
      if (name == "rate") return spec.rate = reader.real(), true;
      return false;
    });
  };
  read_map(reader, [&](std::string_view name) {
    if (name == "name") {
      out.name = reader.text();
    } else if (name == "nodes") {
      for (std::uint32_t left = reader.array(); left > 0; --left) node();
    } else if (name == "slots") {
      for (std::uint32_t left = reader.array(); left > 0; --left) slot();
    } else if (name == "outputs") {
      out.outputs = read_texts(reader);
    } else {
      return false;
    }
    return true;
  });
  return out;
}

inline Limits read_limits(Reader& reader) {
  Limits out;
  read_map(reader, [&](std::string_view name) {
    if (name == "max_event") return out.max_event = reader.whole(), true;
    if (name == "batch_target") return out.batch_target = reader.whole(), true;
    if (name == "batch_max") return out.batch_max = reader.whole(), true;
    if (name == "max_result") return out.max_result = reader.whole(), true;
    if (name == "max_hops") return out.max_hops = reader.integer(), true;
    if (name == "cache_bytes") return out.cache_bytes = reader.whole(), true;
    if (name == "named_deaths") return out.named_deaths = reader.integer(), true;
    return false;
  });
  return out;
}

inline void pack_texts(Buffer& out, const std::vector<std::string>& texts) {
  pack_array(out, texts.size());
  for (const auto& text : texts) pack_str(out, text);
}

/// The part of one pool (`slots` as they are declared): no name, outputs and pools, which are the whole app's.
template <class Nodes, class Slots>
void pack_topology(Buffer& out, const Nodes& nodes, const Slots& slots) {
  pack_map(out, 5);
  pack_str(out, "name");
  pack_str(out, "");
  pack_str(out, "nodes");
  pack_array(out, nodes.size());
  for (const auto& node : nodes) {
    pack_map(out, 2);
    pack_str(out, "name");
    pack_str(out, node.name);
    pack_str(out, "states");
    pack_array(out, node.states.size());
    for (const auto& state : node.states) {
      pack_map(out, state.ttl ? 2 : 1);
      pack_str(out, "name");
      pack_str(out, state.name);
      if (state.ttl) {
        pack_str(out, "ttl");
        pack_double(out, *state.ttl);
      }
    }
  }
  pack_str(out, "slots");
  pack_array(out, slots.size());
  for (const auto& [slot, handler, number] : slots) {
    pack_map(out, 16);
    pack_str(out, "event");
    pack_str(out, slot.event);
    pack_str(out, "node");
    pack_str(out, slot.node);
    pack_str(out, "emits");
    pack_texts(out, slot.emits);
    pack_str(out, "retries");
    pack_int(out, slot.retries);
    pack_str(out, "backoff");
    pack_double(out, slot.backoff);
    pack_str(out, "backoff_max");
    pack_double(out, slot.backoff_max);
    pack_str(out, "timeout");
    pack_double(out, slot.timeout);
    pack_str(out, "on_fail");
    pack_str(out, slot.on_fail);
    pack_str(out, "ordered");
    pack_bool(out, slot.ordered);
    pack_str(out, "chain");
    pack_bool(out, slot.chain);
    pack_str(out, "concurrency");
    pack_int(out, slot.concurrency);
    pack_str(out, "batch");
    pack_int(out, slot.batch);
    pack_str(out, "eager");
    pack_bool(out, slot.eager);
    pack_str(out, "rate");
    pack_double(out, slot.rate);
    pack_str(out, "burst");
    pack_int(out, slot.burst);
    pack_str(out, "where");
    pack_str(out, slot.where);
  }
  pack_str(out, "outputs");
  pack_array(out, 0);
  pack_str(out, "pools");
  pack_array(out, 0);
}

}  // namespace grape::detail
