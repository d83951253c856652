/// What a work emits, sorted by log and partition as it comes, and packed into bodies at its end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "batch.hpp"
#include "msgpack.hpp"
#include "routes.hpp"
#include "topology.hpp"

namespace grape::detail {

/// A run that grows: its columns are written as they will travel.
class GrowingRun {
 public:
  std::uint32_t group = 0;
  std::size_t count = 0;
  bool is_closed = false;

  void begin(Lead lead, std::int64_t hops) {
    group = lead.group;
    only_ = lead.only;
    only_size_ = 0;
    if (only_ != nullptr) {
      for (const auto& node : *only_) only_size_ += node.size() + 5;
    }
    count = 0;
    is_closed = false;
    hops_ = hops;
    names_.clear();
    names_size_ = 0;
    index_.clear();
    keys_.clear();
    data_.clear();
    each_hops_.clear();
    contexts_.clear();
  }

  [[nodiscard]] bool takes(std::uint32_t name) const {
    return !is_closed && (names_.size() < 255 || std::find(names_.begin(), names_.end(), name) != names_.end());
  }

  void append(std::uint32_t name, std::size_t name_size, Key key, std::string_view data, std::int64_t hops, std::int64_t context) {
    if (names_.empty() || names_[last_] != name) number(name, name_size);
    if (names_.size() > 1) index_.push_back(static_cast<char>(last_));
    if (key.exists) {
      if (keys_.empty()) keys_.append(count, '\xC0');
      pack_str(keys_, key.text);
    } else if (!keys_.empty()) {
      pack_nil(keys_);
    }
    if (data != nil) {
      if (data_.empty()) data_.append(count, '\xC0');
      data_.append(data);
    } else if (!data_.empty()) {
      pack_nil(data_);
    }
    if (hops != hops_ && each_hops_.empty()) each_hops_.assign(count, hops_);
    if (hops != hops_ || !each_hops_.empty()) each_hops_.push_back(hops);
    if (context >= 0 && contexts_.empty()) contexts_.assign(count, -1);
    if (context >= 0 || !contexts_.empty()) contexts_.push_back(context);
    ++count;
  }

  /// At most so many bytes it will have with another event of `more` bytes.
  [[nodiscard]] std::size_t bound(std::size_t more, bool new_hops, bool new_contexts) const {
    const std::size_t events = count + 1;
    return 120 + names_size_ + only_size_ + keys_.size() + data_.size() + more + 2 * events + (new_hops || !each_hops_.empty() ? 5 * events : 0) +
           (new_contexts || !contexts_.empty() ? 5 * events : 0);
  }
  [[nodiscard]] std::size_t bound() const { return bound(0, false, false); }

  [[nodiscard]] bool has_hops(std::int64_t hops) const { return count == 0 || hops == hops_; }

  /// Appends the run. `local` gives a context its place in the table of the body.
  template <class Local>
  void pack(Buffer& out, const Routes& routes, Buffer& meta, Local&& local) const {
    meta.clear();
    pack_map(meta, 1U + (index_.empty() ? 0U : 1U) + (hops_ != 0 || !each_hops_.empty() ? 1U : 0U) + (only_ == nullptr ? 0U : 1U) +
                       (contexts_.empty() ? 0U : 1U));
    pack_str(meta, "names");
    pack_array(meta, names_.size());
    for (const auto name : names_) pack_str(meta, routes[name].text);
    if (!index_.empty()) {
      pack_str(meta, "index");
      pack_bin(meta, index_);
    }
    if (!each_hops_.empty()) {
      pack_str(meta, "hops");
      pack_array(meta, count);
      for (const auto hops : each_hops_) pack_int(meta, hops);
    } else if (hops_ != 0) {
      pack_str(meta, "hops");
      pack_int(meta, hops_);
    }
    if (only_ != nullptr) {
      pack_str(meta, "only");
      pack_texts(meta, *only_);
    }
    if (!contexts_.empty()) {
      pack_str(meta, "contexts");
      pack_array(meta, count);
      for (const auto context : contexts_) pack_int(meta, context < 0 ? -1 : local(context));
    }
    // No event is without a byte: a body that says more events than it has bytes is refused.
    const std::size_t nils = count > 1 && keys_.empty() && data_.empty() ? count : 0;
    Buffer head;
    pack_array(head, count);
    append_u32(out, count);
    append_u32(out, meta.size());
    append_u32(out, keys_.empty() ? 0 : head.size() + keys_.size());
    append_u32(out, data_.empty() && nils == 0 ? 0 : head.size() + data_.size() + nils);
    out.append(meta);
    if (!keys_.empty()) out.append(head).append(keys_);
    if (!data_.empty() || nils > 0) out.append(head).append(data_).append(nils, '\xC0');
  }

 private:
  static constexpr std::string_view nil{"\xC0", 1};

  const std::vector<std::string>* only_ = nullptr;
  std::size_t only_size_ = 0;
  std::vector<std::uint32_t> names_;
  std::size_t last_ = 0;
  std::size_t names_size_ = 0;
  Buffer index_;
  Buffer keys_;
  Buffer data_;
  std::int64_t hops_ = 0;
  std::vector<std::int64_t> each_hops_;
  std::vector<std::int64_t> contexts_;

