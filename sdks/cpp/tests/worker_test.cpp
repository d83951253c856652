// A worker process against the engine's end of its socket: what it does with works, and what becomes of failures.
#include <doctest/doctest.h>

#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>

#include "fake_engine.hpp"

using namespace std::chrono_literals;
using fake::at;
using fake::Engine;
using fake::In;
using fake::number;
using fake::Result;
using fake::run_of;
using fake::text;
using grape::Emit;
using grape::Event;
using grape::Slot;
using grape::Value;
using grape::Worker;
namespace tag = fake::tag;

namespace {

const Value nothing_done = grape::list({0, grape::Bytes()});

/// Counts, and fails of what it is told to fail of.
void count(Worker& worker) {
  worker.slot("word", Slot("Count").state("count").emits("total").retries(2), [](Event& event) {
    auto state = event.state("count");
    const auto total = state.get<std::int64_t>() + 1;
    state.set(total);
    event.emit("total", total);
    if (event.data().as<Value>() == Value("fail")) throw grape::Error("told-to", "it was told\nto fail");
    if (event.data().as<Value>() == Value("throw")) throw std::out_of_range("too far \xFF");
    if (event.data().as<Value>() == Value("odd")) throw 7;
    if (event.data().as<Value>() == Value("crash")) ::raise(SIGSEGV);
  });
}

Engine::Work work_of(const std::vector<In>& events, int seq = 1) {
  Engine::Work work;
  work.seq = seq;
  work.batches.push_back(Engine::batch(seq, run_of(events), static_cast<int>(events.size())));
  return work;
}

}  // namespace

TEST_CASE("hello describes the pool, and nothing more") {
  Engine engine([](Worker& worker) {
    worker.slot("a",
                Slot("N")
                    .state("x", 1.5s)
                    .emits({"b", "c"})
                    .retries(7)
                    .backoff(2s)
                    .backoff_max(3s)
                    .timeout(4s)
                    .on_fail(grape::OnFail::stop)
                    .ordered(false)
                    .eager(true),
                [](Event&) {});
    worker.slot("b", Slot("N").state("y"), [](Event&) {});
  });
  const Value hello = engine.join();
  CHECK(number(at(hello, 1)) == 1);
  CHECK(text(at(hello, 3)) == "cpp");
  CHECK(at(hello, 5) == grape::list({"partition", "cache", "chain", "timers", "calls", "peers", "rates", "objects", "logs"}));
  const Value& topology = at(hello, 4);
  CHECK(topology["name"] == Value(""));
  CHECK(topology["outputs"] == Value(Value::Array()));
  CHECK(topology["pools"] == Value(Value::Array()));
  REQUIRE(fake::items(topology["nodes"]).size() == 1);
  CHECK(at(topology["nodes"], 0)["states"] == grape::list({grape::map({{"name", "x"}, {"ttl", 1.5}}), grape::map({{"name", "y"}})}));
  const Value& slot = at(topology["slots"], 0);
  CHECK(slot["emits"] == grape::list({"b", "c"}));
  CHECK(slot["retries"] == Value(7));
  CHECK(slot["timeout"] == Value(4.0));
  CHECK(slot["on_fail"] == Value("stop"));
  CHECK(slot["ordered"] == Value(false));
  CHECK(slot["eager"] == Value(true));
  CHECK(at(topology["slots"], 1)["eager"] == Value(false));
  CHECK(text(slot["where"]).find("worker_test.cpp:") != std::string::npos);
  engine.drain();
  CHECK(engine.wait() == 0);
}

TEST_CASE("a topology that cannot be is refused") {
  Engine engine([](Worker& worker) {
    worker.slot("a", Slot("N"), [](Event&) {});
    worker.slot("a", Slot("N"), [](Event&) {});
    worker.slot("", Slot("M").retries(-1), nullptr);
  });
  const Value refusal = engine.receive();
  CHECK(number(at(refusal, 0)) == tag::refusal);
  CHECK(text(at(refusal, 1)) == "topology");
  for (const auto* part : {"declared twice", "1 to 255", "out of range", "no handler"})
    CHECK(text(at(refusal, 2)).find(part) != std::string::npos);
  CHECK(engine.wait() == 2);
}

TEST_CASE("another version ends the worker, with words") {
  Engine engine(&count);
  engine.receive();
  engine.send(Value::Array{tag::welcome, 2, "cpp", "cpp.0", 4, Value(Value::Map()), Value::Array()});
  const Value refusal = engine.receive();
  CHECK(number(at(refusal, 0)) == tag::refusal);
  CHECK(text(at(refusal, 2)).find("protocol 2") != std::string::npos);
  CHECK(engine.wait() == 1);
}

