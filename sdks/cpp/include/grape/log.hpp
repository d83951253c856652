/// Lines for the engine's log.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "error.hpp"
#include "event.hpp"
#include "text.hpp"
#include "value.hpp"
#include "watch.hpp"

namespace grape {

namespace detail {

/// How much is logged. Set by the thread that runs handlers, asked by any.
class LogLevels {
 public:
  static constexpr int usual = 1;

  /// 0 is the one of which there is most; -1: it is none.
  static int rank(std::string_view level) noexcept {
    constexpr std::array<std::string_view, 5> levels{"debug", "info", "warning", "error", "critical"};
    for (std::size_t i = 0; i < levels.size(); ++i) {
      if (levels.at(i) == level) return static_cast<int>(i);
    }
    return -1;
  }

  /// By node, "" of all others.
  void set(const std::vector<std::pair<std::string, std::string>>& levels) {
    const std::lock_guard lock(mutex_);
    nodes_.clear();
    others_ = usual;
    for (const auto& [node, level] : levels) {
      const int found = rank(level);
      if (found < 0) continue;
      if (node.empty()) {
        others_ = found;
      } else {
        nodes_[node] = found;
      }
    }
    int least = others_;
    for (const auto& [node, found] : nodes_) least = std::min(least, found);
    differ_.store(!nodes_.empty(), std::memory_order_relaxed);
    least_.store(least, std::memory_order_relaxed);
  }

  [[nodiscard]] bool wants(int rank) {
    if (rank < least_.load(std::memory_order_relaxed)) return false;
    if (!differ_.load(std::memory_order_relaxed)) return true;
    const SlotSpec* slot = watch().slot();
    const std::lock_guard lock(mutex_);
    const auto found = slot == nullptr ? nodes_.end() : nodes_.find(slot->node);
    return rank >= (found == nodes_.end() ? others_ : found->second);
  }

 private:
  std::atomic<int> least_{usual};
  std::atomic<bool> differ_{false};
  std::mutex mutex_;
  int others_ = usual;
  std::unordered_map<std::string, int> nodes_;
};

inline LogLevels& log_levels() noexcept {
  static LogLevels instance;
  return instance;
}

inline void append_quoted(std::string& out, std::string_view text) {
  out.push_back('"');
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      std::array<char, 8> code{};
      std::snprintf(code.data(), code.size(), "\\u%04x", static_cast<unsigned>(static_cast<unsigned char>(c)));
      out.append(code.data());
    } else {
      out.push_back(c);
    }
  }
  out.push_back('"');
}

/// False: it is no plain value.
inline bool append_json(std::string& out, const Value& value) {
  constexpr std::size_t most = 1'000;
  if (value.is_nil()) {
    out.append("null");
  } else if (const bool* flag = value.get_if<bool>()) {
    out.append(*flag ? "true" : "false");
  } else if (const auto* number = value.get_if<std::int64_t>()) {
    out.append(std::to_string(*number));
  } else if (const auto* large = value.get_if<std::uint64_t>()) {
    out.append(std::to_string(*large));
  } else if (const double* real = value.get_if<double>()) {
    std::array<char, 32> digits{};
    std::snprintf(digits.data(), digits.size(), "%.17g", *real);
    out.append(std::isfinite(*real) ? digits.data() : "null");
  } else if (const auto* text = value.get_if<std::string>()) {
    append_quoted(out, clean_text(*text, most));
  } else {
    return false;
  }
  return true;
}

/// A JSON object of one line; empty: of nothing.
inline std::string fields_text(const Value::Map& fields) {
  constexpr std::size_t most = 32;
  constexpr std::size_t most_name = 64;
  constexpr std::size_t most_text = 6U << 10U;
  std::string out;
  std::size_t count = 0;
  for (const auto& [name, value] : fields) {
    const auto* text = name.get_if<std::string>();
    std::string one;
    if (text == nullptr || ++count > most) continue;
    append_quoted(one, clean_text(*text, most_name));
    one.push_back(':');
    if (!append_json(one, value) || out.size() + one.size() > most_text) continue;
    out.append(out.empty() ? "{" : ",").append(one);
  }
  if (!out.empty()) out.push_back('}');
  return out;
}

/// The node that runs, and the event and its trace behind it.
inline std::string who() {
  const SlotSpec* slot = watch().slot();
  if (slot == nullptr) return {};
  std::string out = slot->node;
  if (!watch().is_here()) return out;  // another thread cannot know whether that event still runs
  const Incoming& event = watch().event();
  out.append("\x1F").append(one_line(event.id(), 2'000));
  if (const std::string* trace = watch().trace(event.context)) out.append("\x1F").append(*trace);
  return out;
}

}  // namespace detail

/// Whether a record of this level is wanted of the node that runs: where it costs something to make its text.
inline bool logs(std::string_view level) { return detail::log_levels().wants(detail::LogLevels::rank(level)); }

/// Writes `text` to the engine's log, as said by the node that runs right now, if that is wanted. `level` is "debug", "info",
/// "warning", "error" or "critical". `fields`: plain values beside the text. From any thread.
inline void log(std::string_view level, std::string_view text, const Value::Map& fields = {}) {
  static std::mutex mutex;
  if (!logs(level)) return;
  std::string who = detail::who();
  const std::string beside = detail::fields_text(fields);
  const auto head = [&](const std::string& by) { return std::string("\x1E").append(level).append("\x1E").append(by).append("\x1E"); };
  const std::string rest = head(who);
  if (!beside.empty()) {
    for (auto marks = std::count(who.begin(), who.end(), '\x1F'); marks < 3; ++marks) who.push_back('\x1F');
    who.append(beside);
  }
  std::string out;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    out.append(at == 0 ? head(who) : rest).append(text.substr(at, end - at)).push_back('\n');
    at = end + 1;
  }
  const std::lock_guard lock(mutex);
  for (std::size_t at = 0; at < out.size();) {
    const ssize_t written = ::write(STDERR_FILENO, out.data() + at, out.size() - at);
    if (written <= 0) return;  // nobody reads it any more
    at += static_cast<std::size_t>(written);
  }
}

}  // namespace grape
