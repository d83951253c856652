// Objects in handlers: what the chapter of the conformance suite does not ask.
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "fake_engine.hpp"
#include "grape/grape.h"

using fake::at;
using fake::bytes;
using fake::Engine;
using fake::number;
using fake::text;
using grape::Bytes;
using grape::Event;
using grape::Slot;
using grape::Value;
using grape::Worker;
namespace tag = fake::tag;

namespace {

/// Answers questions for objects, as if nothing was there but what was brought, until something else comes.
Value beside_objects(Engine& engine, std::vector<std::string>& brought) {
  while (true) {
    Value message = engine.receive();
    const auto kind = number(at(message, 0));
    if (kind == tag::keep) {
      if (brought.empty() || at(message, 7) == Value(true)) brought.emplace_back();
      brought.back() += bytes(at(message, 4));
      const bool is_last = at(message, 5) == Value(true);
      engine.send(Value::Array{tag::fetched, at(message, 3), Value(), Bytes(is_last ? grape::detail::Sha256::of(brought.back()) : "")});
    } else if (kind == tag::fetch) {
      engine.send(Value::Array{tag::fetched, at(message, 3)});
    } else {
      return message;
    }
  }
}

fake::Result run(Engine& engine, const std::vector<fake::In>& events, std::vector<std::string>& brought) {
  static int seq = 100;
  Engine::Work work;
  work.seq = ++seq;
  work.batches.push_back(Engine::batch(seq, fake::run_of(events), static_cast<int>(events.size())));
  engine.work(work);
  return fake::Result(beside_objects(engine, brought));
}

}  // namespace