TEST_CASE("setup, teardown and configuration") {
  Engine engine(
      [](Worker& worker) {
        const auto greeting = worker.config()["greeting"].as<std::string>();
        static std::string ready;
        worker.setup([greeting] { ready = greeting; });
        worker.teardown([] { grape::log("info", "bye\nbye"); });
        worker.slot("a", Slot("N"), [](Event& event) {
          grape::log("warning", "in it");
          event.emit("out", ready);
        });
      },
      {"--config", R"({"greeting": "hé"})"});
  engine.join();
  engine.assign(0);
  CHECK(engine.run({{"a", nullptr, nullptr}}).emitted.at(0).data == Value("hé"));
  engine.drain();
  CHECK(engine.wait() == 0);
  CHECK(engine.printed() ==
        "\x1Ewarning\x1EN\x1F"
        "id-1-0"
        "\x1Ein it\n\x1Einfo\x1E\x1E"
        "bye\n\x1Einfo\x1E\x1E"
        "bye\n");
}

TEST_CASE("a setup that throws") {
  Engine engine([](Worker& worker) {
    count(worker);
    worker.setup([] { throw std::runtime_error("no model"); });
  });
  engine.join();
  const Value refusal = engine.receive();
  CHECK(number(at(refusal, 0)) == tag::refusal);
  CHECK(text(at(refusal, 1)) == "start");
  CHECK(text(at(refusal, 2)).find("std::runtime_error: no model") == 0);
  CHECK(engine.wait() == 1);
}

TEST_CASE("counting: state, emits, counters, progress") {
  Engine engine(&count);
  engine.join();
  engine.assign(3);
  const Result result = engine.run({{"word", "a", 1}, {"word", "b", 1}, {"word", "a", 1}}, 3);
  CHECK(result.ended == std::vector<std::int64_t>{1});
  CHECK(result.done.at(1) == std::pair<std::int64_t, std::string>(3, ""));
  CHECK(result.states.at("Count").at("a") == grape::map({{"count", 2}}));
  REQUIRE(result.emitted.size() == 3);
  CHECK(result.emitted[2].target == ">total");
  CHECK(result.emitted[2].partition == 3);
  CHECK(result.emitted[2].key == "a");
  CHECK(result.emitted[2].data == Value(2));
  CHECK(result.emitted[2].hops == 1);
  CHECK(result.counts == std::map<std::string, std::int64_t>{{"word>Count", 3}});
  CHECK(result.emits == std::map<std::string, std::int64_t>{{"total", 3}});
  // The state is kept: nothing is asked for.
  const Result second = engine.run({{"word", "a", 1}}, 3);
  CHECK(second.states.at("Count").at("a") == grape::map({{"count", 3}}));
  engine.hang_up();
  CHECK(engine.wait() == 0);
}

TEST_CASE("where emits go") {
  Engine engine([](Worker& worker) {
    worker.slot("a", Slot("N"), [](Event& event) {
      event.emit("out", 1);
      event.emit("dropped", 2);
      event.emit("b", 3);                       // own key: stays
      event.emit("b", 4, Emit().key("grape"));  // crc32 2012510561 % 4 = 1
      event.emit("b", 5, Emit().keyless());
      event.emit("out", 6, Emit().key("grape"));
      event.emit("b", 7, Emit().delay(1500ms).key("grape"));
      event.emit("b");
    });
    worker.slot("b", Slot("M"), [](Event&) {});
  });
  engine.foreign = {{"b", "P", "main"}};
  engine.join();
  engine.assign(2);
  const Result result = engine.run({{"a", "k", nullptr, 4, 0}}, 2, 1);
  std::string seen;
  for (const auto& e : result.emitted) {
    seen += e.target + "/" + std::to_string(e.partition) + " " + e.key + " " + (e.data.is_nil() ? "nil" : std::to_string(number(e.data))) +
            "\n";
    CHECK(e.hops == 5);
    CHECK(e.context == 0);
  }
  CHECK(seen ==
        ">out/2 k 1\n>out/2 grape 6\ncpp/2 k 3\ncpp/2 - 5\ncpp/2 k nil\nmain/2 k 3\nmain/2 - 5\nmain/2 k nil\ncpp/1 grape 4\nmain/1 grape "
        "4\n");
  REQUIRE(result.timers.size() == 2);
  CHECK(number(at(result.timers[0], 0)) == 1'500'000);
  const auto timed = fake::events_of(at(result.timers[0], 1));
  REQUIRE(timed.size() == 1);
  CHECK(timed[0].hops == 0);
  CHECK(timed[0].context == 0);
  CHECK(timed[0].partition == 1);
  CHECK(timed[0].data == Value(7));
  CHECK(result.emits == std::map<std::string, std::int64_t>{{"out", 2}, {"dropped", 1}, {"b", 5}});
}

// A handler that takes it by value would emit into a copy, and lose everything.
static_assert(!std::is_copy_constructible_v<Event> && !std::is_copy_assignable_v<Event> && !std::is_default_constructible_v<Event>);
static_assert(!std::is_constructible_v<grape::Handler, void (*)(Event)>);

