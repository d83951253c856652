/// Where the names of events lead: decided once, from the topology of the whole app.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text.hpp"
#include "topology.hpp"

namespace grape::detail {

/// A log that takes a name. Only names of one group (the same listeners) may share a run.
struct Lead {
  std::uint32_t target = 0;
  std::uint32_t group = 0;
};

struct Name {
  std::string text;
  bool is_output = false;
  std::vector<Lead> leads;             ///< none: an output that nobody takes
  std::vector<std::string> listeners;  ///< nodes of this worker's pool, in order of declaration
};

/// `is_mixed`: some node listens to several groups, so that all runs have to keep the order of the emits.
struct Target {
  std::string name;
  bool is_output = false;
  bool is_mixed = false;
};

class Routes {
 public:
  Routes(const TopologySpec& topology, std::string_view pool, const std::vector<std::string>& taken) : app_(topology.name) {
    std::map<std::string, std::string> pool_of;
    for (const auto& node : topology.nodes) pool_of[node.name] = node.pool;
    std::map<std::pair<std::string, std::vector<std::string>>, std::uint32_t> groups;
    std::map<std::string, std::map<std::string, std::set<std::uint32_t>>> heard;  // pool -> node -> groups
    for (const auto& slot : topology.slots) {
      if (find(slot.event) != nullptr) continue;
      Name& name = add(slot.event);
      std::vector<std::pair<std::string, std::vector<std::string>>> pools;
      for (const auto& other : topology.slots) {
        if (other.event != slot.event) continue;
        const std::string& where = pool_of[other.node];
        auto found = std::find_if(pools.begin(), pools.end(), [&](const auto& p) { return p.first == where; });
        if (found == pools.end()) found = pools.insert(pools.end(), {where, {}});
        found->second.push_back(other.node);
      }
      for (auto& [where, nodes] : pools) {
        const auto group = groups.try_emplace({where, nodes}, static_cast<std::uint32_t>(groups.size())).first->second;
        name.leads.push_back({target(where, false), group});
        for (const auto& node : nodes) heard[where][node].insert(group);
        if (where == pool) name.listeners = std::move(nodes);
      }
    }
    for (auto& target : targets_) {
      for (const auto& [node, of] : heard[target.name]) target.is_mixed |= of.size() > 1;
    }
    const std::set<std::string> wanted(taken.begin(), taken.end());
    for (const auto& output : topology.outputs) {
      if (find(output) != nullptr) continue;
      Name& name = add(output);
      name.is_output = true;
      if (wanted.count(output) != 0) name.leads.push_back({target(">" + output, true), static_cast<std::uint32_t>(-1)});
    }
  }

  /// Index of a name, to be used with `operator[]`; null: the topology does not have it.
  [[nodiscard]] const std::uint32_t* find(std::string_view name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &found->second;
  }

  [[nodiscard]] const Name& operator[](std::uint32_t index) const { return names_[index]; }
  [[nodiscard]] std::size_t size() const noexcept { return names_.size(); }
  [[nodiscard]] const std::vector<Target>& targets() const noexcept { return targets_; }

  /// What to tell the author of an emit that leads nowhere.
  [[nodiscard]] std::string unknown(std::string_view name, std::string_view node, std::string_view does = "emits") const {
    std::string out = "node '" + std::string(node) + "' " + std::string(does) + " '" + clean_text(name, 300) + "', ";
    if (const auto at = name.find('@'); at != std::string_view::npos) {
      return out + "but no app '" + clean_text(name.substr(0, at), 300) + "' runs here (no-such-app)";
    }
    std::vector<std::string> known;
    for (const auto& other : names_) known.push_back(other.text);
    return out + "neither a slot nor an output of '" + app_ + "'; " + did_you_mean(name, known);
  }

 private:
  std::string app_;
  std::deque<Name> names_;  // a deque: the keys of by_name_ point into it
  std::unordered_map<std::string_view, std::uint32_t> by_name_;
  std::vector<Target> targets_;

  Name& add(const std::string& text) {
    Name& name = names_.emplace_back();
    name.text = text;
    by_name_.emplace(name.text, static_cast<std::uint32_t>(names_.size() - 1));
    return name;
  }

  std::uint32_t target(const std::string& name, bool is_output) {
    const auto found = std::find_if(targets_.begin(), targets_.end(), [&](const Target& t) { return t.name == name; });
    if (found != targets_.end()) return static_cast<std::uint32_t>(found - targets_.begin());
    targets_.push_back({name, is_output, false});
    return static_cast<std::uint32_t>(targets_.size() - 1);
  }
};

}  // namespace grape::detail
