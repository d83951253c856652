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
  const std::vector<std::string>* only = nullptr;  ///< these nodes alone are meant; null: all that listen
};

struct Name {
  std::string text;
  bool is_output = false;
  bool is_foreign = false;             ///< of another app
  std::vector<Lead> leads;             ///< none: an output that nobody takes
  std::vector<std::string> listeners;  ///< nodes of this worker's pool, in order of declaration
};

/// `is_mixed`: some node listens to several groups, so that all runs have to keep the order of the emits.
struct Target {
  std::string name;
  bool is_output = false;
  bool is_mixed = false;
};

inline constexpr std::size_t most_name = 255;

using Pairs = std::set<std::pair<std::string, std::string>>;

/// The number of each vertex' strongly connected component (Tarjan 1972, without recursion): two lie on a common cycle exactly if
/// theirs are equal.
inline std::map<std::string, std::size_t> components(const std::map<std::string, std::set<std::string>>& graph) {
  struct Step {
    const std::string* vertex;
    std::set<std::string>::const_iterator next;
    std::set<std::string>::const_iterator end;
  };
  static const std::set<std::string> none;
  std::map<std::string, std::size_t> index;
  std::map<std::string, std::size_t> low;
  std::map<std::string, std::size_t> component;
  std::vector<const std::string*> stack;
  std::vector<Step> way;
  std::size_t count = 0;
  const auto enter = [&](const std::string& vertex) {
    index.emplace(vertex, index.size());
    low[vertex] = index.size() - 1;
    stack.push_back(&vertex);
    const auto found = graph.find(vertex);
    const std::set<std::string>& targets = found == graph.end() ? none : found->second;
    way.push_back({&vertex, targets.begin(), targets.end()});
  };
  const auto lower = [&](const std::string& vertex, std::size_t to) { low[vertex] = std::min(low[vertex], to); };
  for (const auto& [start, targets] : graph) {
    if (index.count(start) == 0) enter(start);
    while (!way.empty()) {
      Step& step = way.back();
      if (step.next != step.end) {
        const std::string& target = *step.next++;
        if (index.count(target) == 0) {
          enter(target);
        } else if (component.count(target) == 0) {
          lower(*step.vertex, index[target]);
        }
        continue;
      }
      const std::string& vertex = *step.vertex;
      way.pop_back();
      if (!way.empty()) lower(*way.back().vertex, low[vertex]);
      if (low[vertex] != index[vertex]) continue;
      const std::string* member = nullptr;
      do {
        member = stack.back();
        stack.pop_back();
        component[*member] = count;
      } while (*member != vertex);
      ++count;
    }
  }
  return component;
}

/// A pair chains if an edge of it is declared, both nodes are synchronous and in one pool, no slot of the target says otherwise or has
/// a rate (what waits for its turn would hold back what is done), and the pair lies on no cycle of declared pairs. The engine works it
/// out alike.
inline Pairs chained_pairs(const TopologySpec& topology) {
  std::map<std::string, const NodeSpec*> nodes;
  for (const auto& node : topology.nodes) nodes[node.name] = &node;
  std::map<std::string, std::set<std::string>> listeners;
  std::set<std::string> unchained;
  for (const auto& slot : topology.slots) {
    listeners[slot.event].insert(slot.node);
    if (!slot.chain || slot.rate > 0) unchained.insert(slot.node);
  }
  std::map<std::string, std::set<std::string>> declared;
  for (const auto& slot : topology.slots) {
    for (const auto& event : slot.emits) {
      if (const auto found = listeners.find(event); found != listeners.end()) {
        declared[slot.node].insert(found->second.begin(), found->second.end());
      }
    }
  }
  const auto component = components(declared);
  const auto is_near = [&](const std::string& node, const std::string& target) {
    const auto one = nodes.find(node);
    const auto other = nodes.find(target);
    return one != nodes.end() && other != nodes.end() && one->second->pool == other->second->pool && !one->second->is_async &&
           !other->second->is_async;
  };
  Pairs out;
  for (const auto& [node, targets] : declared) {
    for (const auto& target : targets) {
      if (is_near(node, target) && unchained.count(target) == 0 && component.at(node) != component.at(target)) out.emplace(node, target);
    }
  }
  return out;
}