TEST_CASE("an Emit keeps the key that it was given") {
  Engine engine([](Worker& worker) {
    worker.slot("a", Slot("N"), [](Event& event) {
      const auto to = [](const std::string& name) { return Emit().key("a rather long key of " + name); };
      const Emit first = to("one");
      const Emit second = to("two");
      event.emit("out", 1, first);
      event.emit("out", 2, second);
      event.emit("out", 3, Emit(first).keyless());
    });
  });
  engine.join();
  engine.assign(0);
  const Result result = engine.run({{"a", "k", nullptr}}, 0);
  REQUIRE(result.emitted.size() == 3);
  CHECK(result.emitted[0].key == "a rather long key of one");
  CHECK(result.emitted[1].key == "a rather long key of two");
  CHECK(result.emitted[2].key == "-");
}

TEST_CASE("what cannot be emitted or stored fails the event, with a kind") {
  Engine engine([](Worker& worker) {
    worker.slot("a", Slot("N").state("s").retries(0), [](Event& event) {
      const auto what = event.as<std::string>();
      event.state("s").set(1);
      event.emit("out", "before");
      if (what == "name") event.emit("totl", 1);
      if (what == "empty") event.emit("", 1);
      if (what == "app") event.emit("other@x", 1);
      if (what == "text") event.emit("out", std::string("\xFF"));
      if (what == "uint") event.emit("out", ~std::uint64_t{0});
      if (what == "large") event.emit("out", std::string(1'001, 'x'));
      if (what == "state") event.state("s").set(std::string(1'001, 'x'));
      if (what == "much")
        for (int i = 0; i < 30; ++i) event.emit("out", std::string(900, 'x'));
      if (what == "key") event.emit("out", 1, Emit().key(""));
      if (what == "key2") event.emit("out", 1, Emit().key("\xFF"));
      if (what == "delay") event.emit("out", 1, Emit().delay(-1s));
      if (what == "none") (void)event.state("t");
      if (what == "type") (void)event.as<int>();
      if (what == "stored") (void)event.state("s").get<std::string>();
      if (what == "reply") event.reply(std::string(1'001, 'x'));
    });
  });
  engine.limits = grape::map({{"max_event", 1'000}, {"max_result", 20'000}});
  engine.join();
  engine.assign(0);
  const std::vector<std::pair<std::string, std::string>> kinds{
      {"name", "unknown-event"}, {"app", "unknown-event"}, {"text", "bad-value"},   {"uint", "bad-value"}, {"large", "too-large"},
      {"empty", "unknown-event"},
      {"state", "too-large"},    {"much", "too-large"},    {"key", "bad-value"},    {"key2", "bad-value"}, {"delay", "bad-value"},
      {"none", "bad-state"},     {"type", "bad-payload"},  {"stored", "bad-state"}, {"reply", "too-large"}};
  std::vector<In> events;
  for (const auto& [what, kind] : kinds) events.push_back({"a", "key of " + what, what});
  const Result result = engine.run(events);
  REQUIRE(result.failures.size() == kinds.size());
  for (std::size_t i = 0; i < kinds.size(); ++i) CHECK(result.failures[i].kind == kinds[i].second);
  CHECK(result.failures[0].text.find("did you mean 'total'?") != std::string::npos);
  CHECK(result.failures[1].text.find("no-such-app") != std::string::npos);
  CHECK(result.states.empty());
  CHECK(result.emitted.empty());
  CHECK(result.emits.empty());
  CHECK(result.done.at(1).first == static_cast<std::int64_t>(kinds.size()));
  const Result keyless = engine.run({{"a", nullptr, "x"}});
  CHECK(keyless.failures.at(0).kind == "no-key");
  CHECK(keyless.failures.at(0).key == "-");
}

TEST_CASE("failures: their words, their bodies, and who waits behind them") {
  Engine engine(&count);
  engine.join();
  engine.assign(0);
  const Result result =
      engine.run({{"word", "a", 1, 3}, {"word", "a", "fail", 3, 0}, {"word", "b", "throw"}, {"word", "c", "odd"}, {"word", "a", 1}}, 0, 1);
  REQUIRE(result.failures.size() == 4);
  const auto& first = result.failures[0];
  CHECK(first.kind == "told-to");
  CHECK(first.text == "it was told to fail");
  CHECK(first.id == "id-1-1");
  CHECK(first.key == "a");
  CHECK(first.created == 1'700'000'000'000'000);
  CHECK(first.context == 0);
  CHECK(first.body == run_of({{"word", "a", "fail"}}, Value(Value::Map())).substr(0, 0) + first.body);
  grape::detail::RunReader run;
  run.start(first.body);
  REQUIRE(run.next());
  run.read_columns();
  CHECK(run.hops_at(0) == 3);
  CHECK(run.key_at(0).text == "a");
  CHECK(grape::Raw(run.data_at(0)).as<std::string>() == "fail");
  CHECK(result.failures[1].kind == "std::out_of_range");
  CHECK(result.failures[1].text == "too far \xEF\xBF\xBD");
  CHECK(result.failures[2].kind == "int");
  CHECK(result.failures[3].behind);
  CHECK(result.failures[3].id == "id-1-4");
  // What failed has no effect, what came before has.
  CHECK(result.states.at("Count") == std::map<std::string, Value>{{"a", grape::map({{"count", 1}})}});
  CHECK(result.counts == std::map<std::string, std::int64_t>{{"word>Count", 1}});
  // Later works find the key locked.
  CHECK(engine.run({{"word", "a", 1}}).failures.at(0).behind);
}

TEST_CASE("the last attempt frees the key") {
  Engine engine([](Worker& worker) {
    worker.slot("a", Slot("Dead").retries(0), [](Event& event) {
      if (event.as<bool>()) throw grape::Error("x", "y");
    });
    worker.slot("b", Slot("Stop").retries(0).on_fail(grape::OnFail::stop), [](Event& event) {
      if (event.as<bool>()) throw grape::Error("x", "y");
    });
    worker.slot("c", Slot("Loose").ordered(false), [](Event& event) {
      if (event.as<bool>()) throw grape::Error("x", "y");
    });
  });
  engine.join();
  engine.assign(0);
  for (const auto& [name, behind] : std::map<std::string, std::size_t>{{"a", 0}, {"b", 1}, {"c", 0}}) {
    const Result result = engine.run({{name, "k", true}, {name, "k", false}});
    CHECK(result.failures.size() == 1 + behind);
  }
}

TEST_CASE("retries pass the lock, and free the line when it is empty") {
  Engine engine(&count);
  engine.join();
  engine.assign(0, 1, true, {grape::list({"Count", "k"}), grape::list({"Gone", "k"})});
  CHECK(engine.run({{"word", "k", "later"}}).failures.at(0).behind);
  Engine::Work work;
  work.seq = 10;
  work.retries = {Engine::retry(5, "Count", "first", run_of({{"word", "k", 1}}), 2, true),
                  Engine::retry(6, "Gone", "x", run_of({{"word", "k", 1}}))};
  work.batches.push_back(Engine::batch(7, run_of({{"word", "k", 2}}), 1));
  engine.work(work);
  Result result = engine.result();
  CHECK(result.retried == std::vector<std::int64_t>{5});
  CHECK(result.states.at("Count").at("k") == grape::map({{"count", 1}}));
  REQUIRE(result.failures.size() == 1);
  CHECK(result.failures[0].behind);
  // Those that stood behind come back; only when all of them are done the key is free.
  work = {};
  work.seq = 11;
  work.retries = {Engine::retry(7, "Count", "id-1-0", run_of({{"word", "k", 1}}), 1),
                  Engine::retry(8, "Count", "id-7-0", run_of({{"word", "k", 1}}), 1)};
  work.batches.push_back(Engine::batch(8, run_of({{"word", "k", 2}}), 1));
  engine.work(work);
  result = engine.result();
  CHECK(result.retried == std::vector<std::int64_t>{7, 8});
  CHECK(result.failures.empty());
  CHECK(result.states.at("Count").at("k") == grape::map({{"count", 4}}));
}

TEST_CASE("a retry that fails again keeps its line") {
  Engine engine(&count);
  engine.join();
  engine.assign(0, 1, true, {grape::list({"Count", "k"})});
  Engine::Work work;
  work.retries = {Engine::retry(5, "Count", "first", run_of({{"word", "k", "fail", 2}}), 2, false, 0),
                  Engine::retry(6, "Count", "second", run_of({{"word", "k", 1}}))};
  engine.work(work);
  Result result = engine.result();
  CHECK(result.retried.empty());
  REQUIRE(result.failures.size() == 1);
  CHECK(result.failures[0].hold == 5);
  CHECK(result.failures[0].context == 0);
  // The third attempt is the last one (retries 2): it is dead, and the next in line runs.
  work.seq = 2;
  work.retries[0] = Engine::retry(5, "Count", "first", run_of({{"word", "k", "fail"}}), 3);
  engine.work(work);
  result = engine.result();
  CHECK(result.failures.at(0).hold == 5);
  CHECK(result.retried == std::vector<std::int64_t>{6});
}

TEST_CASE("state is asked for once, also in pieces") {
  Engine engine(&count);
  engine.join();
  engine.assign(0, 1, false);
  engine.work(work_of({{"word", "b", 1}, {"word", "a", 1}, {"word", nullptr, "no key"}, {"word", "b", 1}}));
  Value ask = engine.receive();
  CHECK(number(at(ask, 0)) == tag::ask);
  CHECK(text(at(ask, 3)) == "Count");
  CHECK(at(ask, 4) == grape::list({grape::Bytes("a"), grape::Bytes("b")}));
  engine.assign(1);  // comes between, and has to wait
  engine.send(Value::Array{tag::values, grape::list({nullptr})});
  ask = engine.receive();
  CHECK(at(ask, 4) == grape::list({grape::Bytes("b")}));
  engine.send(Value::Array{tag::values, grape::list({grape::Bytes(fake::packed(grape::map({{"count", 40}})))})});
  const Result result = engine.result();
  CHECK(result.states.at("Count").at("a") == grape::map({{"count", 1}}));
  CHECK(result.states.at("Count").at("b") == grape::map({{"count", 42}}));
  CHECK(engine.run({{"word", "b", 1}}).states.at("Count").at("b") == grape::map({{"count", 43}}));
  CHECK(engine.run({{"word", "z", 1}}, 1).states.size() == 1);
  engine.assign(0, 2, false);  // a new epoch: what was known is forgotten
  Engine::Work work = work_of({{"word", "b", 1}}, 9);
  engine.work(work);  // of the old epoch: dropped
  work.epoch = 2;
  work.seq = 10;
  engine.work(work);
  ask = engine.receive();
  CHECK(number(at(ask, 2)) == 2);
  engine.send(Value::Array{tag::values, grape::list({nullptr})});
  CHECK(engine.result().ended == std::vector<std::int64_t>{10});
  engine.send(Value::Array{tag::revoke, 0, 2});
  work.seq = 11;
  engine.work(work);  // not ours any more
  CHECK(engine.run({{"word", "q", 1}}, 1).ended.size() == 1);
}

TEST_CASE("the cache is bounded") {
  Engine engine(&count);
  engine.limits = grape::map({{"cache_bytes", 10'000}});
  engine.join();
  engine.assign(0);
  std::vector<In> events;
  for (int i = 0; i < 1'000; ++i) events.push_back({"word", "key-" + std::to_string(i), 1});
  CHECK(engine.run(events).states.at("Count").size() == 1'000);
  engine.work(work_of({{"word", "key-0", 1}, {"word", "key-999", 1}}, 50));
  const Value ask = engine.receive();
  CHECK(at(ask, 4) == grape::list({grape::Bytes("key-0")}));
  engine.send(Value::Array{tag::values, grape::list({grape::Bytes(fake::packed(grape::map({{"count", 1}})))})});
  CHECK(engine.result().states.at("Count").at("key-0") == grape::map({{"count", 2}}));
}

TEST_CASE("several nodes hear one event; runs may mean some of them") {
  Engine engine([](Worker& worker) {
    for (const auto* node : {"A", "B"}) {
      worker.slot("x", Slot(node), [node](Event& event) { event.emit("out", node); });
      worker.slot("y", Slot(node), [node](Event& event) { event.emit("out", std::string("y") + node); });
    }
  });
  engine.join();
  engine.assign(0);
  const auto seen = [](const Result& result) {
    std::string out;
    for (const auto& event : result.emitted) out += text(event.data) + " ";
    return out;
  };
  CHECK(seen(engine.run({{"x", nullptr, 1}, {"y", nullptr, 1}})) == "A B yA yB ");
  Engine::Work work;
  work.seq = 20;
  work.batches.push_back(Engine::batch(20, run_of({{"x", nullptr, 1}}, grape::map({{"only", grape::list({"B", "Gone"})}})), 1));
  work.batches.push_back(Engine::batch(21, run_of({{"nobody hears it", nullptr, 1}}), 1));
  engine.work(work);
  const Result result = engine.result();
  CHECK(seen(result) == "B ");
  CHECK(result.done.at(21).first == 1);
}

TEST_CASE("what is done already is not run again") {
  Engine engine(&count);
  engine.join();
  engine.assign(0);
  Engine::Work work;
  std::string body = run_of({{"word", "0", 1}, {"word", "1", 1}, {"word", "2", 1}}) + run_of({{"word", "3", 1}, {"word", "4", 1}});
  work.batches.push_back(Engine::batch(7, body, 5, grape::list({1, grape::Bytes("\x02")})));  // 0 and 3
  engine.work(work);
  const Result result = engine.result();
  std::string keys;
  for (const auto& [key, record] : result.states.at("Count")) keys += key;
  CHECK(keys == "124");
  CHECK(result.done.at(7) == std::pair<std::int64_t, std::string>(5, ""));
}

TEST_CASE("contexts: replies, deadlines, calls") {
  Engine engine([](Worker& worker) {
    worker.slot("a", Slot("N"), [](Event& event) {
      event.reply("part", false);
      event.reply(event.id());
      event.emit("out", 1);
    });
  });
  engine.join();
  engine.assign(0);
  Engine::Work work;
  work.context_base = 10;
  work.retries = {Engine::retry(1, "N", "held", run_of({{"a", "k", 1}}), 2, false, 10)};
  work.batches.push_back(Engine::batch(1, run_of({{"a", "k", 1, 0, 1}, {"a", "k", 1}, {"a", "k", 1, 0, 0}}), 3, nothing_done, 2));
  work.batches.push_back(Engine::batch(2, run_of({{"a", "k", 1}, {"a", "k", 1}}), 2, nothing_done, 2, true));
  work.deadlines = {{Value(14), Value(1)}};
  engine.work(work);
  const Result result = engine.result();
  std::string seen;
  for (const auto& reply : result.replies) {
    seen += std::to_string(number(at(reply, 0))) + (at(reply, 2) == Value(true) ? "!" : "") +
            grape::Raw(fake::bytes(at(reply, 1))).as<std::string>() + " ";
  }
  CHECK(seen == "10part 10!held 12part 12!id-1-0 11part 11!id-1-2 13part 13!id-2-0 ");
  CHECK(result.retried == std::vector<std::int64_t>{1});
  std::vector<std::int64_t> contexts;
  for (const auto& event : result.emitted) contexts.push_back(event.context);
  CHECK(contexts == std::vector<std::int64_t>{10, 12, -1, 11, 13});
  REQUIRE(result.failures.size() == 1);
  CHECK(result.failures[0].kind == "deadline");
  CHECK(result.failures[0].final);
  CHECK(result.failures[0].context == 14);
  CHECK(result.failures[0].id == "id-2-1");
}

TEST_CASE("timers by name") {
  Engine engine([](Worker& worker) {
    worker.slot("set", Slot("N"), [](Event& event) { event.emit("out", 1, Emit().delay(2s).timer("t").keyless()); });
    worker.slot("cancel", Slot("N"), [](Event& event) { event.cancel_timer(event.as<std::string>()); });
    worker.slot("now", Slot("N"), [](Event& event) { event.emit("out", 1, Emit().timer("t")); });
  });
  engine.join();
  engine.assign(0);
  Engine::Work work = work_of({{"set", "k", nullptr}, {"cancel", "k", "t"}});
  engine.work(work);
  const Value timers = at(engine.receive(), 8);
  const Value name = grape::list({"N", grape::Bytes("k"), "t"});
  REQUIRE(fake::items(timers).size() == 3);
  CHECK(at(timers, 0) == grape::list({0, nullptr, name}));
  CHECK(number(at(at(timers, 1), 0)) == 2'000'000);
  CHECK(at(at(timers, 1), 2) == name);
  CHECK(at(timers, 2) == at(timers, 0));
  const Result result = engine.run({{"cancel", nullptr, "t"}, {"cancel", "a", ""}, {"cancel", "b", std::string(256, 'x')}, {"now", "c", 1}});
  REQUIRE(result.failures.size() == 4);
  CHECK(result.failures[0].kind == "no-key");
  for (std::size_t i = 1; i < 4; ++i) CHECK(result.failures[i].kind == "bad-value");
}

TEST_CASE("calls: a handler is left, and runs again with the answer") {
  Engine engine([](Worker& worker) {
    worker.slot("price", Slot("Price"), [](Event&) {});
    worker.slot("order", Slot("Order"), [](Event& event) {
      event.emit("out", "undone");
      event.emit("out", event.call("price", event.data(), grape::Ask().timeout(2s)).as<std::int64_t>());
    });
    worker.slot("wrap", Slot("Wrap"), [](Event& event) {
      try {
        event.call("price", 1);
      } catch (...) {
        throw std::runtime_error("another one");
      }
    });
    worker.slot("own", Slot("Own"), [](Event&) { throw grape::Suspended(); });
    worker.slot("wrong", Slot("Wrong"), [](Event& event) { event.call(event.as<std::string>(), 1); });
  });
  engine.foreign = {{"price", "Far", "other"}};
  engine.join();
  engine.assign(0);
  engine.work(work_of({{"order", "k", "tea"}, {"order", "k", "milk"}}));
  const Value failures = at(engine.receive(), 9);
  REQUIRE(fake::items(failures).size() == 2);
  const Value call = at(at(failures, 0), 14);
  CHECK(text(at(call, 0)) == "price");
  CHECK(number(at(call, 2)) == 2'000'000);
  REQUIRE(fake::items(at(call, 3)).size() == 2);  // both pools that listen
  CHECK(text(at(at(at(call, 3), 1), 0)) == "other");
  CHECK(fake::items(at(failures, 1)).size() == 14);  // it waits behind

  const auto again = [&](int seq, const char* data, const Value& answer, bool is_error) {
    Engine::Work work;
    work.seq = seq;
    Value item = Engine::retry(5, "Order", "id-1-0", run_of({{"order", "k", data}}), 1);
    Value::Array fields = fake::items(item);
    fields.emplace_back(Value::Array{Value::Array{at(call, 1), grape::Bytes(fake::packed(answer)), is_error}});
    work.retries = {fields};
    engine.work(work);
    return engine.result();
  };
  const Value error = grape::map({{"error", grape::map({{"code", "bad"}, {"text", "it is"}, {"node", "Price"}})}});
  const Result failed = again(2, "tea", error, true);
  CHECK(failed.failures.at(0).kind == "call-failed");
  CHECK(failed.failures.at(0).text == "node 'Price' failed: it is");
  CHECK(again(3, "coffee", 3, false).failures.at(0).kind == "handler");
  const Result done = again(4, "tea", 3, false);
  CHECK(done.retried == std::vector<std::int64_t>{5});
  CHECK(done.emitted.at(1).data == Value(3));

  const Result rest = engine.run({{"wrap", "a", 1}, {"own", "b", 1}, {"wrong", "c", "prize"}, {"wrong", "d", "out"}});
  REQUIRE(rest.failures.size() == 4);
  CHECK(rest.failures[0].text.find("caught what ends its handler while it waits for the answer to 'price'") != std::string::npos);
  CHECK(rest.failures[1].kind == "handler");
  CHECK(rest.failures[2].text.find("calls 'prize', neither") != std::string::npos);
  CHECK(rest.failures[3].text.find("nothing answers there") != std::string::npos);
}

TEST_CASE("events that go round in a circle end") {
  Engine engine(&count);
  engine.limits = grape::map({{"max_hops", 3}});
  engine.join();
  engine.assign(0);
  const Result result = engine.run({{"word", "k", 1, 3}, {"word", "k", 1, 4}, {"word", "k", 1, 0}});
  REQUIRE(result.failures.size() == 1);
  CHECK(result.failures[0].kind == "too-many-hops");
  CHECK(result.failures[0].final);
  CHECK(result.states.at("Count").at("k") == grape::map({{"count", 2}}));
}

TEST_CASE("careful mode announces, and hands in one by one") {
  Engine engine(&count);
  engine.join();
  engine.assign(0);
  Engine::Work work = work_of({{"word", "a", 1}, {"word", "b", "crash"}, {"word", "c", "crash"}}, 4);
  work.careful = true;
  work.retries = {Engine::retry(9, "Count", "held", run_of({{"word", "z", 1}}), 2, false, -1, 2)};
  work.named = {grape::list({"id-4-1", "Count", "worker-died", "it was killed", true, "where"}),
                grape::list({"held", "Count", "timeout", "too slow", true})};
  engine.work(work);
  Result result = engine.result();
  REQUIRE(result.failures.size() == 1);
  CHECK(result.failures[0].hold == 9);
  CHECK(result.failures[0].named);
  Value announced = engine.receive();
  CHECK(announced == grape::list({tag::announce, 0, 1, "id-4-0", "Count"}));
  result = engine.result();
  CHECK(result.ended.empty());
  CHECK(result.done.at(4).first == 1);
  result = engine.result();  // the named one was not started
  REQUIRE(result.failures.size() == 1);
  CHECK(result.failures[0].kind == "worker-died");
  CHECK(result.failures[0].text == "it was killed");
  CHECK(result.failures[0].trace == "where");
  CHECK(result.failures[0].named);
  CHECK(result.done.at(4).first == 2);
  announced = engine.receive();
  CHECK(at(announced, 3) == Value("id-4-2"));
  CHECK(engine.wait() == -SIGSEGV);
}

TEST_CASE("named deaths have a limit of their own") {
  Engine engine(&count);
  engine.join();
  engine.assign(0);
  Engine::Work work = work_of({{"word", "k", 1}}, 4);
  work.careful = true;
  work.retries = {Engine::retry(9, "Count", "held", run_of({{"word", "k", 1}}), 2, false, -1, 2)};
  work.named = {grape::list({"held", "Count", "died", "x", true})};  // the third death: dead, the key is free
  engine.work(work);
  CHECK(engine.result().failures.size() == 1);
  CHECK(number(at(engine.receive(), 0)) == tag::announce);
  CHECK(engine.result().failures.empty());
  CHECK(engine.result().ended == std::vector<std::int64_t>{4});
}

TEST_CASE("a long work is handed in early") {
  Engine engine([](Worker& worker) {
    worker.slot("slow", Slot("Slow"), [](Event&) { std::this_thread::sleep_for(30ms); });
    worker.slot("large", Slot("Large"), [](Event& event) { event.emit("out", std::string(1'000'000, 'x')); });
  });
  engine.join();
  engine.assign(0);
  const Result slow = engine.run(std::vector<In>(100, {"slow", "k", 1}));
  CHECK(slow.ended.size() == 1);
  CHECK(slow.done.at(1).first >= 3);
  CHECK(slow.done.at(1).first < 20);
  const Result large = engine.run(std::vector<In>(100, {"large", "k", 1}));
  const auto done = large.done.at(2).first;  // 17, unless the machine is so slow that time is up before
  CHECK(done >= 1);
  CHECK(done <= 17);
  CHECK(large.bodies == static_cast<std::size_t>(done));
}

TEST_CASE("an event that goes to several pools counts for each") {
  Engine engine([](Worker& worker) {
    worker.slot("a", Slot("N"), [](Event& event) { event.emit(event.as<bool>() ? "b" : "out", std::string(5'000'000, 'x')); });
  });
  engine.foreign = {{"b", "P", "p"}, {"b", "Q", "q"}};
  engine.limits = grape::map({{"max_result", 8'000'000}});
  engine.join();
  engine.assign(0);
  const Result result = engine.run({{"a", "k", true}, {"a", "l", false}});
  CHECK(result.failures.at(0).kind == "too-large");
  CHECK(result.emitted.size() == 1);
}

TEST_CASE("the watchdog beats, and ends a handler that runs for too long") {
  Engine engine([](Worker& worker) {
    worker.slot("a", Slot("Sleepy").timeout(400ms), [](Event& event) {
      for (int i = 0; i < 4; ++i) {
        std::this_thread::sleep_for(150ms);
        event.progress();
      }
      if (event.as<bool>()) std::this_thread::sleep_for(60s);
    });
  });
  engine.heartbeat = 0.6;
  engine.join();
  engine.assign(0);
  engine.work(work_of({{"a", "k", false}, {"a", "k", true}}));
  CHECK(number(at(engine.receive(true), 0)) == tag::beat);
  const Result result = engine.result();  // 600 ms: handed in early
  CHECK(result.done.at(1).first == 1);
  engine.work(work_of({{"a", "k", true}}, 2));
  const Value stuck = engine.receive();
  REQUIRE(number(at(stuck, 0)) == tag::stuck);
  CHECK(at(stuck, 3) == Value("id-2-0"));
  CHECK(at(stuck, 4) == Value("Sleepy"));
  CHECK(text(at(stuck, 5)).find("'Sleepy' ran over its timeout of 0.4 s") == 0);
  CHECK(text(at(stuck, 6)).find("nanosleep") != std::string::npos);
  CHECK(engine.wait() == grape::detail::exit_stuck);
}

TEST_CASE("an event is over when its handler has returned") {
  Engine engine([](Worker& worker) {
    static Event* kept = nullptr;
    worker.slot("a", Slot("N"), [](Event& event) {
      kept = &event;
      throw grape::Error("x", "y");
    });
    worker.teardown([] {
      try {
        kept->emit("out", 1);
      } catch (const grape::Error& e) {
        grape::log("info", e.kind());
      }
    });
  });
  engine.join();
  engine.assign(0);
  engine.run({{"a", "k", 1}});
  engine.drain();
  CHECK(engine.wait() == 0);
  CHECK(engine.printed().find("event-over") != std::string::npos);
}

TEST_CASE("exceptions within exceptions are told") {
  Engine engine([](Worker& worker) {
    worker.slot("a", Slot("N"), [](Event&) {
      try {
        throw std::runtime_error("inner");
      } catch (...) {
        std::throw_with_nested(std::logic_error("outer"));
      }
    });
  });
  engine.join();
  engine.assign(0);
  const auto failure = engine.run({{"a", "k", 1}}).failures.at(0);
  CHECK(failure.text == "outer");
  CHECK(failure.trace == "caused by std::runtime_error: inner\n");
}

TEST_CASE("bytes that are no protocol end the worker, not its memory") {
  for (const auto& bytes : {std::string("\xFF\xFF\xFF\x7F"), std::string("\x01\0\0\0\xC1", 5), std::string("\x02\0\0\0\x91\x63", 6),
                            std::string("\x01\0\0\0\x90", 5)}) {
    Engine engine(&count);
    engine.join();
    engine.send_raw(bytes);
    CHECK(number(at(engine.receive(), 0)) == tag::refusal);
    CHECK(engine.wait() == 1);
  }
  Engine engine(&count);
  engine.join();
  engine.send_raw(std::string("\x10\0\0\0\x92", 5));  // cut off
  engine.hang_up();
  CHECK(engine.wait() == 0);
}

TEST_CASE("a program that nobody started says what it is") {
  char name[] = "worker";
  char* argv[] = {name, nullptr};
  grape::Worker worker(1, argv);
  count(worker);
  CHECK(worker.run() == 2);
}

TEST_CASE("without a topology in the welcome its own is that of the app") {
  Engine engine([](Worker& worker) {
    worker.slot("a", Slot("N"), [](Event& event) { event.emit("b", 1); });
    worker.slot("b", Slot("N"), [](Event&) {});
  });
  engine.has_topology = false;
  engine.join();
  engine.assign(0);
  const Result result = engine.run({{"a", "k", 1}});
  REQUIRE(result.emitted.size() == 1);
  CHECK(result.emitted[0].target == "cpp");
}
