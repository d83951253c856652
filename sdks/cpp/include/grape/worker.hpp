/// A worker of Grape in C++: declare slots, then `return worker.run()`.
#pragma once

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "channel.hpp"
#include "event.hpp"
#include "fields.hpp"
#include "json.hpp"
#include "log.hpp"
#include "messages.hpp"
#include "runtime.hpp"
#include "slot.hpp"
#include "value.hpp"
#include "watchdog.hpp"

namespace grape {

class Worker {
 public:
  /// Reads what the engine puts behind the command: `--config-fd N --fd N --parent PID`. Other arguments are the program's own.
  Worker(int argc, char** argv) {
    for (int i = 1; i + 1 < argc; ++i) {
      const std::string_view option = argv[i];
      if (option == "--fd") {
        fd_ = number(argv[i + 1]);
      } else if (option == "--parent") {
        parent_ = number(argv[i + 1]);
      } else if (option == "--config" || option == "--config-fd") {
        try {
          config_ = detail::read_json(option == "--config" ? argv[i + 1] : configuration(number(argv[i + 1])));
        } catch (const Error& e) {
          problems_.push_back(std::string("--config: ") + e.what());
        }
      }
    }
  }

  /// The app's configuration, a map; known before slots are declared, which may depend on it.
  [[nodiscard]] const Value& config() const noexcept { return config_; }

