// The C interface, and shared objects.
#include <doctest/doctest.h>

#include <cstring>

#include "fake_engine.hpp"
#include "grape/grape.h"

using fake::Engine;
using grape::Value;

TEST_CASE("grape-run-so loads a shared object") {
  Engine engine(nullptr, {GRAPE_RUN_SO, GRAPE_COUNT_SO});
  const Value hello = engine.join();
  CHECK(fake::text(fake::at(hello, 3)) == "cpp");
  engine.assign(0);
  const auto result = engine.run({{"word", "a", 1}, {"word", "a", 1}, {"word", "b", 1}});
  CHECK(result.states.at("Count").at("a") == grape::map({{"count", 2}}));
  CHECK(result.states.at("Count").at("b") == grape::map({{"count", 1}}));
  CHECK(result.failures.empty());
  REQUIRE(result.emitted.size() == 3);
  CHECK(result.emitted[0].target == ">total");
  CHECK(result.emitted[0].data == Value(1));
  engine.drain();
  CHECK(engine.wait() == 0);
}

TEST_CASE("grape-run-so refuses what it cannot load") {
  Engine engine(nullptr, {GRAPE_RUN_SO, "/nowhere.so"});
  const Value refusal = engine.receive();
  CHECK(fake::number(fake::at(refusal, 0)) == fake::tag::refusal);
  CHECK(fake::text(fake::at(refusal, 1)) == "usage");
  CHECK(engine.wait() == 2);
}

TEST_CASE("the rate of a slot from C") {
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  const pid_t pid = ::fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    ::close(ends[0]);
    std::string words[] = {"worker", "--fd", std::to_string(ends[1])};
    char* argv[] = {words[0].data(), words[1].data(), words[2].data(), nullptr};
    grape_worker* worker = grape_worker_new(3, argv);
    grape_slot_options options;
    grape_slot_defaults(&options, "N");
    const auto handler = [](grape_event*, void*) {};
    grape_slot(worker, "any", &options, handler, nullptr);
    options.rate = "90/min";
    options.burst = 3;
    grape_slot(worker, "rated", &options, handler, nullptr);
    ::_exit(grape_run(worker));
  }
  ::close(ends[1]);
  {
    grape::detail::Channel channel(ends[0]);
    grape::detail::Frame hello = channel.receive();
    const Value topology = fake::at(grape::Raw(hello.message()).as<Value>(), 4);
    const Value& any = fake::at(topology["slots"], 0);
    const Value& rated = fake::at(topology["slots"], 1);
    CHECK(any["rate"] == Value(0.0));
    CHECK(any["burst"] == Value(1));
    CHECK(rated["rate"] == Value(1.5));
    CHECK(rated["burst"] == Value(3));
  }  // the stream ends
  int status = -1;
  ::waitpid(pid, &status, 0);
  CHECK(status == 0);
}

TEST_CASE("plain values from C") {
  unsigned char packed[9];
  std::int64_t number = 0;
  CHECK(grape_read_int(packed, grape_write_int(packed, -5'000'000'000), &number) == 0);
  CHECK(number == -5'000'000'000);
  double real = 0;
  CHECK(grape_read_double(packed, grape_write_double(packed, 2.5), &real) == 0);
  CHECK(real == 2.5);
  CHECK(grape_read_int(packed, grape_write_double(packed, 2.5), &number) == -1);
  const char* text = nullptr;
  std::size_t size = 0;
  CHECK(grape_read_text("\xA2hi", 3, &text, &size) == 0);
  CHECK(std::string(text, size) == "hi");
  CHECK(grape_read_text("\xA2hi!", 4, &text, &size) == -1);
}
