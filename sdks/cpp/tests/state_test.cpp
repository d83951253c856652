// Records: what is read from and written to them.
#include "grape/state.hpp"

#include <doctest/doctest.h>

#include "fake_engine.hpp"

using namespace grape::detail;
using namespace std::string_literals;
using grape::Value;

namespace {

NodeSpec node_of(std::vector<StateSpec> states) {
  NodeSpec node;
  node.name = "N";
  node.states = std::move(states);
  return node;
}

void change(Table& table, const std::string& key, const std::vector<Change>& changes, std::int64_t now = 0) {
  table.prepare(table.find(key), changes, now);
  table.store(key, now);
}

Value record_of(Table& table, const std::string& key) {
  const Entry* entry = table.find(key);
  return entry == nullptr || entry->record.empty() ? Value() : grape::Raw(entry->record).as<Value>();
}

std::vector<std::int64_t> expiries(Table& table) {
  Buffer out;
  std::vector<std::int64_t> times;
  if (!table.pack_changes(out)) return times;
  const Value changes = grape::Raw(out).as<Value>();
  for (const auto& time : fake::items(fake::at(changes, 3))) times.push_back(fake::number(time));
  return times;
}

}  // namespace

TEST_CASE("one state, as most nodes have") {
  const NodeSpec node = node_of({{"count", {}}});
  Table table(node, true);
  CHECK(table.find("k") == nullptr);
  change(table, "k", {{0, "\x05"}});
  CHECK(record_of(table, "k") == grape::map({{"count", 5}}));
  CHECK(table.read(*table.find("k"), 0, 0) == "\x05");
  change(table, "k", {{0, ""}});
  CHECK(table.find("k")->record.empty());
  Buffer out;
  CHECK(table.pack_changes(out));
  CHECK(grape::Raw(out).as<Value>() == grape::list({"N", grape::list({grape::Bytes("k")}), grape::list({nullptr}), nullptr}));
  CHECK_FALSE(table.pack_changes(out));
  change(table, "k", {{0, ""}});
  CHECK_FALSE(table.pack_changes(out));
}

TEST_CASE("several states, and those that the code no longer knows") {
  const NodeSpec node = node_of({{"a", {}}, {"b", {}}});
  Table table(node, false);
  table.fill("k", fake::packed(grape::map({{"old", "x"}, {"a", 1}})));
  CHECK(table.read(*table.find("k"), 0, 0) == "\x01");
  CHECK(table.read(*table.find("k"), 1, 0).empty());
  change(table, "k", {{1, "\x02"}, {0, ""}});
  CHECK(record_of(table, "k") == grape::map({{"old", "x"}, {"b", 2}}));
  change(table, "k", {{1, ""}});
  CHECK(record_of(table, "k") == grape::map({{"old", "x"}}));
}

TEST_CASE("states that expire") {
  const NodeSpec node = node_of({{"a", 1e-6 * 100}, {"b", {}}});
  Table table(node, true);
  change(table, "k", {{0, "\x01"}}, 1000);
  CHECK(record_of(table, "k") == grape::map({{"a", 1}, {"", grape::map({{"a", 1100}})}}));
  CHECK(expiries(table) == std::vector<std::int64_t>{1100});
  CHECK(table.read(*table.find("k"), 0, 1099) == "\x01");
  CHECK(table.read(*table.find("k"), 0, 1100).empty());
  // Set again before: the engine looks at 1100, finds the later time, and looks again by itself.
  change(table, "k", {{0, "\x02"}}, 1050);
  CHECK(expiries(table) == std::vector<std::int64_t>{0});
  // With a state that stays the record has no end; without it, it has to be said anew.
  change(table, "k", {{1, "\x03"}}, 1060);
  CHECK(expiries(table) == std::vector<std::int64_t>{0});
  change(table, "k", {{1, ""}}, 1070);
  CHECK(expiries(table) == std::vector<std::int64_t>{1150});
  // Expired: gone when the record is written next.
  change(table, "k", {{1, "\x04"}}, 2000);
  CHECK(record_of(table, "k") == grape::map({{"b", 4}}));
  change(table, "k", {{0, "\x05"}, {1, ""}}, 3000);
  CHECK(expiries(table) == std::vector<std::int64_t>{3100});
}

TEST_CASE("a stored record knows when it expires") {
  const NodeSpec node = node_of({{"a", 1.0}});
  Table table(node, false);
  table.fill("k", fake::packed(grape::map({{"a", 1}, {"", grape::map({{"a", 5000}})}})));
  CHECK(table.find("k")->due == 5000);
  change(table, "k", {{0, "\x02"}}, 4000);
  CHECK(expiries(table) == std::vector<std::int64_t>{0});
  table.fill("late", fake::packed(grape::map({{"a", 1}, {"", grape::map({{"a", 5000}})}})));
  change(table, "late", {{0, "\x02"}}, 6000);
  CHECK(expiries(table) == std::vector<std::int64_t>{1'006'000});
}

TEST_CASE("many keys, and forgetting the older half") {
  const NodeSpec node = node_of({{"count", {}}});
  Table table(node, true);
  for (int i = 0; i < 10'000; ++i) change(table, "key-" + std::to_string(i), {{0, "\x01"}});
  table.evict();
  CHECK(table.find("key-0") != nullptr);  // nothing that is not handed in
  Buffer out;
  table.pack_changes(out);
  const std::size_t before = table.size();
  table.evict();
  CHECK_FALSE(table.is_complete);
  CHECK(table.find("key-4999") == nullptr);
  CHECK(table.find("key-5000") != nullptr);
  CHECK(table.find("key-9999") != nullptr);
  CHECK(table.size() < before * 6 / 10);
  for (int i = 0; i < 5; ++i) table.evict();
  CHECK(table.find("key-9999") != nullptr);
  for (int i = 0; i < 20; ++i) table.evict();
  CHECK(table.find("key-9999") == nullptr);
  change(table, "new", {{0, "\x02"}});
  CHECK(table.find("new") != nullptr);
}

TEST_CASE("stored bytes that are no record fail who reads them, not the worker") {
  const NodeSpec node = node_of({{"a", {}}});
  Table table(node, false);
  table.fill("k", "\xC1\xC1");
  CHECK_THROWS_AS((void)table.read(*table.find("k"), 0, 0), Mismatch);
}
