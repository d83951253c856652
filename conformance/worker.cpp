// The conformance app in C++: docs/conformance.md says what each node does.
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <grape/worker.hpp>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <string_view>
#include <tuple>
#include <vector>

static grape::Emit key_of(const grape::Value& value) {
  grape::Emit how;
  if (value.is_nil()) {
    how.keyless();
  } else {
    how.key(value.as<std::string>());
  }
  return how;
}

static std::int64_t number_at(const grape::Value::Array& words, std::size_t index, std::int64_t otherwise) {
  return words.size() > index && !words[index].is_nil() ? words[index].as<std::int64_t>() : otherwise;
}

static grape::Put how_of(const grape::Value::Array& words) {
  grape::Put how;
  if (words.size() < 5) return how;
  for (const auto& [name, value] : words[4].as<std::map<std::string, grape::Value>>()) {
    if (name == "content_type") how.content_type(value.as<std::string>());
    if (name == "ttl") how.ttl(std::chrono::seconds(value.as<std::int64_t>()));
    if (name == "tags") {
      for (const auto& tag : value.as<std::vector<std::string>>()) how.tag(tag);
    }
    if (name == "user") {
      for (const auto& [key, text] : value.as<std::map<std::string, std::string>>()) how.user(key, text);
    }
  }
  return how;
}

static grape::Value known(const std::optional<grape::About>& about) {
  if (!about) return {};
  grape::Value::Array tags(about->tags.begin(), about->tags.end());
  grape::Value::Map user;
  for (const auto& [name, value] : about->user) user.emplace_back(name, value);
  const bool has_time = about->time.time_since_epoch().count() > 0;
  return grape::Value::Array{about->size, about->version, about->checksum, about->content_type, tags, user, has_time, about->expires.has_value()};
}

