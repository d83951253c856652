// grape-run-so FILE: a worker whose slots a shared object declares, in `extern "C" void grape_register(grape_worker *)`.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "grape/grape.h"
#include "grape/worker.hpp"

namespace {

/// The engine is told, as it is told of any other app that cannot be loaded.
int refuse(int argc, char** argv, const std::string& text) {
  std::fprintf(stderr, "%s\n", text.c_str());
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::string(argv[i]) == "--fd") {
      grape::detail::Channel channel(static_cast<int>(std::strtol(argv[i + 1], nullptr, 10)));
      channel.send(grape::detail::refusal_frame("usage", text));
    }
  }
  return 2;
}

int run(int argc, char** argv) {
  const std::string path = argc > 1 ? argv[1] : "";
  if (path.empty() || path[0] == '-') return refuse(argc, argv, "usage: grape-run-so FILE.so, as the command of a pool");
  void* library = ::dlopen(path.find('/') == std::string::npos ? ("./" + path).c_str() : path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return refuse(argc, argv, std::string("it cannot be loaded: ") + ::dlerror());
  auto* declare = reinterpret_cast<void (*)(grape_worker*)>(::dlsym(library, "grape_register"));
  if (declare == nullptr) return refuse(argc, argv, path + " has no function grape_register");
  grape_worker* worker = grape_worker_new(argc, argv);
  if (worker == nullptr) return 1;
  declare(worker);
  const int code = grape_run(worker);
  grape_worker_free(worker);
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (...) {
    std::fputs("grape-run-so: the engine is gone, or there is no memory\n", stderr);
    return 1;
  }
}
