// C++'s part of the relay: count the runner, and hand it to the referee.
#include <cstdint>
#include <grape/worker.hpp>
#include <map>
#include <string>

int main(int argc, char** argv) {
  grape::Worker worker(argc, argv);
  worker.slot("cpp", grape::Slot("Plus").state("laps").emits("lap"), [](grape::Event& event) {
    auto laps = event.state("laps");
    laps.set(laps.get<std::int64_t>(0) + 1);
    auto runner = event.as<std::map<std::string, grape::Value>>();
    runner["cpp"] = laps.get<std::int64_t>();
    event.emit("lap", runner);
  });
  return worker.run();
}
