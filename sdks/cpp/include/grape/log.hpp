/// Lines for the engine's log.
#pragma once

#include <unistd.h>

#include <mutex>
#include <string>
#include <string_view>

#include "text.hpp"
#include "watch.hpp"

namespace grape {

/// Writes `text` to the engine's log, as said by the node that runs right now. `level` is "debug", "info", "warning", "error"
/// or "critical". From any thread.
inline void log(std::string_view level, std::string_view text) {
  static std::mutex mutex;
  const detail::SlotSpec* slot = detail::watch().slot();
  std::string head("\x1E");
  head.append(level).append("\x1E").append(slot == nullptr ? "" : slot->node).append("\x1E");
  std::string out;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    out.append(head).append(text.substr(at, end - at)).push_back('\n');
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
