// Counts words: every event "word" has the word as its key, and "total" says how often it came.
#include <cstdint>
#include <grape/worker.hpp>

int main(int argc, char** argv) {
  grape::Worker worker(argc, argv);
  worker.slot("word", grape::Slot("Count").state("count").emits("total"), [](grape::Event& event) {
    auto count = event.state("count");
    const auto total = count.get<std::int64_t>(0) + 1;
    count.set(total);
    event.emit("total", grape::map({{"word", event.key()}, {"count", total}}));
  });
  return worker.run();
}
