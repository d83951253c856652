/// What runs right now, as other threads see it: the watchdog, and lines that are logged.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

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

  // Of what runs; to be read in its thread only.
  [[nodiscard]] const Incoming& event() const noexcept { return *event_; }
  [[nodiscard]] std::int64_t partition() const noexcept { return partition_; }
  [[nodiscard]] std::int64_t epoch() const noexcept { return epoch_; }

 private:
  std::atomic<const SlotSpec*> slot_{nullptr};
  std::atomic<std::uint64_t> ticks_{0};
  std::atomic<bool> waits_{false};
  const Incoming* event_ = nullptr;
  std::int64_t partition_ = 0;
  std::int64_t epoch_ = 0;
};

/// The one of this process.
inline Watch& watch() noexcept {
  static Watch instance;
  return instance;
}

}  // namespace grape::detail
