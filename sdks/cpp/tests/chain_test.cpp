// What nodes of one program emit to each other: at once, where it is declared.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "fake_engine.hpp"

using namespace std::chrono_literals;
using fake::at;
using fake::Engine;
using fake::In;
using fake::number;
using fake::Result;
using fake::text;
using grape::Event;
using grape::Slot;
using grape::Value;
using grape::Worker;
namespace tag = fake::tag;

namespace {

/// Emits what it is told to: a list of [name, data, key], or fails of a text, or never ends (true).
void obey(Event& event) {
  auto n = event.state("n");
  n.set(n.get<std::int64_t>(0) + 1);
  event.reply(event.id());
  const auto data = event.as<Value>();
  if (const auto* list = data.get_if<Value::Array>()) {
    for (const auto& one : *list) {
      grape::Emit how;
      if (!at(one, 2).is_nil()) how.key(text(at(one, 2)));
      event.emit(text(at(one, 0)), at(one, 1), how);
    }
  }
  if (event.name() == "c") event.emit("out", grape::list({event.id(), n.get<std::int64_t>()}));
  if (const auto* words = data.get_if<std::string>()) {
    if (words->size() < 100) throw std::runtime_error(*words);
  }
  volatile bool goes_on = data == Value(true);
  while (goes_on) {
  }
}

void chain(Worker& worker) {
  worker.slot("a", Slot("A").state("n").emits({"b", "b2", "c"}).retries(1), obey);
  worker.slot("b", Slot("B").state("n").emits("c").retries(1), obey);
  worker.slot("b2", Slot("B").state("n").emits("c").retries(1), obey);
  worker.slot("c", Slot("C").state("n").emits("out").retries(1).timeout(300ms), obey);
  worker.slot("b", Slot("Logged").chain(false), [](Event&) {});
  worker.slot("both", Slot("One").emits("c"), [](Event& event) { event.emit("c", Value()); });
  worker.slot("both", Slot("Two").emits("c"), [](Event& event) { event.emit("c", Value()); });
  worker.slot("x", Slot("X").emits("y"), [](Event& event) { event.emit("y", event.data()); });
  worker.slot("y", Slot("Y").emits("x"), [](Event&) {});
}

Value emit(const std::string& name, const Value& data, const Value& key = Value()) { return grape::list({name, data, key}); }

std::vector<std::string> ids_of(const Result& result) {
  std::vector<std::string> ids;
  for (const auto& event : result.emitted) {
    if (event.target == ">out") ids.push_back(text(at(event.data, 0)));
  }
  return ids;
}

}  // namespace

TEST_CASE("chained events run at once, in the order of the emits") {
  Engine engine(&chain);
  engine.partitions = 1;
  engine.join();
  engine.assign(0);
  const Value inner = grape::list({emit("c", 1)});
  const Result result = engine.run({{"a", "k", grape::list({emit("b", inner), emit("b2", inner), emit("c", 2)})}, {"a", "l", inner}});
  auto ids = ids_of(result);
  std::sort(ids.begin(), ids.end());
  CHECK(ids == std::vector<std::string>{"id-1-0.0.0", "id-1-0.1.0", "id-1-0.2", "id-1-1.0"});
  CHECK(result.states.at("B").at("k")["n"] == Value(2));
  CHECK(result.states.at("C").at("k")["n"] == Value(3));
  CHECK(result.counts == std::map<std::string, std::int64_t>{{"a>A", 2}, {"b>B", 1}, {"b2>B", 1}, {"c>C", 4}});
  for (const auto& event : result.emitted) {
    if (event.target == ">out") {
      const std::string id = text(at(event.data, 0));
      CHECK(event.hops == std::count(id.begin(), id.end(), '.') + 1);
    }
    if (event.target == "cpp") CHECK(event.only == std::vector<std::string>{"Logged"});
  }
}

