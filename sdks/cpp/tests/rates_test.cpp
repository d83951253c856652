// Slots with a rate: how it is written, and what happens while an event waits for its turn.
#include <doctest/doctest.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fake_engine.hpp"

using namespace std::chrono_literals;
using fake::at;
using fake::Engine;
using fake::number;
using fake::Result;
using fake::text;
using grape::Event;
using grape::Slot;
using grape::Value;
using grape::Worker;
namespace tag = fake::tag;

namespace {

void rated(Worker& worker) {
  const auto slot = Slot("Paced").rate("10/s").burst(3).timeout(200ms).retries(0);
  worker.slot("paced", slot, [](Event& event) { event.emit("out", event.data()); });
  worker.slot("both", Slot("Free"), [](Event& event) { event.emit("out", "free"); });
  worker.slot("both", Slot("Rated").rate(2.5), [](Event& event) { event.emit("out", "rated"); });
  worker.slot("plain", Slot("Plain").emits("paced"), [](Event& event) { event.emit("paced", event.data()); });
}

Engine::Work work(int seq, const std::vector<fake::In>& events, int partition = 0, bool careful = false) {
  Engine::Work out;
  out.seq = seq;
  out.partition = partition;
  out.careful = careful;
  out.batches.push_back(Engine::batch(seq, fake::run_of(events), static_cast<int>(events.size())));
  return out;
}

void asks(Engine& engine, const std::string& event = "paced", const std::string& node = "Paced") {
  const Value asked = engine.receive();
  CHECK(number(at(asked, 0)) == tag::lease);
  CHECK(text(at(asked, 1)) == event);
  CHECK(text(at(asked, 2)) == node);
  CHECK(number(at(asked, 3)) == 1);
}

void give(Engine& engine, const std::string& event = "paced", const std::string& node = "Paced") {
  engine.send(Value::Array{tag::leased, event, node, 1});
}

}  // namespace

TEST_CASE("how rates are written") {
  using grape::detail::rate_of;
  const std::vector<std::pair<std::string, double>> rates{{"100/s", 100},    {"30/min", 0.5}, {"7200 / h", 2},
                                                          {"86400/day", 1}, {" 1.5/sec ", 1.5}, {"0.3/second", 0.3}};
  for (const auto& [written, rate] : rates) CHECK(rate_of(std::string_view(written)).value_or(0) == rate);
  for (const auto* written : {"100", "/s", "-1/s", "0/s", "5/fortnight", "nan/s", "1e3/s", "5./s", "1/s/s", "", "9999999999/s"})
    CHECK_FALSE(rate_of(std::string_view(written)));
  CHECK(rate_of(2.5).value_or(0) == 2.5);
  for (const double rate : {0.0, -2.0, 1e300}) CHECK_FALSE(rate_of(rate));
}

TEST_CASE("they are told") {
  Engine engine(&rated);
  const Value hello = engine.join();
  const Value& slots = at(hello, 4)["slots"];
  CHECK(at(slots, 0)["rate"] == Value(10.0));
  CHECK(at(slots, 0)["burst"] == Value(3));
  CHECK(at(slots, 1)["rate"] == Value(0.0));
  CHECK(at(slots, 1)["burst"] == Value(1));
  CHECK(at(slots, 2)["rate"] == Value(2.5));
  engine.drain();
  CHECK(engine.wait() == 0);
}

TEST_CASE("what cannot be declared is refused") {
  Engine engine([](Worker& worker) {
    worker.slot("a", Slot("A").rate("5/fortnight").burst(2), [](Event&) {});
    worker.slot("b", Slot("B").rate(0.0), [](Event&) {});
    worker.slot("c", Slot("C").burst(3), [](Event&) {});
    worker.slot("d", Slot("D").rate(1).burst(0), [](Event&) {});
  });
  const Value refusal = engine.receive();
  CHECK(text(at(refusal, 1)) == "topology");
  const std::string why = text(at(refusal, 2));
  for (const auto* part : {"a rate is events a second, or text such as '100/s', '20/min' or '500/h', not '5/fortnight'", "not 0.000000",
                           "burst 3 belongs to a rate, and there is none", "burst is a whole number from 1 to 1000000, not 0"})
    CHECK(why.find(part) != std::string::npos);
  CHECK(why.find("burst 2") == std::string::npos);
  CHECK(engine.wait() == 2);
}