TEST_CASE("SHA-256") {
  using grape::detail::hex_of;
  using grape::detail::Sha256;
  CHECK(hex_of(Sha256::of("")) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(hex_of(Sha256::of("abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(hex_of(Sha256::of(std::string(55, 'a'))) == "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318");
  CHECK(hex_of(Sha256::of(std::string(56, 'a'))) == "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a");
  CHECK(hex_of(Sha256::of(std::string(1'000'000, 'a'))) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("what comes while a handler waits for an object is done behind it") {
  Engine engine([](Worker& worker) {
    worker.slot("get", Slot("Get"), [](Event& event) { event.emit("out", event.storage().get("k")); });
  });
  engine.join();
  engine.assign(0);
  Engine::Work work;
  work.seq = 1;
  work.batches.push_back(Engine::batch(1, fake::run_of({{"get", "a", 1}}), 1));
  engine.work(work);
  const Value asked = engine.receive();
  REQUIRE(number(at(asked, 0)) == tag::fetch);
  CHECK(text(at(asked, 4)) == "read");
  CHECK(text(at(asked, 5)) == "app");
  engine.send(Value::Array{tag::revoke, 0, 1});
  engine.assign(0, 2);
  work.epoch = 2;
  work.seq = 2;
  engine.work(work);
  engine.drain();
  engine.send(Value::Array{tag::fetched, at(asked, 3), Value::Array{1, 2}, Bytes("hi")});
  CHECK(engine.result().emitted[0].data == Value("hi"));
  const Value again = engine.receive();
  engine.send(Value::Array{tag::fetched, at(again, 3), Value(), Bytes(), Value::Array(), "", Value::Array{"stale", "it is another worker's"}});
  const auto failed = engine.result();
  REQUIRE(failed.failures.size() == 1);
  CHECK(failed.failures[0].kind == "handler");
  CHECK(failed.failures[0].text == "stale: it is another worker's");
  CHECK(engine.wait() == 0);
}

TEST_CASE("the engine goes while a handler waits for an object") {
  Engine engine([](Worker& worker) {
    worker.slot("get", Slot("Get"), [](Event& event) {
      try {
        event.emit("out", event.storage().get("k"));
      } catch (const std::exception&) {
        std::abort();
      }
    });
  });
  engine.join();
  engine.assign(0);
  Engine::Work work;
  work.batches.push_back(Engine::batch(1, fake::run_of({{"get", "a", 1}}), 1));
  engine.work(work);
  CHECK(number(at(engine.receive(), 0)) == tag::fetch);
  engine.hang_up();
  CHECK(engine.wait() == 0);
}

TEST_CASE("streams") {
  const std::string name = "/tmp/grape-stream-" + std::to_string(::getpid());
  std::ofstream(name, std::ios::binary) << std::string(2'500'000, 's');
  Engine engine([name](Worker& worker) {
    worker.slot("stream", Slot("Stream").retries(0), [name](Event& event) {
      std::ifstream file(event.key() == "missing" ? "/nowhere" : name, std::ios::binary);
      event.storage().put("s", file);
    });
  });
  engine.join();
  engine.assign(0);
  std::vector<std::string> brought;
  const auto result = run(engine, {{"stream", "a", 1}}, brought);
  REQUIRE(result.objects.size() == 1);
  CHECK(number(at(result.objects[0], 2)) == 2'500'000);
  CHECK(brought[0] == std::string(2'500'000, 's'));
  std::remove(name.c_str());
  CHECK(run(engine, {{"stream", "missing", 1}}, brought).failures[0].text == "the stream for object 's' cannot be read");
}

TEST_CASE("objects from C") {
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  const grape_handler handler = [](grape_event* event, void*) {
    const char* tags[] = {"b", "a"};
    const char* user[] = {"by", "me"};
    const grape_object_options options{"text/plain", tags, 2, user, 1, 0, 60};
    if (grape_object_put(event, nullptr, "k", "hello", 5, &options) != 0) return;
    const void* data = nullptr;
    size_t size = 0;
    if (grape_object_get(event, nullptr, "k", 1, 3, &data, &size) != 1) return grape_fail(event, "C", "get");
    if (std::string(static_cast<const char*>(data), size) != "el") return grape_fail(event, "C", "range");
    if (grape_object_get(event, "photos", "k", 0, -1, &data, &size) != 0 || data != nullptr) return grape_fail(event, "C", "none");
    grape_about about;
    if (grape_object_stat(event, nullptr, "k", &about) != 1) return grape_fail(event, "C", "stat");
    if (about.size != 5 || std::string(about.tags[0]) != "a" || std::string(about.user[1]) != "me" || about.expires == 0) {
      return grape_fail(event, "C", "about");
    }
    int left = 3;
    const grape_source source = [](const void** chunk, void* rest) -> int64_t {
      static const std::string much(50'000, 'c');
      *chunk = much.data();
      return --*static_cast<int*>(rest) >= 0 ? 50'000 : 0;
    };
    if (grape_object_put_chunks(event, nullptr, "large", source, &left, nullptr) != 0) return;
    int64_t seen = 0;
    const grape_each each = [](const grape_about*, void* count) { return (++*static_cast<int64_t*>(count), 0); };
    if (grape_object_list(event, nullptr, "", tags, 2, each, &seen) != 0 || seen != 0) return grape_fail(event, "C", "list");
    grape_object_remove(event, nullptr, "old");
    if (grape_event_attempt(event) > 1) grape_object_put(event, "photos", "k", "x", 1, nullptr);
  };
  const pid_t pid = ::fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    ::close(ends[0]);
    std::string words[] = {"worker", "--fd", std::to_string(ends[1])};
    char* argv[] = {words[0].data(), words[1].data(), words[2].data(), nullptr};
    grape_worker* worker = grape_worker_new(3, argv);
    grape_slot_options options;
    grape_slot_defaults(&options, "N");
    options.retries = 0;
    grape_slot(worker, "any", &options, handler, nullptr);
    ::_exit(grape_run(worker));
  }
  ::close(ends[1]);
  {
    grape::detail::Channel channel(ends[0]);
    const auto send = [&](const Value& message) {
      grape::detail::Buffer frame(4, '\0');
      frame += fake::packed(message);
      grape::detail::close_frame(frame);
      channel.send(frame);
    };
    const auto receive = [&] {
      while (true) {
        grape::detail::Frame frame = channel.receive();
        Value message = grape::Raw(frame.message()).as<Value>();
        if (number(at(message, 0)) != tag::beat) return message;
      }
    };
    const Value hello = receive();
    send(Value::Array{tag::welcome, 1, "main", "main.0", 1, Value::Map(), Value::Array(), Value::Array(), 0, 30.0, 1000, Value(), Value::Map(),
                      grape::map({{"app", "write"}, {"photos", "read"}})});
    send(Value::Array{tag::assign, 0, 1, Value::Array(), true, true});
    const auto finish = [&] {
      std::string whole;
      while (true) {
        const Value message = receive();
        if (number(at(message, 0)) == tag::result) return std::pair(fake::Result(message), whole);
        std::string digest;
        if (number(at(message, 0)) == tag::keep) {
          whole += bytes(at(message, 4));
          digest = grape::detail::Sha256::of(whole);
        }
        send(Value::Array{tag::fetched, at(message, 3), Value(), Bytes(digest)});
      }
    };
    send(Value::Array{tag::work, 0, 1, 1, Value::Array{Engine::batch(1, fake::run_of({{"any", "a", 1}}), 1)}});
    const auto [result, whole] = finish();
    CHECK(result.failures.empty());
    REQUIRE(result.objects.size() == 3);
    CHECK(text(at(result.objects[0], 1)) == "k");
    CHECK(number(at(result.objects[1], 2)) == 150'000);
    CHECK(number(at(result.objects[2], 2)) == -1);
    CHECK(whole == std::string(150'000, 'c'));
    send(Value::Array{tag::work, 0, 1, 2, Value::Array(), Value::Array{Engine::retry(7, "N", "x", fake::run_of({{"any", "a", 1}}))}});
    const auto second = finish().first;
    REQUIRE(second.failures.size() == 1);
    CHECK(second.failures[0].text == "node 'N' writes into the namespace 'photos', which its app may only read");
    CHECK(second.objects.empty());
  }
  int status = -1;
  ::waitpid(pid, &status, 0);
  CHECK(status == 0);
}
