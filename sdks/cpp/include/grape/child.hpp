/// Children that a handler forks: they are not the worker, cannot speak for it, and end where the handler ends.
#pragma once

#include <pthread.h>
#include <unistd.h>

#include <cstdio>
#include <string>

namespace grape::detail {

/// Whether this process was forked from a worker.
inline bool& is_child() noexcept {
  static bool instance = false;
  return instance;
}

/// From now on a child of this process is known as one.
inline void watch_children() noexcept {
  ::pthread_atfork(nullptr, nullptr, [] { is_child() = true; });
}

/// In a child: the handler has ended, by an error if one is given, and so does the process.
inline void end_child(const std::string* error) noexcept {
  if (!is_child()) return;
  if (error != nullptr) (void)std::fprintf(stderr, "%s\n", error->c_str());
  (void)std::fflush(nullptr);
  ::_exit(error == nullptr ? 0 : 1);
}

}  // namespace grape::detail
