// How values travel: the rows of docs/protocol.md, section 10, and bytes that are no values.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "grape/crc.hpp"
#include "grape/fields.hpp"
#include "grape/json.hpp"
#include "grape/value.hpp"

using namespace std::string_literals;
using grape::Raw;
using grape::Value;

namespace shop {

struct Item {
  std::string name;
  int count = 0;
  std::optional<double> price;
};
GRAPE_FIELDS(Item, name, count, price)

struct Order {
  std::vector<Item> items;
  std::map<std::string, std::int64_t> totals;
};
GRAPE_FIELDS(Order, items, totals)

}  // namespace shop

namespace {

template <class T>
std::string packed(const T& value) {
  std::string out;
  grape::detail::pack_whole(out, value, 1U << 20U);
  return out;
}

template <class T>
T there_and_back(const T& value) {
  return Raw(packed(value)).as<T>();
}

template <class T, class = void>
constexpr bool can_get_if = false;
template <class T>
constexpr bool can_get_if<T, std::void_t<decltype(std::declval<T>().template get_if<bool>())>> = true;

template <class Do>
std::string kind_of_failure(Do&& what) {
  try {
    what();
  } catch (const grape::Error& e) {
    return e.kind();
  }
  return "none";
}

}  // namespace

TEST_CASE("integers take the shortest form and come back") {
  CHECK(packed(0) == "\x00"s);
  CHECK(packed(127) == "\x7F");
  CHECK(packed(128) == "\xCC\x80");
  CHECK(packed(256) == "\xCD\x01\x00"s);
  CHECK(packed(65536) == "\xCE\x00\x01\x00\x00"s);
  CHECK(packed(-1) == "\xFF");
  CHECK(packed(-32) == "\xE0");
  CHECK(packed(-33) == "\xD0\xDF");
  CHECK(packed(-129) == "\xD1\xFF\x7F");
  for (const std::int64_t value :
       {std::numeric_limits<std::int64_t>::min(), std::int64_t{-2147483649}, std::int64_t{-32769}, std::int64_t{-128}, std::int64_t{255},
        std::int64_t{4294967296}, std::numeric_limits<std::int64_t>::max()}) {
    CHECK(there_and_back(value) == value);
    CHECK(Raw(packed(value)).as<Value>() == Value(value));
  }
}

TEST_CASE("integers that do not fit") {
  const std::uint64_t large = std::numeric_limits<std::uint64_t>::max();
  CHECK(kind_of_failure([&] { packed(large); }) == "bad-value");
  CHECK(kind_of_failure([&] { packed(Value(large)); }) == "bad-value");
  CHECK(there_and_back(std::vector<std::uint64_t>{large})[0] == large);
  CHECK(Raw(packed(Value::Array{Value(large)})).as<Value>() == Value(Value::Array{Value(large)}));
  CHECK(kind_of_failure([&] { (void)Raw(packed(300)).as<std::int8_t>(); }) == "bad-payload");
  CHECK(kind_of_failure([&] { (void)Raw(packed(-1)).as<unsigned>(); }) == "bad-payload");
  CHECK(kind_of_failure([&] { (void)Raw(packed("7")).as<int>(); }) == "bad-payload");
}

TEST_CASE("floats") {
  CHECK(there_and_back(1.5) == 1.5);
  CHECK(std::isnan(there_and_back(std::nan(""))));
  CHECK(there_and_back(-std::numeric_limits<double>::infinity()) == -std::numeric_limits<double>::infinity());
  CHECK(std::signbit(there_and_back(-0.0)));
  CHECK(Raw(packed(3)).as<double>() == 3.0);
  CHECK(Raw("\xCA\x3F\x80\x00\x00"s).as<double>() == 1.0);
}