TEST_CASE("what two nodes emit for one event has ids of its own") {
  Engine engine(&chain);
  engine.partitions = 1;
  engine.join();
  engine.assign(0);
  auto ids = ids_of(engine.run({{"both", "k", Value()}}));
  std::sort(ids.begin(), ids.end());
  CHECK(ids == std::vector<std::string>{"id-1-0.0", "id-1-0.1-0"});
}

TEST_CASE("what does not chain goes by the log") {
  Engine engine(&chain);
  engine.foreign.push_back({"b", "Far", "other"});
  engine.join();
  engine.assign(3);
  const Result result = engine.run({{"a", "a", grape::list({emit("b", 1), emit("b", 2, "b")})}, {"x", "a", 3}}, 3);
  std::vector<std::string> seen;
  for (const auto& event : result.emitted) {
    seen.push_back(event.target + " " + std::to_string(event.partition) + " " + event.name + " " + std::to_string(event.only.size()));
  }
  std::sort(seen.begin(), seen.end());
  CHECK(seen == std::vector<std::string>{"cpp 1 b 0", "cpp 3 b 1", "cpp 3 y 0", "other 1 b 0", "other 3 b 0"});
  CHECK(result.counts.at("b>B") == 1);
}

TEST_CASE("a stage asks for its state at once, and contexts are handed on") {
  Engine engine(&chain);
  engine.partitions = 1;
  engine.join();
  engine.assign(0, 1, false);
  Engine::Work work;
  const Value both = grape::list({emit("c", 1, "k1"), emit("c", 2, "k0")});
  work.batches.push_back(Engine::batch(1, fake::run_of({{"a", Value("k"), both, 0, 0}}), 1, grape::list({0, grape::Bytes()}), 1));
  engine.work(work);
  for (const std::vector<std::string>& keys : {std::vector<std::string>{"k"}, {"k0", "k1"}}) {
    const Value ask = engine.receive();
    REQUIRE(number(at(ask, 0)) == tag::ask);
    std::vector<std::string> asked;
    for (const auto& key : fake::items(at(ask, 4))) asked.push_back(fake::bytes(key));
    CHECK(asked == keys);
    engine.send(Value::Array{tag::values, Value::Array(keys.size(), Value(grape::Bytes(fake::packed(grape::map({{"n", 4}})))))});
  }
  const Result result = engine.result();
  CHECK(result.states.at("C").at("k1")["n"] == Value(5));
  CHECK(result.replies.size() == 3);
  for (const auto& reply : result.replies) CHECK(number(at(reply, 0)) == 0);
}

TEST_CASE("a chained event fails alone, its key waits, and a retry goes on from there") {
  Engine engine(&chain);
  engine.partitions = 1;
  engine.join();
  engine.assign(0);
  const Value inner = grape::list({emit("c", 1)});
  const Result result = engine.run({{"a", "k", grape::list({emit("b", "no"), emit("b", inner), emit("c", 2)})}});
  REQUIRE(result.failures.size() == 2);
  CHECK((result.failures[0].node + " " + result.failures[0].id + " " + result.failures[0].text) == "B id-1-0.0 no");
  CHECK(result.failures[1].behind);
  CHECK(ids_of(result) == std::vector<std::string>{"id-1-0.2"});
  Engine::Work work;
  work.seq = 9;
  for (int i = 0; i < 2; ++i) {
    const auto& failed = result.failures[static_cast<std::size_t>(i)];
    work.retries.push_back(Engine::retry(7 + i, "B", failed.id, failed.body));
  }
  engine.work(work);
  const Result again = engine.result();
  CHECK(again.retried == std::vector<std::int64_t>{8});
  CHECK(again.failures.at(0).hold == 7);
  CHECK(ids_of(again) == std::vector<std::string>{"id-1-0.1.0"});
}

