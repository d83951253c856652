// The engine's end of a real socket, with a worker process behind it.
#pragma once

#include <doctest/doctest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "grape/worker.hpp"

namespace fake {

using grape::Bytes;
using grape::Value;
using grape::detail::Buffer;
using grape::detail::RunReader;
namespace tag = grape::detail::tag;

inline const Value& at(const Value& value, std::size_t index) {
  const auto* items = value.get_if<Value::Array>();
  REQUIRE(items != nullptr);
  static const Value nothing;
  return index < items->size() ? (*items)[index] : nothing;
}
inline std::int64_t number(const Value& value) {
  REQUIRE(value.get_if<std::int64_t>() != nullptr);
  return *value.get_if<std::int64_t>();
}
inline std::string text(const Value& value) {
  REQUIRE(value.get_if<std::string>() != nullptr);
  return *value.get_if<std::string>();
}
inline std::string bytes(const Value& value) {
  REQUIRE(value.get_if<Bytes>() != nullptr);
  return value.get_if<Bytes>()->data;
}
inline const Value::Array& items(const Value& value) {
  REQUIRE(value.get_if<Value::Array>() != nullptr);
  return *value.get_if<Value::Array>();
}

inline std::string packed(const Value& value) {
  Buffer out;
  grape::detail::pack_value(out, value, 0);
  return out;
}

/// An event as the engine hands it out.
struct In {
  std::string name;
  Value key;
  Value data;
  int hops = 0;
  int context = -1;
};

/// One run of events.
inline std::string run_of(const std::vector<In>& events, const Value& more = Value(Value::Map())) {
  Value::Array names;
  Value::Array keys;
  Value::Array data;
  Value::Array hops;
  Value::Array contexts;
  std::string index;
  bool has_context = false;
  for (const auto& event : events) {
    std::size_t number = 0;
    while (number < names.size() && names[number] != Value(event.name)) ++number;
    if (number == names.size()) names.emplace_back(event.name);
    index.push_back(static_cast<char>(number));
    keys.push_back(event.key);
    data.push_back(event.data);
    hops.emplace_back(event.hops);
    contexts.emplace_back(event.context);
    has_context |= event.context >= 0;
  }
  Value::Map meta{{Value("names"), Value(names)}, {Value("hops"), Value(hops)}};
  if (names.size() > 1) meta.emplace_back(Value("index"), Value(Bytes(index)));
  if (has_context) meta.emplace_back(Value("contexts"), Value(contexts));
  for (const auto& field : *more.get_if<Value::Map>()) meta.push_back(field);
  const std::string parts[] = {packed(meta), packed(keys), packed(data)};
  std::string out;
  grape::detail::append_u32(out, events.size());
  for (const auto& part : parts) grape::detail::append_u32(out, part.size());
  for (const auto& part : parts) out += part;
  return out;
}

/// An event as a worker emits it.
struct Out {
  std::string target;
  std::int64_t partition = 0;
  std::string name;
  std::string key;  ///< "-": none
  Value data;
  std::int64_t hops = 0;
  std::int64_t context = -1;
  std::vector<std::string> only;
};

inline std::vector<Out> events_of(const Value& emitted) {
  std::vector<Out> out;
  const std::string body = bytes(at(emitted, 3));
  RunReader run;
  run.start(body);
  while (run.next()) {
    run.read_columns();
    for (std::size_t i = 0; i < run.count; ++i) {
      Out event;
      event.target = text(at(emitted, 0));
      event.partition = number(at(emitted, 1));
      event.name = run.names[run.name_at(i)];
      event.key = run.key_at(i).exists ? std::string(run.key_at(i).text) : "-";
      event.data = grape::Raw(run.data_at(i)).as<Value>();
      event.hops = run.hops_at(i);
      for (const auto node : run.only) event.only.emplace_back(node);
      const auto context = run.context_at(i);
      event.context = context < 0 ? -1 : number(at(at(emitted, 4), static_cast<std::size_t>(context)));
      out.push_back(event);
    }
  }
  CHECK(out.size() == static_cast<std::size_t>(number(at(emitted, 2))));
  return out;
}

struct Failed {
  std::string node, event, id, key, body, kind, text, trace;
  std::int64_t created = 0, hold = -1, context = -1;
  bool behind = false, named = false, final = false;
};

/// What a result says, in a form for checks.
struct Result {
  std::vector<std::int64_t> ended, retried;
  std::map<std::int64_t, std::pair<std::int64_t, std::string>> done;
  std::vector<Out> emitted;
  std::size_t bodies = 0, largest = 0;
  std::map<std::string, std::map<std::string, Value>> states;  ///< node -> key -> record
  std::map<std::string, std::int64_t> expires;                 ///< key -> when
  Value::Array timers, replies;
  std::vector<Failed> failures;
  std::map<std::string, std::int64_t> counts, emits;
  Value::Array objects;