TEST_CASE("text is UTF-8, bytes are anything") {
  CHECK(there_and_back("a\0b"s) == "a\0b"s);
  CHECK(there_and_back("日本 é 🍇"s) == "日本 é 🍇");
  CHECK(there_and_back(std::string(70'000, 'x')).size() == 70'000);
  for (const auto& text : {"\xFF"s, "\xC0\x80"s, "\xED\xA0\x80"s, "\xF4\x90\x80\x80"s, "abcdefgh\xE2\x82"s}) {
    CHECK(kind_of_failure([&] { packed(text); }) == "bad-value");
    CHECK(kind_of_failure([&] { packed(Raw(static_cast<char>(0xA0 | text.size()) + text)); }) == "bad-value");
    CHECK(there_and_back(grape::Bytes(text)) == grape::Bytes(text));
  }
  CHECK(kind_of_failure([&] { (void)Raw(packed(grape::Bytes("x"))).as<std::string>(); }) == "bad-payload");
}

TEST_CASE("nil, optional, lists, maps with any keys") {
  CHECK(packed(nullptr) == "\xC0");
  CHECK(Raw().as<std::optional<int>>() == std::nullopt);
  CHECK(Raw().is_nil());
  CHECK(there_and_back(std::optional<int>(5)) == 5);
  const std::map<int, std::vector<std::string>> map{{1, {"a", "b"}}, {-2, {}}};
  CHECK(there_and_back(map) == map);
  const Value strange =
      Value::Map{{Value(), Value(true)}, {Value(1.5), Value("x")}, {Value(Value::Array{Value(1)}), Value(grape::Bytes("\xFF"))}};
  CHECK(there_and_back(strange) == strange);
  CHECK(there_and_back(std::tuple<int, std::string, bool>(1, "x", true)) == std::tuple<int, std::string, bool>(1, "x", true));
  const Value made =
      grape::map({{"word", std::optional<std::string_view>("x")}, {"none", std::optional<int>()}, {"list", grape::list({1, "two"})}});
  CHECK(made["word"] == Value("x"));
  CHECK(made["none"].is_nil());
  CHECK(made["missing"].is_nil());
  CHECK(made["list"].as<std::tuple<int, std::string>>() == std::tuple<int, std::string>(1, "two"));
}

TEST_CASE("a text in an array ends at its end") {
  const char code[3] = {'a', 'b', 'c'};
  CHECK(packed(code) == "\xA3"s + "abc");
  const char padded[8] = {'a', 'b'};
  CHECK(packed(padded) == "\xA2"s + "ab");
}

TEST_CASE("parts of a value that is gone") {
  const auto make = [] { return grape::map({{"list", grape::list({grape::map({{"text", "longer than a string is in itself"}})})}}); };
  const auto& list = make()["list"];
  const Value expected = grape::list({grape::map({{"text", "longer than a string is in itself"}})});
  CHECK(list == expected);
  const auto& held = make().held();
  CHECK(std::holds_alternative<Value::Map>(held));
  CHECK(make()["list"]["no map"].is_nil());
  static_assert(!can_get_if<Value>, "it would point into what is gone");
  static_assert(can_get_if<const Value&>);
  using grape::detail::is_view;
  static_assert(is_view<Raw> && is_view<std::optional<std::string_view>> && is_view<std::map<std::string_view, int>>);
  static_assert(is_view<std::vector<std::pair<int, std::tuple<Raw>>>>);
  static_assert(!is_view<std::string> && !is_view<std::map<std::string, std::vector<int>>> && !is_view<shop::Order>);
}

TEST_CASE("structs are maps of their fields") {
  shop::Order order;
  order.items.push_back({"grape", 3, 0.5});
  order.items.push_back({"pear", 1, std::nullopt});
  order.totals["all"] = 4;
  const auto back = there_and_back(order);
  REQUIRE(back.items.size() == 2);
  CHECK(back.items[0].name == "grape");
  CHECK(back.items[0].price == 0.5);
  CHECK_FALSE(back.items[1].price);
  CHECK(back.totals == order.totals);
  const auto loose = Raw(packed(grape::map({{"name", "x"}, {"count", 1}, {"other", grape::list({1, 2})}}))).as<shop::Item>();
  CHECK(loose.count == 1);
  CHECK(kind_of_failure([] { (void)Raw(packed(grape::map({{"name", "x"}}))).as<shop::Item>(); }) == "bad-payload");
}

TEST_CASE("timestamps") {
  using namespace std::chrono;
  const auto at = [](std::int64_t nanos) { return grape::Time(nanoseconds(nanos)); };
  CHECK(packed(at(1'000'000'000)) == "\xD6\xFF\x00\x00\x00\x01"s);
  CHECK(packed(at(1'000'000'001)).size() == 10);
  CHECK(packed(at(-1)).size() == 15);
  for (const std::int64_t nanos : {0LL, 1LL, -1LL, 1'700'000'000'123'456'789LL, -3'000'000'000'000'000'000LL}) {
    CHECK(there_and_back(at(nanos)) == at(nanos));
    CHECK(Raw(packed(Value(at(nanos)))).as<Value>() == Value(at(nanos)));
  }
  CHECK(there_and_back(time_point<system_clock, microseconds>(microseconds(-5))).time_since_epoch() == microseconds(-5));
  CHECK(kind_of_failure([] { (void)Raw("\xC7\x0C\xFF\x00\x00\x00\x00\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF"s).as<grape::Time>(); }) ==
        "bad-payload");
  const Value ext = Value::Ext{5, "abc"};
  CHECK(there_and_back(ext) == ext);
}

TEST_CASE("deep values: 512 levels are read, more fail, and nothing overflows") {
  const auto nested = [](std::size_t depth) { return std::string(depth, '\x91') + "\x01"; };
  CHECK_FALSE(Raw(nested(64)).as<Value>().is_nil());
  CHECK_FALSE(Raw(nested(512)).as<Value>().is_nil());
  CHECK(kind_of_failure([&] { (void)Raw(nested(513)).as<Value>(); }) == "bad-payload");
  CHECK(packed(Raw(nested(512))).size() == 513);
  CHECK(kind_of_failure([&] { packed(Raw(nested(100'000))); }) == "bad-value");
  const std::string deep = nested(1'000'000);
  grape::detail::Reader reader(deep);
  CHECK(reader.skip().size() == deep.size());
}

TEST_CASE("bytes that are no value are refused") {
  for (const auto& bytes : {"\xC1"s, "\x01\x02"s, "\x92\x01"s, "\xD9"s, "\xDD\xFF\xFF\xFF\xFF"s, "\x81\x01"s}) {
    CHECK(kind_of_failure([&] { packed(Raw(bytes)); }) == "bad-value");
  }
  for (const auto& bytes : {"\xDD\xFF\xFF\xFF\xFF"s, "\xDF\xFF\xFF\xFF\xFF"s, "\xC6\xFF\xFF\xFF\xFF"s, "\xC1"s}) {
    CHECK(kind_of_failure([&] { (void)Raw(bytes).as<Value>(); }) == "bad-payload");
    CHECK(kind_of_failure([&] { (void)Raw(bytes).as<std::vector<int>>(); }) == "bad-payload");
  }
}

TEST_CASE("partitions of keys, as the protocol's table has them") {
  using grape::detail::crc32;
  using grape::detail::partition_of;
  CHECK(crc32("a") == 3904355907U);
  CHECK(crc32("grape") == 2012510561U);
  CHECK(crc32("é") == 235179326U);
  CHECK(crc32("日本") == 3350711756U);
  CHECK(crc32("key-1") == 250396538U);
  CHECK(partition_of("a", 32) == 3);
  CHECK(partition_of("grape", 7) == 5);
  CHECK(partition_of("é", 32) == 30);
  CHECK(partition_of("日本", 7) == 0);
}

TEST_CASE("JSON") {
  using grape::detail::read_json;
  const Value value = read_json(R"( {"a": [1, -2.5, true, null, "x\n\u00e9\ud83c\udf47"], "b": {}, "c": 12345678901234567890} )");
  CHECK(value["a"] == grape::list({1, -2.5, true, nullptr, "x\né🍇"}));
  CHECK(value["b"] == Value(Value::Map()));
  CHECK(value["c"] == Value(12345678901234567890.0));
  for (const auto* text : {"", "{", "[1,]", "nul", "\"\\ud800\"", "1 2", "{\"a\" 1}", "-"}) {
    CHECK(kind_of_failure([&] { read_json(text); }) == "usage");
  }
  CHECK(kind_of_failure([] { read_json(std::string(100'000, '[')); }) == "usage");
}

TEST_CASE("text for people") {
  using namespace grape::detail;
  CHECK(clean_text("a\xFF"
                   "b") ==
        "a\xEF\xBF\xBD"
        "b");
  CHECK(one_line("a\nb") == "a b");
  CHECK(clean_text(std::string(100, 'x'), 10).size() <= 10);
  CHECK(is_utf8(clean_text("日本日本日本", 10)));
  CHECK(did_you_mean("totl", {"word", "total"}) == "did you mean 'total'?");
  CHECK(did_you_mean("something", {"word", "total"}) == "known are 'word' 'total'");
  CHECK(demangled(typeid(std::vector<int>).name()).find("std::vector<int") == 0);
}
