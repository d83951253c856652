/// What runs right now, as other threads see it: the watchdog, and lines that are logged.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <unordered_map>

#include "topology.hpp"

namespace grape::detail {

struct Incoming;

/// Written by the thread that runs handlers, twice an event; read by the watchdog.
class Watch {
 public:
  void enter(const SlotSpec& slot, const Incoming& event, std::int64_t partition, std::int64_t epoch) noexcept {
    event_ = &event;
    partition_ = partition;
    epoch_ = epoch;
    tick();
    slot_.store(&slot, std::memory_order_release);
  }
  void leave() noexcept { slot_.store(nullptr, std::memory_order_release); }

  /// Whether an event waits for its turn.
  void wait(bool is_waiting) noexcept { waits_.store(is_waiting, std::memory_order_relaxed); }
  [[nodiscard]] bool waits() const noexcept { return waits_.load(std::memory_order_relaxed); }

  /// Only the thread that runs handlers calls it, so that it need not be one atomic step.
  void tick() noexcept { ticks_.store(ticks_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed); }

  [[nodiscard]] const SlotSpec* slot() const noexcept { return slot_.load(std::memory_order_acquire); }
  [[nodiscard]] std::uint64_t ticks() const noexcept { return ticks_.load(std::memory_order_relaxed); }

  /// This thread runs handlers. `traces`: of contexts of traced events, by number.
  void here() noexcept { thread_ = std::this_thread::get_id(); }
  void traces(const std::unordered_map<std::int64_t, std::string>* traces) noexcept { traces_ = traces; }
  [[nodiscard]] bool is_here() const noexcept { return thread_ == std::this_thread::get_id(); }

  // Of what runs; to be read in its thread only.
  [[nodiscard]] const std::string* trace(std::int64_t context) const {
    if (traces_ == nullptr || traces_->empty()) return nullptr;
    const auto found = traces_->find(context);
    return found == traces_->end() ? nullptr : &found->second;
  }
  [[nodiscard]] const Incoming& event() const noexcept { return *event_; }
  [[nodiscard]] std::int64_t partition() const noexcept { return partition_; }
  [[nodiscard]] std::int64_t epoch() const noexcept { return epoch_; }

 private:
  std::atomic<const SlotSpec*> slot_{nullptr};
  std::atomic<std::uint64_t> ticks_{0};
  std::atomic<bool> waits_{false};
  const Incoming* event_ = nullptr;
  const std::unordered_map<std::int64_t, std::string>* traces_ = nullptr;
  std::thread::id thread_;
  std::int64_t partition_ = 0;
  std::int64_t epoch_ = 0;
};

/// The one of this process.
inline Watch& watch() noexcept {
  static Watch instance;
  return instance;
}

}  // namespace grape::detail