static void keep_one(grape::Event& event, const grape::Value::Array& words) {
  const auto what = words[0].as<std::string>();
  auto storage = words[1].is_nil() ? event.storage() : event.storage(words[1].as<std::string>());
  const auto key = words[2].as<std::string>();
  if (what == "put") {
    storage.put(key, words[3].as<std::string>(), how_of(words));
  } else if (what == "large") {
    const auto text = words[3].as<std::string>();
    auto left = words[4].as<std::int64_t>();
    storage.put(key, [&] { return left-- > 0 ? text : std::string(); });
  } else if (what == "broken") {
    int left = 40;
    storage.put(key, [&] {
      if (left-- == 0) throw std::runtime_error("it breaks off");
      return std::string(65'536, 'z');
    });
  } else if (what == "get") {
    event.emit("out", storage.get(key, number_at(words, 3, 0), number_at(words, 4, -1)));
  } else if (what == "count") {
    std::int64_t size = 0;
    storage.chunks(key, [&](std::string_view chunk) { size += static_cast<std::int64_t>(chunk.size()); }, number_at(words, 3, 0), number_at(words, 4, -1));
    event.emit("out", size);
  } else if (what == "stat") {
    event.emit("out", known(storage.stat(key)));
  } else if (what == "list") {
    std::vector<std::string> keys;
    for (const auto& about : storage.list(key, words.size() > 3 ? words[3].as<std::vector<std::string>>() : std::vector<std::string>())) {
      keys.push_back(about.key);
    }
    event.emit("out", keys);
  } else if (what == "remove") {
    storage.remove(key);
  } else if (what == "pass") {
    event.emit(key, words[3]);
  } else if (what == "ask") {
    event.emit("out", event.call(key, words[3]));
  } else {
    throw std::runtime_error(key);
  }
}

int main(int argc, char** argv) {
  using grape::Event;
  using grape::Slot;
  using Seconds = std::chrono::duration<double>;
  grape::Worker worker(argc, argv);

  worker.slot("echo", Slot("Echo"), [](Event& event) { event.emit("out", event.data()); });
  worker.slot("count", Slot("Count").state("count"), [](Event& event) {
    auto count = event.state("count");
    count.set(count.get<std::int64_t>(0) + 1);
    event.emit("out", count.get<std::int64_t>());
  });
  const auto store = [](Event& event) {
    auto value = event.state("value");
    if (value.exists()) {
      event.emit("out", grape::Raw(value.bytes()));
    } else {
      event.emit("out");
    }
    if (event.name() == "erase") {
      value.erase();
    } else {
      value.set(event.data());
    }
  };
  worker.slot("store", Slot("Store").state("value"), store);
  worker.slot("erase", Slot("Store").state("value"), store);
  worker.slot("fail", Slot("Fail"), [](Event& event) { throw std::runtime_error(event.as<std::string>()); });
  const auto odd = [](Event& event) {
    auto count = event.state("count");
    const auto total = count.get<std::int64_t>(0) + 1;
    count.set(total);
    const auto data = event.as<std::int64_t>();
    event.emit("out", std::vector<std::int64_t>{data, total});
    if (data % 2 != 0) throw std::runtime_error("odd");
  };
  worker.slot("odd", Slot("Odd").state("count"), odd);
  worker.slot("second", Slot("Odd").state("count"), odd);
  worker.slot("first", Slot("First").state("count").emits({"second"}), [](Event& event) {
    const auto parts = event.as<std::vector<grape::Value>>();
    auto count = event.state("count");
    count.set(count.get<std::int64_t>(0) + 1);
    event.emit("second", parts[1], key_of(parts[0]));
    if (parts[1].as<std::int64_t>() < 0) throw std::runtime_error("first");
  });
  worker.slot("who", Slot("Who"), [](Event& event) {
    event.emit("out", std::make_tuple(event.id(), event.attempt()));
  });
  worker.slot("many", Slot("Many"), [](Event& event) {
    const auto count = event.as<std::int64_t>();
    for (std::int64_t i = 0; i < count; ++i) event.emit("out", i);
  });
  worker.slot("send", Slot("Send"), [](Event& event) {
    const auto parts = event.as<std::vector<grape::Value>>();
    event.emit("echo", parts[1], key_of(parts[0]));
  });
  worker.slot("answer", Slot("Answer"), [](Event& event) { event.reply(event.data()); });
  worker.slot("later", Slot("Later"), [](Event& event) {
    const auto parts = event.as<std::vector<grape::Value>>();
    event.emit("out", parts[1], grape::Emit().delay(Seconds(parts[0].as<double>())));
  });
  worker.slot("alarm", Slot("Alarm"), [](Event& event) {
    const auto parts = event.as<std::vector<grape::Value>>();
    auto how = grape::Emit().timer(parts[0].as<std::string>());
    if (!parts[1].is_nil()) how.delay(Seconds(parts[1].as<double>()));
    event.emit("out", parts[2], how);
  });
  worker.slot("calm", Slot("Alarm"), [](Event& event) { event.cancel_timer(event.as<std::string>()); });
  worker.slot("ask", Slot("Ask").state("count"), [](Event& event) {
    auto count = event.state("count");
    count.set(count.get<std::int64_t>(0) + 1);
    event.emit("out", "asks");
    std::vector<grape::Value> answers;
    for (const auto& data : event.as<std::vector<grape::Value>>()) {
      try {
        answers.push_back(event.call("answer", data, grape::Ask().timeout(Seconds(5))).as<grape::Value>());
      } catch (const grape::CallFailed& e) {
        answers.push_back(grape::Value::Array{e.code(), e.text()});
      } catch (const grape::NoAnswer& e) {
        answers.push_back(grape::Value::Array{e.kind(), std::string(e.what())});
      }
    }
    event.emit("out", answers);
  });
  worker.slot("refer", Slot("Refer"), [](Event& event) {
    const auto parts = event.as<std::vector<grape::Value>>();
    grape::Ask how;
    if (parts[0].is_nil()) {
      how.keyless();
    } else {
      how.key(parts[0].as<std::string>());
    }
    event.emit("out", event.call("answer", parts[1], how));
  });
  worker.slot("greedy", Slot("Greedy"), [](Event& event) {
    try {
      event.call("answer", event.data());
    } catch (...) {
      event.emit("out", "caught");
    }
  });
  worker.slot("export", Slot("Export"), [](Event& event) {
    const auto parts = event.as<std::vector<grape::Value>>();
    event.emit(parts[0].as<std::string>(), parts[1]);
  });
  worker.slot("consult", Slot("Consult"), [](Event& event) {
    const auto parts = event.as<std::vector<grape::Value>>();
    event.emit("out", event.call(parts[0].as<std::string>(), parts[1]));
  });
  worker.slot("paced", Slot("Paced").rate("10/s").burst(3).timeout(Seconds(1)), [](Event& event) { event.emit("out", event.data()); });
  worker.slot("hurry", Slot("Hurry").emits("paced"), [](Event& event) { event.emit("paced", event.data()); });
  const auto keep = [](Event& event) {
    for (const auto& words : event.as<std::vector<grape::Value::Array>>()) keep_one(event, words);
  };
  worker.slot("keep", Slot("Keep").emits("kept"), keep);
  worker.slot("kept", Slot("Kept"), keep);
  worker.slot("sleep", Slot("Sleep").timeout(Seconds(1)), [](Event& event) {
    std::this_thread::sleep_for(Seconds(event.as<double>()));
    event.emit("out", event.data());
  });
  worker.slot("unknown", Slot("Unknown"), [](Event& event) { event.emit("nowhere", event.data()); });
  worker.slot("say", Slot("Say"), [](Event& event) { grape::log("info", event.as<std::string>()); });
  const auto note = [](Event& event) {
    const auto parts = event.as<std::vector<grape::Value>>();
    const auto* fields = parts[2].get_if<grape::Value::Map>();
    grape::log(parts[0].as<std::string>(), parts[1].as<std::string>(), fields == nullptr ? grape::Value::Map() : *fields);
  };
  worker.slot("note", Slot("Note"), note);
  worker.slot("mutter", Slot("Mutter"), note);
  worker.slot("die", Slot("Die"), [](Event&) { _exit(3); });
  return worker.run();
}