  void number(std::uint32_t name, std::size_t size) {
    const auto found = std::find(names_.begin(), names_.end(), name);
    last_ = static_cast<std::size_t>(found - names_.begin());
    if (found != names_.end()) return;
    names_.push_back(name);
    names_size_ += size + 3;
    if (names_.size() == 2) index_.assign(count, '\0');
  }
};

/// The emits of a work, by target and partition.
class Outbox {
 public:
  Outbox(const Routes& routes, const Limits& limits, std::size_t partitions)
      : routes_(routes), limits_(limits), partitions_(partitions), lanes_(routes.targets().size() * partitions) {}

  void append(Lead lead, std::size_t partition, std::uint32_t name, Key key, std::string_view data, std::int64_t hops,
              std::int64_t context) {
    const std::size_t number = lead.target * partitions_ + partition;
    if (number >= lanes_.size()) lanes_.resize(routes_.targets().size() * partitions_);  // another app was not known at first
    Lane& lane = lanes_[number];
    if (lane.empty()) used_.push_back(number);
    // Where a node hears several groups, only the last run may grow. Outputs have one group a target.
    GrowingRun* run = nullptr;
    const std::size_t first = routes_.targets()[lead.target].is_mixed && !lane.empty() ? lane.size() - 1 : 0;
    for (std::size_t i = lane.size(); i > first && run == nullptr; --i) {
      if (lane[i - 1]->group == lead.group) run = lane[i - 1].get();
    }
    const std::size_t name_size = routes_[name].text.size();
    const std::size_t size = key.text.size() + data.size() + name_size + 8;
    if (run != nullptr && (!run->takes(name) || run->bound(size, !run->has_hops(hops), context >= 0) > limits_.batch_max)) {
      run->is_closed = true;
    }
    if (run == nullptr || run->is_closed) {
      run = lane.emplace_back(fresh()).get();
      run->begin(lead, hops);
    }
    run->append(name, name_size, key, data, hops, context);
    if (run->bound() >= limits_.batch_target) run->is_closed = true;
  }

  /// Appends everything as an array of `Emitted`, and starts anew.
  void pack(Buffer& out) {
    const std::size_t array = pack_open(out, open_array);
    std::size_t bodies = 0;
    for (const auto number : used_) {
      Lane& lane = lanes_[number];
      for (std::size_t i = 0; i < lane.size();) {
        i = pack_body(out, number, i);
        ++bodies;
      }
    }
    clear();
    fill_in(out, array, bodies);
  }

  /// Forgets everything.
  void clear() {
    for (const auto number : used_) {
      for (auto& run : lanes_[number]) give_back(std::move(run));
      lanes_[number].clear();
    }
    used_.clear();
  }

 private:
  using Lane = std::vector<std::unique_ptr<GrowingRun>>;

  const Routes& routes_;
  const Limits& limits_;
  std::size_t partitions_;
  std::vector<Lane> lanes_;
  std::vector<std::size_t> used_;
  std::vector<std::unique_ptr<GrowingRun>> free_;
  Buffer meta_;
  std::vector<std::int64_t> contexts_;
  std::unordered_map<std::int64_t, std::int64_t> local_;

  std::unique_ptr<GrowingRun> fresh() {
    if (free_.empty()) return std::make_unique<GrowingRun>();
    auto run = std::move(free_.back());
    free_.pop_back();
    return run;
  }

  /// Kept with its memory, unless one large event made it large.
  void give_back(std::unique_ptr<GrowingRun> run) {
    if (free_.size() < 128 && run->bound() <= 2 * limits_.batch_target) free_.push_back(std::move(run));
  }

  /// One body of runs from number `first` on; returns the number of the next one.
  std::size_t pack_body(Buffer& out, std::size_t number, std::size_t first) {
    const Lane& lane = lanes_[number];
    std::size_t end = first;
    std::size_t bound = 0;
    std::size_t events = 0;
    while (end < lane.size() && (end == first || bound + lane[end]->bound() <= limits_.batch_max)) {
      bound += lane[end]->bound();
      events += lane[end++]->count;
    }
    contexts_.clear();
    local_.clear();
    const auto local = [&](std::int64_t context) {
      const auto [found, is_new] = local_.try_emplace(context, static_cast<std::int64_t>(contexts_.size()));
      if (is_new) contexts_.push_back(context);
      return found->second;
    };
    pack_array(out, 5);
    pack_str(out, routes_.targets()[number / partitions_].name);
    pack_uint(out, number % partitions_);
    pack_uint(out, events);
    const std::size_t body = pack_open(out, open_bin);
    for (std::size_t i = first; i < end; ++i) lane[i]->pack(out, routes_, meta_, local);
    fill_in(out, body, out.size() - body);
    pack_array(out, contexts_.size());
    for (const auto context : contexts_) pack_int(out, context);
    return end;
  }
};

}  // namespace grape::detail