  explicit Result(const Value& message) {
    REQUIRE(number(at(message, 0)) == tag::result);
    for (const auto& seq : items(at(message, 3))) ended.push_back(number(seq));
    for (const auto& moved : items(at(message, 4))) done[number(at(moved, 0))] = {number(at(at(moved, 1), 0)), bytes(at(at(moved, 1), 1))};
    for (const auto& hold : items(at(message, 5))) retried.push_back(number(hold));
    for (const auto& one : items(at(message, 6))) {
      ++bodies;
      largest = std::max(largest, bytes(at(one, 3)).size());
      for (auto& event : events_of(one)) emitted.push_back(std::move(event));
    }
    for (const auto& change : items(at(message, 7))) {
      const auto& keys = items(at(change, 1));
      for (std::size_t i = 0; i < keys.size(); ++i) {
        const Value& record = at(at(change, 2), i);
        states[text(at(change, 0))][bytes(keys[i])] = record.is_nil() ? record : grape::Raw(bytes(record)).as<Value>();
        if (!at(change, 3).is_nil()) expires[bytes(keys[i])] = number(at(at(change, 3), i));
      }
    }
    timers = items(at(message, 8));
    for (const auto& f : items(at(message, 9))) {
      Failed out;
      out.node = text(at(f, 0)), out.event = text(at(f, 1)), out.id = text(at(f, 2));
      out.key = at(f, 3).is_nil() ? "-" : text(at(f, 3));
      out.created = number(at(f, 4)), out.body = bytes(at(f, 5)), out.hold = number(at(f, 6));
      out.behind = at(f, 7) == Value(true), out.context = number(at(f, 8));
      out.kind = text(at(f, 9)), out.text = text(at(f, 10)), out.trace = text(at(f, 11));
      out.named = at(f, 12) == Value(true), out.final = at(f, 13) == Value(true);
      failures.push_back(out);
    }
    replies = items(at(message, 10));
    counts = at(message, 11).as<std::map<std::string, std::int64_t>>();
    if (!at(message, 15).is_nil()) objects = items(at(message, 15));
    emits = at(message, 12).as<std::map<std::string, std::int64_t>>();
  }
};

class Engine {
 public:
  using Declare = std::function<void(grape::Worker&)>;

  Value limits = Value(Value::Map());
  Value::Array taken{Value("out"), Value("total")};
  bool has_topology = true;  ///< in the welcome: what the worker describes, and what follows
  std::vector<std::string> outputs{"out", "total", "dropped"};
  std::vector<std::array<std::string, 3>> foreign;  ///< event, node, pool
  Value namespaces = grape::map({{"app", "write"}, {"photos", "read"}});
  double heartbeat = 30.0;
  int partitions = 4;

  explicit Engine(const Declare& declare, std::vector<std::string> more = {}) { start(declare, std::move(more)); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    if (fd_ >= 0) ::close(fd_);
  }

  void send(const Value& message) { send_bytes(packed(message)); }
  void send_bytes(const std::string& message) {
    Buffer frame(4, '\0');
    frame += message;
    grape::detail::close_frame(frame);
    send_raw(frame);
  }
  void send_raw(const std::string& frame) {
    for (std::size_t sent = 0; sent < frame.size();) {
      const ssize_t part = ::send(fd_, frame.data() + sent, frame.size() - sent, MSG_NOSIGNAL);
      REQUIRE(part > 0);
      sent += static_cast<std::size_t>(part);
    }
  }

  /// The next message, without beats (unless they are asked for).
  Value receive(bool beats = false) {
    while (true) {
      std::string head = read(4);
      REQUIRE(head.size() == 4);
      const std::string message = read(grape::detail::load_u32(head, 0));
      Value value = grape::Raw(message).as<Value>();
      if (beats || number(at(value, 0)) != tag::beat) return value;
    }
  }
  Result result() { return Result(receive()); }

  /// Hello, welcome.
  Value join() {
    Value hello = receive();
    REQUIRE(number(at(hello, 0)) == tag::hello);
    send(Value::Array{tag::welcome, 1, "cpp", "cpp.0", partitions, limits, taken, Value::Array(), 0, heartbeat, 1000,
                      has_topology ? merged(at(hello, 4)) : Value(), Value::Map(), namespaces, Value::Map(), "a field of later versions"});
    return hello;
  }
  void assign(int partition, int epoch = 1, bool empty = true, const Value::Array& held = {}) {
    send(Value::Array{tag::assign, partition, epoch, held, empty, true});
  }

