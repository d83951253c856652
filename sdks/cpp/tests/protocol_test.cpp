// Frames, bodies and progress as bytes.
#include <doctest/doctest.h>

#include "fake_engine.hpp"
#include "grape/outbox.hpp"

using namespace grape::detail;
using namespace std::string_literals;
using fake::events_of;
using grape::Value;

namespace {

Routes routes_of(std::vector<std::pair<std::string, std::string>> slots) {
  TopologySpec topology;
  topology.name = "app";
  topology.outputs = {"out", "lost"};
  for (const auto& [event, node] : slots) {
    SlotSpec spec;
    spec.event = event;
    spec.node = node;
    topology.slots.push_back(spec);
    topology.nodes.push_back({node, node.substr(0, node.find('.')), {}});
  }
  return {topology, "p", {"out"}};
}

}  // namespace

TEST_CASE("the frames of the document") {
  CHECK(beat_frame() == "\x03\x00\x00\x00\x92\x24\xC3"s);
  CHECK(beat_frame(false) == "\x03\x00\x00\x00\x92\x24\xC2"s);
  Buffer body;
  append_single(body, "word", {"k", true}, "\x01", 0, false);
  CHECK(body == "\x01\x00\x00\x00\x0d\x00\x00\x00\x03\x00\x00\x00\x02\x00\x00\x00\x81\xa5names\x91\xa4word\x91\xa1k\x91\x01"s);
}

TEST_CASE("progress") {
  Progress progress;
  progress.first = 3;
  progress.behind = "\x05";  // 4 and 6
  CHECK(progress.is_done(2));
  CHECK_FALSE(progress.is_done(3));
  CHECK(progress.is_done(4));
  CHECK_FALSE(progress.is_done(5));
  CHECK(progress.is_done(6));
  CHECK_FALSE(progress.is_done(100));
  const auto up_to = [&](std::int64_t end) {
    Buffer out;
    progress.pack_up_to(out, end);
    return grape::Raw(out).as<Value>();
  };
  CHECK(up_to(0) == grape::list({3, grape::Bytes("\x05")}));
  CHECK(up_to(4) == grape::list({5, grape::Bytes("\x01")}));
  CHECK(up_to(6) == grape::list({7, grape::Bytes()}));
  CHECK(up_to(9) == grape::list({9, grape::Bytes()}));
}

TEST_CASE("an outbox sorts by target, partition and listeners") {
  const Routes routes = routes_of({{"a", "p.1"}, {"b", "p.1"}, {"c", "p.2"}, {"a", "q.1"}});
  const Limits limits;
  Outbox outbox(routes, limits, 4);
  const auto emit = [&](const std::string& name, std::size_t partition, std::int64_t hops = 1, std::int64_t context = -1) {
    const auto number = *routes.find(name);
    for (const auto lead : routes[number].leads) outbox.append(lead, partition, number, {"k", true}, "\x01", hops, context);
  };
  emit("a", 1);
  emit("c", 1, 2);
  emit("a", 1, 3, 7);
  emit("b", 1);
  emit("out", 2);
  emit("lost", 2);
  Buffer out;
  outbox.pack(out);
  std::map<std::string, std::vector<fake::Out>> by_target;
  const Value packed = grape::Raw(out).as<Value>();
  for (const auto& one : fake::items(packed)) by_target[fake::text(fake::at(one, 0))] = events_of(one);
  REQUIRE(by_target.size() == 3);
  REQUIRE(by_target["p"].size() == 4);
  CHECK(by_target["p"][0].name == "a");
  CHECK(by_target["q"].size() == 2);
  CHECK(by_target["q"][1].context == 7);
  CHECK(by_target["q"][1].hops == 3);
  CHECK(by_target["q"][0].hops == 1);
  CHECK(by_target[">out"].size() == 1);
  out.clear();
  outbox.pack(out);
  CHECK(grape::Raw(out).as<Value>() == Value(Value::Array()));
}

TEST_CASE("a node that hears several groups gets them in order") {
  const Routes routes = routes_of({{"a", "p.1"}, {"b", "p.1"}, {"b", "p.2"}});
  const Limits limits;
  Outbox outbox(routes, limits, 1);
  for (const auto* name : {"a", "b", "a", "a", "b"}) {
    const auto number = *routes.find(name);
    for (const auto lead : routes[number].leads) outbox.append(lead, 0, number, {}, "\xC0", 0, -1);
  }
  Buffer out;
  outbox.pack(out);
  std::string order;
  for (const auto& event : events_of(fake::at(grape::Raw(out).as<Value>(), 0))) order += event.name;
  CHECK(order == "abaab");
}

TEST_CASE("bodies stay within batch-max, whatever the columns") {
  std::vector<std::pair<std::string, std::string>> slots;
  for (int i = 0; i < 300; ++i) slots.emplace_back("event-" + std::to_string(i), "p.1");
  const Routes routes = routes_of(slots);
  Limits limits;
  limits.batch_target = 2'000;
  limits.batch_max = 6'000;
  Outbox outbox(routes, limits, 1);
  const std::string large = "\xDA\x27\x10"s + std::string(10'000, 'x');
  std::size_t count = 0;
  for (int i = 0; i < 5'000; ++i) {
    const auto number = *routes.find("event-" + std::to_string(i * 7 % 300));
    const bool is_large = i % 500 == 250;
    outbox.append(routes[number].leads[0], 0, number, {i % 3 == 0 ? "" : "key", i % 3 != 0},
                  is_large     ? large
                  : i % 2 == 0 ? "\xC0"
                               : "\xA1x",
                  i % 5, i % 11 == 0 ? i : -1);
    ++count;
  }
  Buffer out;
  outbox.pack(out);
  std::size_t i = 0;
  const Value packed = grape::Raw(out).as<Value>();
  for (const auto& one : fake::items(packed)) {
    const auto events = events_of(one);
    CHECK((events.size() == 1 || fake::bytes(fake::at(one, 3)).size() <= limits.batch_max));
    for (const auto& event : events) {
      const bool fits = event.name == "event-" + std::to_string(i * 7 % 300) && event.hops == static_cast<std::int64_t>(i % 5) &&
                        event.context == (i % 11 == 0 ? static_cast<std::int64_t>(i) : -1) && event.key == (i % 3 == 0 ? "-" : "key");
      if (!fits) CHECK(i == 0);
      ++i;
    }
  }
  CHECK(i == count);
}

TEST_CASE("runs whose columns do not fit are refused") {
  const std::string good = fake::run_of({{"a", "k", 1}, {"b", nullptr, nullptr}});
  RunReader run;
  run.start(good);
  REQUIRE(run.next());
  run.read_columns();
  CHECK(run.key_at(0).text == "k");
  CHECK_FALSE(run.key_at(1).exists);
  CHECK(run.names[run.name_at(1)] == "b");
  CHECK_FALSE(run.next());
  for (const std::size_t cut : {1UL, 15UL, 17UL, 40UL}) {
    run.start(std::string_view(good).substr(0, good.size() - cut));
    CHECK_THROWS([&] {
      while (run.next()) run.read_columns();
    }());
  }
  const std::string few = fake::run_of({{"a", "k", 1}, {"a", "k", 1}}, grape::map({{"contexts", grape::list({0})}}));
  run.start(few);
  CHECK_THROWS(run.next());
}
