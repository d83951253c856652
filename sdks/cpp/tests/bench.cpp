// How many events a second a worker counts: keyed state and one emit each, works as the engine makes them, no engine behind.
#include <sys/socket.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "grape/worker.hpp"

using grape::Bytes;
using grape::Value;
using grape::detail::Buffer;

namespace {

void send(int fd, const Value& message) {
  Buffer frame(4, '\0');
  grape::detail::pack_value(frame, message, 0);
  grape::detail::close_frame(frame);
  for (std::size_t sent = 0; sent < frame.size();)
    sent += static_cast<std::size_t>(::send(fd, frame.data() + sent, frame.size() - sent, 0));
}

std::string receive(int fd) {
  const auto read = [fd](std::size_t size) {
    std::string out(size, '\0');
    for (std::size_t have = 0; have < size;) have += static_cast<std::size_t>(::recv(fd, out.data() + have, size - have, 0));
    return out;
  };
  const std::string head = read(4);
  return read(grape::detail::load_u32(head, 0));
}

}  // namespace

int main() {
  constexpr int events = 8'192;
  constexpr int works = 1'000;
  constexpr int keys = 5'000;
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) return 1;
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(ends[0]);
    std::string fd = std::to_string(ends[1]);
    char words[4][10] = {"worker", "--fd", "", ""};
    fd.copy(words[2], 9);
    char* argv[] = {words[0], words[1], words[2], nullptr};
    grape::Worker worker(3, argv);
    worker.slot("word", grape::Slot("Count").state("count").emits("total"), [](grape::Event& event) {
      auto count = event.state("count");
      const auto total = count.get<std::int64_t>() + 1;
      count.set(total);
      event.emit("total", total);
    });
    ::_exit(worker.run());
  }
  ::close(ends[1]);
  const int fd = ends[0];
  receive(fd);
  const Value topology = grape::map({{"name", "app"},
                                     {"nodes", grape::list({grape::map({{"name", "Count"}, {"pool", "cpp"}})})},
                                     {"slots", grape::list({grape::map({{"event", "word"}, {"node", "Count"}})})},
                                     {"outputs", grape::list({"total"})}});
  send(fd, Value::Array{1, 1, "cpp", "cpp.0", 32, Value(Value::Map()), grape::list({"total"}), Value::Array(), 0, 30.0, 1000, topology});
  send(fd, Value::Array{2, 0, 1, Value::Array(), true, true});
  std::vector<std::string> bodies;
  for (int b = 0; b < 16; ++b) {
    Value::Array names;
    Buffer column;
    grape::detail::pack_array(column, events);
    for (int i = 0; i < events; ++i) grape::detail::pack_str(column, "word-" + std::to_string((b * 7'919 + i * 31) % keys));
    Buffer meta;
    grape::detail::pack_value(meta, grape::map({{"names", grape::list({"word"})}}), 0);
    Buffer body;
    for (const std::size_t size : {std::size_t{events}, meta.size(), column.size(), std::size_t{0}}) grape::detail::append_u32(body, size);
    bodies.push_back(body + meta + column);
  }
  const auto start = std::chrono::steady_clock::now();
  for (int seq = 0; seq < works + 2; ++seq) {
    if (seq < works) {
      const std::string& body = bodies[static_cast<std::size_t>(seq) % bodies.size()];
      send(fd, Value::Array{4, 0, 1, seq, grape::list({Value::Array{seq, "id-", 0, events, Bytes(body), grape::list({0, Bytes()})}}),
                            Value::Array()});
    }
    if (seq >= 2) receive(fd);  // the engine has up to three works out
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%.2f million events/s\n", events * double{works} / seconds / 1e6);
  ::close(fd);
  ::waitpid(child, nullptr, 0);
}