  /// Hands every `event` to the node that `slot` names. A node may have many slots; its states are all that they name.
  void slot(std::string event, const Slot& slot, Handler handler, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    detail::Declared& declared = slots_.emplace_back();
    declared.spec = slot.spec();
    declared.spec.event = std::move(event);
    declared.spec.where = detail::clean_text(std::string(file) + ":" + std::to_string(line), 1'000);
    declared.handler = std::move(handler);
    declared.number = slots_.size() - 1;
    if (!slot.problem().empty()) problems_.push_back(name_of(declared.spec) + ": " + slot.problem());
    merge(slot.node_spec());
  }

  /// Called before the first event; it may take its time. If it throws, the worker is given up.
  void setup(std::function<void()> hook) { setup_ = std::move(hook); }
  /// Called after the last event.
  void teardown(std::function<void()> hook) { teardown_ = std::move(hook); }

  /// Serves the engine until it says to stop; returns what `main` should.
  int run() {
    if (fd_ < 0) {
      std::fputs("This is a worker of Grape: the engine starts it, with --fd and --parent.\n", stderr);
      return 2;
    }
    if (!live_with_parent()) return 0;
    std::signal(SIGINT, SIG_IGN);  // Ctrl-C is for the engine, which then tells its workers
    std::signal(SIGTERM, SIG_DFL);
    std::signal(SIGPIPE, SIG_IGN);
    const rlimit no_core{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    std::setvbuf(stdout, nullptr, _IOLBF, 1U << 16U);  // lines that were printed are to be seen if the process dies
    ::fcntl(fd_, F_SETFD, FD_CLOEXEC);
    ::fcntl(fd_, F_SETFL, ::fcntl(fd_, F_GETFL) & ~O_NONBLOCK);
    detail::Channel channel(fd_);
    try {
      check();
      if (!problems_.empty()) {
        std::string text;
        for (const auto& problem : problems_) text += (text.empty() ? "" : "; ") + problem;
        channel.send(detail::refusal_frame("topology", text));
        return 2;
      }
      return serve(channel);
    } catch (const detail::EngineGone&) {
      return 0;
    } catch (...) {
      const detail::Blame why = detail::blame();
      std::fprintf(stderr, "the worker ends: %s: %s\n", why.kind.c_str(), why.text.c_str());
      try {
        channel.send(detail::refusal_frame("start", why.kind + ": " + why.text + "\n" + why.trace));
      } catch (...) {  // NOLINT(bugprone-empty-catch): nobody is there to be told
      }
      return 1;
    }
  }

 private:
  int fd_ = -1;
  int parent_ = 0;
  Value config_ = Value(Value::Map());
  std::deque<detail::NodeSpec> nodes_;
  std::deque<detail::Declared> slots_;
  std::vector<std::string> problems_;
  std::function<void()> setup_;
  std::function<void()> teardown_;

  /// What a descriptor holds: on a command line everybody could read it. It can be read once.
  static const std::string& configuration(int fd) {
    static const std::string read = [fd] {
      std::string text;
      char buffer[4096];
      for (ssize_t size = 0; (size = ::read(fd, buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<std::size_t>(size));
      return text.empty() ? std::string("{}") : text;
    }();
    return read;
  }

  static int number(const char* text) {
    int out = -1;
    const auto [end, error] = std::from_chars(text, text + std::strlen(text), out);
    return error == std::errc() && *end == '\0' ? out : -1;
  }

  /// False: the engine has died already. (Parent 0: the jail sees to it.)
  [[nodiscard]] bool live_with_parent() const {
    if (parent_ == 0) return true;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    return ::getppid() == parent_;
  }

  void merge(const detail::NodeSpec& node) {
    const auto found = std::find_if(nodes_.begin(), nodes_.end(), [&](const detail::NodeSpec& n) { return n.name == node.name; });
    detail::NodeSpec& known = found == nodes_.end() ? nodes_.emplace_back() : *found;
    known.name = node.name;
    for (const auto& state : node.states) {
      const auto same =
          std::find_if(known.states.begin(), known.states.end(), [&](const detail::StateSpec& s) { return s.name == state.name; });
      if (same == known.states.end()) {
        known.states.push_back(state);
      } else if (same->ttl != state.ttl) {
        problems_.push_back("state '" + state.name + "' of node '" + node.name + "' has two times to live");
      }
    }
  }

  static std::string name_of(const detail::SlotSpec& spec) {
    return "slot '" + detail::clean_text(spec.event, 255) + "' of node '" + detail::clean_text(spec.node, 255) + "' (" + spec.where + ")";
  }

  void check() {
    const auto check_name = [&](const std::string& name, const char* what) {
      if (name.empty() || name.size() > 255 || !detail::is_utf8(name)) {
        problems_.push_back(std::string(what) + " has 1 to 255 bytes of UTF-8: '" + detail::clean_text(name, 255) + "'");
      }
    };
    const auto is_time = [](double time) { return time >= 0 && time <= 1e12; };
    if (slots_.empty()) problems_.emplace_back("no slots; declare one with worker.slot(event, Slot(node), handler)");
    for (const auto& node : nodes_) {
      check_name(node.name, "the name of a node");
      for (const auto& state : node.states) {
        check_name(state.name, "the name of a state");
        if (state.ttl && !(*state.ttl > 0 && *state.ttl <= 1e12)) {
          problems_.push_back("state '" + state.name + "' of node '" + node.name + "' has a time to live that is none");
        }
      }
    }
    for (const auto& slot : slots_) {
      const detail::SlotSpec& spec = slot.spec;
      check_name(spec.event, "the name of an event");
      for (const auto& name : spec.emits) check_name(name, "the name of an event");
      const std::string what = name_of(spec);
      if (!slot.handler) problems_.push_back(what + " has no handler");
      if (spec.retries < 0 || spec.concurrency < 1 || spec.batch < 1 || !is_time(spec.backoff) || !is_time(spec.backoff_max) ||
          !is_time(spec.timeout)) {
        problems_.push_back(what + " has options out of range");
      }
      if (spec.burst < 1 || spec.burst > detail::most_burst) {
        problems_.push_back(what + ": burst is a whole number from 1 to " + std::to_string(detail::most_burst) + ", not " +
                            std::to_string(spec.burst));
      } else if (spec.burst > 1 && spec.rate == 0) {
        problems_.push_back(what + ": burst " + std::to_string(spec.burst) + " belongs to a rate, and there is none");
      }
      for (const auto& other : slots_) {
        if (other.number < slot.number && other.spec.event == spec.event && other.spec.node == spec.node) {
          problems_.push_back(what + " is declared twice, first at " + other.spec.where);
        }
      }
    }
  }

  int serve(detail::Channel& channel) {
    detail::Runtime runtime(channel, nodes_, slots_);
    detail::watch_children();
    channel.send(detail::hello_frame(::getpid(), nodes_, slots_));
    std::optional<detail::Watchdog> watchdog;
    try {
      while (step(channel, runtime, watchdog)) {
      }
    } catch (const detail::EngineGone&) {  // NOLINT(bugprone-empty-catch): as if it had said to stop
    }
    if (!watchdog) return 0;
    watchdog.reset();  // teardown has the time that the engine gives it
    if (teardown_) teardown_();
    return 0;
  }

  /// Takes one message; false: the engine says to stop.
  bool step(detail::Channel& channel, detail::Runtime& runtime, std::optional<detail::Watchdog>& watchdog) {
    namespace tag = detail::tag;
    detail::Frame frame = channel.receive();
    const std::int64_t kind = detail::tag_of(frame.message());
    detail::Reader reader(frame.message());
    if (kind == tag::drain) return false;
    if (kind == tag::welcome && !watchdog) {
      const detail::Welcome welcome(reader);
      if (welcome.version != detail::protocol_version) {
        throw detail::ProtocolError("the engine speaks protocol " + std::to_string(welcome.version) + ", this worker 1");
      }
      runtime.welcome(welcome);
      if (setup_) setup_();
      detail::end_child(nullptr);
      channel.send(detail::beat_frame());  // it is ready
      watchdog.emplace(channel, welcome.heartbeat_timeout / 6);
    } else if (kind == tag::assign && watchdog) {
      runtime.assign(detail::Assign(reader));
    } else if (kind == tag::revoke && watchdog) {
      runtime.revoke(detail::Revoke(reader));
    } else if (kind == tag::peers_changed && watchdog) {
      runtime.change_peers(detail::PeersChanged(reader));
    } else if (kind == tag::levels_changed && watchdog) {
      detail::log_levels().set(detail::LevelsChanged(reader).levels);
    } else if (kind == tag::leased && watchdog) {
      runtime.leased(detail::Leased(reader));
    } else if (kind == tag::work && watchdog) {
      try {
        runtime.work(detail::Work(reader));
      } catch (const detail::GivenBack&) {  // NOLINT(bugprone-empty-catch): why is among what waits to be received
      }
    } else {
      throw detail::ProtocolError("a message " + std::to_string(kind) + " that does not belong here");
    }
    channel.recycle(std::move(frame));
    return true;
  }
};

}  // namespace grape