  static Value batch(int position, const std::string& body, int events, const Value& done = grape::list({0, Bytes()}), int contexts = 0,
                     bool calls = false) {
    return Value::Array{position, "id-" + std::to_string(position) + "-", 1'700'000'000'000'000, events, Bytes(body), done, contexts,
                        calls};
  }
  static Value retry(int hold, const std::string& node, const std::string& id, const std::string& body, int attempt = 2, bool rest = false,
                     int context = -1, int deaths = 0) {
    return Value::Array{hold, node, id, attempt, deaths, 5, Bytes(body), rest, context};
  }

  struct Work {
    int partition = 0, epoch = 1, seq = 1;
    Value::Array batches, retries, named;
    bool careful = false;
    int context_base = 0;
    Value::Map deadlines;
  };
  void work(const Work& w) {
    send(Value::Array{tag::work, w.partition, w.epoch, w.seq, w.batches, w.retries, w.careful, w.named, w.context_base, w.deadlines});
  }
  /// One batch, and its result.
  Result run(const std::vector<In>& events, int partition = 0, int contexts = 0) {
    Work w;
    w.partition = partition;
    w.seq = ++seq_;
    w.batches.push_back(batch(seq_, run_of(events), static_cast<int>(events.size()), grape::list({0, Bytes()}), contexts));
    work(w);
    return result();
  }

  void drain() { send(Value::Array{tag::drain}); }
  void hang_up() {
    ::close(fd_);
    fd_ = -1;
  }
  /// Exit code, or minus the signal.
  int wait() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  /// What it wrote to standard error.
  std::string printed() {
    std::string out;
    char part[4096];
    for (ssize_t got = 0; (got = ::read(errors_, part, sizeof part)) > 0;) out.append(part, static_cast<std::size_t>(got));
    return out;
  }

 private:
  int fd_ = -1;
  int errors_ = -1;
  pid_t pid_ = -1;
  int seq_ = 0;

  [[nodiscard]] Value merged(const Value& own) const {
    Value::Array nodes;
    Value::Array slots;
    Value::Array outs;
    for (const auto& node : items(own["nodes"]))
      nodes.push_back(grape::map({{"name", node["name"]}, {"pool", "cpp"}, {"states", node["states"]}}));
    for (const auto& slot : items(own["slots"])) slots.push_back(slot);
    for (const auto& [event, node, pool] : foreign) {
      nodes.push_back(grape::map({{"name", node}, {"pool", pool}}));
      slots.push_back(grape::map({{"event", event}, {"node", node}}));
    }
    for (const auto& output : outputs) outs.emplace_back(output);
    return grape::map({{"name", "app"}, {"nodes", nodes}, {"slots", slots}, {"outputs", outs}, {"pools", Value::Array()}});
  }

  void start(const Declare& declare, std::vector<std::string> more) {
    int ends[2];
    int pipes[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    REQUIRE(::pipe(pipes) == 0);
    const std::string parent = std::to_string(::getpid());
    pid_ = ::fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      ::close(ends[0]);
      ::dup2(pipes[1], STDERR_FILENO);
      ::signal(SIGABRT, SIG_DFL);  // doctest's handlers are not for this process
      ::signal(SIGSEGV, SIG_DFL);
      std::vector<std::string> words{"worker"};
      words.insert(words.end(), more.begin(), more.end());
      for (const auto& word : {std::string("--fd"), std::to_string(ends[1]), std::string("--parent"), parent}) words.push_back(word);
      std::vector<char*> argv;
      for (auto& word : words) argv.push_back(word.data());
      argv.push_back(nullptr);
      if (!declare) {  // the words are a program's
        ::execv(more[0].c_str(), argv.data() + 1);
        ::_exit(127);
      }
      grape::Worker worker(static_cast<int>(argv.size()) - 1, argv.data());
      declare(worker);
      const int code = worker.run();
      ::_exit(code);
    }
    ::close(ends[1]);
    ::close(pipes[1]);
    fd_ = ends[0];
    errors_ = pipes[0];
  }

  std::string read(std::size_t size) {
    std::string out(size, '\0');
    for (std::size_t have = 0; have < size;) {
      pollfd wait{fd_, POLLIN, 0};
      REQUIRE(::poll(&wait, 1, 20'000) == 1);
      const ssize_t got = ::recv(fd_, out.data() + have, size - have, 0);
      if (got <= 0) return out.substr(0, have);
      have += static_cast<std::size_t>(got);
    }
    return out;
  }
};

}  // namespace fake
