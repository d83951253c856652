/// The thread that shows that this process lives, and ends it when a handler overruns its time.
#pragma once

#include <execinfo.h>
#include <pthread.h>
#include <semaphore.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "channel.hpp"
#include "event.hpp"
#include "messages.hpp"
#include "watch.hpp"

namespace grape::detail {

inline constexpr int exit_stuck = 70;

/// What the handlers' thread says about itself when a signal asks it: only there it is known that nothing moves meanwhile.
struct Capture {
  std::uint64_t ticks = 0;  ///< of the event that is asked about
  bool is_it = false;       ///< it still runs
  std::array<char, 4'096> id_prefix{};
  std::size_t id_size = 0;
  std::int64_t id_number = -1;
  std::int64_t partition = 0;
  std::int64_t epoch = 0;
  std::array<void*, 64> frames{};
  int depth = 0;
  sem_t done{};
};

inline std::atomic<Capture*> capture_wanted{nullptr};

inline int capture_signal() { return SIGRTMIN + 7; }

/// The signal handler; all that it calls may be called in one.
inline void capture_here(int /*signal*/) {
  Capture* capture = capture_wanted.exchange(nullptr);
  if (capture == nullptr) return;
  const int error = errno;
  const Watch& running = watch();
  capture->is_it = running.slot() != nullptr && running.ticks() == capture->ticks;
  if (capture->is_it) {
    const Incoming& event = running.event();
    capture->id_size = std::min(event.id_prefix.size(), capture->id_prefix.size());
    std::memcpy(capture->id_prefix.data(), event.id_prefix.data(), capture->id_size);
    capture->id_number = event.id_number;
    capture->partition = running.partition();
    capture->epoch = running.epoch();
    capture->depth = ::backtrace(capture->frames.data(), static_cast<int>(capture->frames.size()));
  }
  ::sem_post(&capture->done);
  errno = error;
}

/// The functions of a backtrace, the innermost first, up to what called the handler.
inline std::string symbols_of(const Capture& capture) {
  const std::unique_ptr<char*, decltype(&std::free)> lines(::backtrace_symbols(capture.frames.data(), capture.depth), &std::free);
  if (!lines) return {};
  std::string out = "Running (innermost first):\n";
  for (int i = 2; i < capture.depth; ++i) {  // before: the signal handler and its trampoline
    const std::string_view line = lines.get()[i];
    const std::size_t open = line.find('(');
    const std::size_t plus = line.find('+', open);
    std::string text(line);
    if (open != std::string_view::npos && plus != std::string_view::npos && plus > open + 1) {
      text = demangled(std::string(line.substr(open + 1, plus - open - 1)).c_str());
      if (text.find("grape::detail::Runtime") != std::string::npos) break;
      text += "  " + std::string(line.substr(0, open));
    }
    out += "  " + text + "\n";
  }
  return out;
}

class Watchdog {
 public:
  /// Watches what the calling thread runs.
  Watchdog(Channel& channel, double beat) : channel_(channel), beat_(beat), main_(::pthread_self()) {
    void* frame = nullptr;
    ::backtrace(&frame, 1);  // the first call loads a library, which a signal handler must not do
    ::sem_init(&capture_.done, 0, 0);
    struct sigaction action {};
    action.sa_handler = &capture_here;
    action.sa_flags = SA_RESTART;
    ::sigaction(capture_signal(), &action, nullptr);
    sigset_t all;
    sigset_t before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);  // signals of the program are not for this thread
    thread_ = std::thread([this] { run(); });
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  ~Watchdog() {
    {
      const std::lock_guard lock(mutex_);
      is_stopped_ = true;
    }
    wake_.notify_all();
    thread_.join();
    ::sem_destroy(&capture_.done);
  }

  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds sample{50};

  Channel& channel_;
  std::chrono::duration<double> beat_;
  pthread_t main_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool is_stopped_ = false;
  Capture capture_;
  std::thread thread_;

  void run() {
    try {
      Clock::time_point last_beat = Clock::now();
      Clock::time_point since = last_beat;
      const SlotSpec* seen = nullptr;
      std::uint64_t ticks = 0;
      while (sleep()) {
        const Clock::time_point now = Clock::now();
        if (now - last_beat >= beat_) {
          last_beat = now;
          channel_.send(beat_frame(watch().slot() != nullptr || watch().waits()));
        }
        const SlotSpec* slot = watch().slot();
        const std::uint64_t at = watch().ticks();
        if (slot != seen || at != ticks) {
          seen = slot;
          ticks = at;
          since = now;
        } else if (slot != nullptr && slot->timeout > 0 && now - since > std::chrono::duration<double>(slot->timeout)) {
          report(*slot, ticks);
        }
      }
    } catch (const EngineGone&) {
      // The thread that receives finds it out, too, and ends the process.
    } catch (const std::exception& e) {
      ::dprintf(STDERR_FILENO, "the watchdog cannot go on: %s\n", e.what());
      ::_exit(1);
    }
  }

  /// False: it is to end.
  bool sleep() {
    std::unique_lock lock(mutex_);
    return !wake_.wait_for(lock, sample, [this] { return is_stopped_; });
  }

  /// Says that the event overruns and ends the process; returns if it has ended just now.
  void report(const SlotSpec& slot, std::uint64_t ticks) {
    // From here on the handlers' thread can send nothing, so that no result about the event follows.
    const auto lock = channel_.hold();
    capture_.ticks = ticks;
    capture_.is_it = false;
    capture_wanted.store(&capture_);
    ::pthread_kill(main_, capture_signal());
    timespec until{};
    ::clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 1;
    const bool is_answered = ::sem_timedwait(&capture_.done, &until) == 0;
    if (!is_answered) {
      if (capture_wanted.exchange(nullptr) == nullptr) {
        ::sem_wait(&capture_.done);  // it has just begun to answer
      } else {
        // It blocks signals. Nothing can be said about the event but by looking from here.
        if (watch().slot() != &slot || watch().ticks() != ticks) return;
        look_from_here();
      }
    }
    if (!capture_.is_it) return;
    std::string id(capture_.id_prefix.data(), capture_.id_size);
    if (capture_.id_number >= 0) id += std::to_string(capture_.id_number);
    std::array<char, 400> text{};
    std::snprintf(text.data(), text.size(), "'%s' ran over its timeout of %g s (timeout of its slot)", slot.node.c_str(), slot.timeout);
    const std::string trace = capture_.depth > 0 ? symbols_of(capture_) : std::string();
    channel_.send_locked(stuck_frame(capture_.partition, capture_.epoch, clean_text(id), slot.node, text.data(), trace));
    ::_exit(exit_stuck);
  }

  void look_from_here() {
    const Incoming& event = watch().event();
    capture_.is_it = true;
    capture_.id_size = std::min(event.id_prefix.size(), capture_.id_prefix.size());
    std::memcpy(capture_.id_prefix.data(), event.id_prefix.data(), capture_.id_size);
    capture_.id_number = event.id_number;
    capture_.partition = watch().partition();
    capture_.epoch = watch().epoch();
    capture_.depth = 0;
  }
};

}  // namespace grape::detail