TEST_CASE("too much of a root event is its failure, and undoes nothing else") {
  Engine engine(&chain);
  engine.partitions = 1;
  engine.limits = grape::map({{"max_result", 20'000}, {"max_event", 10'000}});
  engine.join();
  engine.assign(0);
  const auto large = [](int count) {
    return grape::list({emit("b", Value(Value::Array(static_cast<std::size_t>(count), emit("c", std::string(1'000, 'x')))))});
  };
  std::vector<In> events(60, In{"a", "w", Value()});  // larger chunks from then on
  for (int i = 0; i < 20; ++i) events.push_back({"a", Value("k" + std::to_string(i)), large(2)});
  events.push_back({"a", Value("big"), large(9)});
  events.push_back({"a", Value("z"), large(1)});
  Engine::Work work;
  work.batches.push_back(Engine::batch(1, fake::run_of(events), 82));
  engine.work(work);
  std::map<std::string, std::int64_t> counts;
  std::vector<fake::Failed> failures;
  std::int64_t done = 0;
  for (bool has_ended = false; !has_ended;) {
    const Value message = engine.receive();
    if (number(at(message, 0)) == tag::ask) {  // nothing was stored yet
      engine.send(Value::Array{tag::values, Value::Array(fake::items(at(message, 4)).size(), Value())});
      continue;
    }
    const Result result(message);
    for (const auto& [name, count] : result.counts) counts[name] += count;
    failures.insert(failures.end(), result.failures.begin(), result.failures.end());
    if (!result.done.empty()) done = result.done.at(1).first;
    has_ended = !result.ended.empty();
  }
  CHECK(done == 82);
  CHECK(counts == std::map<std::string, std::int64_t>{{"a>A", 81}, {"b>B", 21}, {"c>C", 41}});
  REQUIRE(failures.size() == 1);
  CHECK((failures[0].node + " " + failures[0].key + " " + failures[0].kind) == "A big too-large");
}

TEST_CASE("careful mode announces chained events, and a stuck one is told by its id") {
  Engine engine(&chain);
  engine.partitions = 1;
  engine.join();
  engine.assign(0);
  Engine::Work work;
  work.careful = true;
  const Value inner = grape::list({emit("c", 1)});
  work.batches.push_back(Engine::batch(1, fake::run_of({{"a", "k", grape::list({emit("b", inner), emit("b", inner)})}}), 1));
  engine.work(work);
  std::vector<std::string> announced;
  Value message = engine.receive();
  for (; number(at(message, 0)) == tag::announce; message = engine.receive()) announced.push_back(text(at(message, 3)));
  CHECK(announced == std::vector<std::string>{"id-1-0", "id-1-0.0", "id-1-0.0.0", "id-1-0.1", "id-1-0.1.0"});
  CHECK(Result(message).done.at(1).first == 1);
  CHECK(Result(engine.receive()).ended == std::vector<std::int64_t>{1});
  Engine::Work stuck;
  stuck.seq = 2;
  stuck.batches.push_back(Engine::batch(2, fake::run_of({{"a", "k", grape::list({emit("c", 1), emit("c", true)})}}), 1));
  engine.work(stuck);
  message = engine.receive();
  REQUIRE(number(at(message, 0)) == tag::stuck);
  CHECK((text(at(message, 3)) + " " + text(at(message, 4))) == "id-2-0.1 C");
  CHECK(engine.wait() == 70);
}

TEST_CASE("pairs chain as the engine takes it") {
  grape::detail::TopologySpec app;
  for (const auto* node : {"A", "B", "C", "D", "E"}) app.nodes.push_back({node, "p", {}, false});
  const auto slot = [&](const std::string& node, std::vector<std::string> emits) {
    grape::detail::SlotSpec& spec = app.slots.emplace_back();
    spec.event = spec.node = node;
    spec.emits = std::move(emits);
  };
  slot("A", {"B"}), slot("B", {"C", "D"}), slot("C", {"A", "D"}), slot("D", {"E"}), slot("E", {"E"});
  CHECK(grape::detail::chained_pairs(app) == grape::detail::Pairs{{"B", "D"}, {"C", "D"}, {"D", "E"}});
  app.slots[3].chain = false;
  app.nodes[4].is_async = true;
  CHECK(grape::detail::chained_pairs(app).empty());
}