class Routes {
 public:
  Routes(const TopologySpec& topology, std::string_view pool, const std::vector<std::string>& taken, Peers peers = {})
      : app_(topology.name), peers_(std::move(peers)), chained_(chained_pairs(topology)) {
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
    groups_ = static_cast<std::uint32_t>(groups.size());
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

  /// The other apps are these from now on.
  void change_peers(Peers peers) { peers_ = std::move(peers); }

  /// Index of an event of another app; null: it leads nowhere.
  const std::uint32_t* to_other(std::string_view name) {
    if (!problem(name).empty()) return nullptr;
    if (const auto* known = find(name); known != nullptr) return known;
    Name& added = add(std::string(name));
    added.is_output = true;
    added.is_foreign = true;
    const std::string log = ">@" + std::string(name.substr(0, name.find('@')));
    // One group: what goes to an app stays in its order.
    added.leads.push_back({target(log, true), static_cast<std::uint32_t>(-1)});
    return find(added.text);
  }

  [[nodiscard]] const Name& operator[](std::uint32_t index) const { return names_[index]; }
  [[nodiscard]] std::size_t size() const noexcept { return names_.size(); }
  [[nodiscard]] const std::vector<Target>& targets() const noexcept { return targets_; }

  /// The pairs (emitting node, target) that may run at once.
  [[nodiscard]] const Pairs& chained() const noexcept { return chained_; }

  /// The same log, for these of its nodes alone.
  [[nodiscard]] Lead lead_for(Lead lead, std::vector<std::string> only) {
    lead.only = &only_.emplace_back(std::move(only));
    lead.group = groups_++;
    targets_[lead.target].is_mixed = true;
    return lead;
  }

  /// What to tell the author of an emit that leads nowhere.
  [[nodiscard]] std::string unknown(std::string_view name, std::string_view node, std::string_view does = "emits") const {
    std::string out = "node '" + std::string(node) + "' " + std::string(does) + " '" + clean_text(name, 300) + "', ";
    if (name.find('@') != std::string_view::npos) return out + "but " + problem(name);
    std::vector<std::string> known;
    for (const auto& other : names_) known.push_back(other.text);
    return out + "neither a slot nor an output of '" + app_ + "'; " + did_you_mean(name, known);
  }

 private:
  std::string app_;
  Peers peers_;
  std::deque<Name> names_;  // a deque: the keys of by_name_ point into it
  std::unordered_map<std::string_view, std::uint32_t> by_name_;
  std::vector<Target> targets_;
  Pairs chained_;
  std::deque<std::vector<std::string>> only_;  // a deque: leads point into it
  std::uint32_t groups_ = 0;

  /// Why nothing can be emitted to `name`, which has an '@'; "": it can be.
  [[nodiscard]] std::string problem(std::string_view name) const {
    const auto at = name.find('@');
    const std::string app(name.substr(0, at));
    const std::string_view event = name.substr(at + 1);
    if (app == app_) return "an event of the own app is written without it: '" + clean_text(event, 300) + "'";
    const auto found = peers_.find(app);
    if (found == peers_.end()) {
      std::vector<std::string> known;
      for (const auto& other : peers_) known.push_back(other.first);
      return "no app '" + clean_text(app, 300) + "' is installed here (no-such-app); " + did_you_mean(app, known);
    }
    if (event.empty() || event.size() > most_name || !is_utf8(event))
      return "the name of an event has 1 to 255 bytes of UTF-8, also behind the @: '" + clean_text(event, 100) + "'";
    const auto& events = found->second;
    if (events && std::find(events->begin(), events->end(), event) == events->end()) {
      return "app '" + app + "' has no slot '" + clean_text(event, 300) + "'; " + did_you_mean(event, *events);
    }
    return {};
  }

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