TEST_CASE("none begins before its turn; meanwhile no time-out runs, and something is said to") {
  Engine engine(&rated);
  engine.heartbeat = 0.6;
  engine.join();
  engine.assign(0);
  engine.work(work(1, {{"paced", "k", 1}}));
  asks(engine);
  engine.receive(true);  // it may have been on its way
  for (int i = 0; i < 5; ++i) CHECK(engine.receive(true) == grape::list({tag::beat, true}));
  give(engine);
  CHECK(engine.result().emitted.size() == 1);
  CHECK(engine.result().ended == std::vector<std::int64_t>{1});
  engine.drain();
  CHECK(engine.wait() == 0);
}

TEST_CASE("what is done is handed in while the next one waits for its turn") {
  Engine engine(&rated);
  engine.join();
  engine.assign(0);
  engine.work(work(1, {{"paced", "k", 1}, {"paced", "k", 2}}));
  asks(engine);
  give(engine);
  const Result first = engine.result();
  CHECK(first.done.at(1).first == 1);
  CHECK(first.ended.empty());
}

TEST_CASE("an event begins at none of its nodes before its turn") {
  Engine engine(&rated);
  engine.join();
  engine.assign(0);
  engine.work(work(1, {{"both", "k", 1}}));
  asks(engine, "both", "Rated");
  give(engine, "both", "Rated");
  CHECK(engine.result().emitted.size() == 2);
}

TEST_CASE("what keeps an event from running keeps it from asking; a retry asks") {
  Engine engine(&rated);
  engine.join();
  engine.assign(0, 1, true, Value::Array{grape::list({"Paced", "k"})});
  engine.work(work(1, {{"paced", "k", 1}}));
  const Result behind = engine.result();
  REQUIRE(behind.failures.size() == 1);
  CHECK(behind.failures[0].behind);
  CHECK(engine.result().ended == std::vector<std::int64_t>{1});
  Engine::Work retry;
  retry.seq = 2;
  retry.retries.push_back(Engine::retry(7, "Paced", behind.failures[0].id, fake::run_of({{"paced", "k", 1}})));
  engine.work(retry);
  asks(engine);
  give(engine);
  CHECK(engine.result().retried == std::vector<std::int64_t>{7});
}

TEST_CASE("in careful mode an event is announced when its turn has come") {
  Engine engine(&rated);
  engine.join();
  engine.assign(0);
  engine.work(work(1, {{"paced", "k", 1}}, 0, true));
  asks(engine);
  give(engine);
  CHECK(number(at(engine.receive(), 0)) == tag::announce);
  CHECK(engine.result().emitted.size() == 1);
}

TEST_CASE("works without such events are done as a whole, and what is emitted to such a slot goes by the log") {
  Engine engine(&rated);
  engine.join();
  engine.assign(0);
  const Result result = engine.run({{"plain", "k", 1}, {"plain", "k", 2}});
  CHECK(result.ended.size() == 1);
  REQUIRE(result.emitted.size() == 2);
  CHECK(result.emitted[0].target == "cpp");
}

TEST_CASE("a worker that is to end does so while an event waits") {
  Engine engine(&rated);
  engine.join();
  engine.assign(0);
  engine.work(work(1, {{"paced", "k", 1}, {"paced", "l", 2}}));
  asks(engine);
  engine.work(work(2, {{"paced", "m", 3}}));
  engine.drain();
  CHECK(engine.wait() == 0);
}

TEST_CASE("a partition that is taken away takes along what waits; the question is answered to whoever comes next") {
  Engine engine(&rated);
  engine.join();
  engine.assign(0);
  engine.assign(1);
  engine.work(work(1, {{"paced", "k", 1}}));
  asks(engine);
  engine.send(Value::Array{tag::revoke, 0, 1});
  CHECK(engine.run({{"plain", "k", 2}}, 1).emitted.size() == 1);
  engine.work(work(9, {{"paced", "k", 3}}, 1));
  give(engine);
  const Result result = engine.result();
  REQUIRE(result.emitted.size() == 1);
  CHECK(result.emitted[0].data == Value(3));
}
