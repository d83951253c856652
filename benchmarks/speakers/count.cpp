#include <cstdint>
#include <grape/worker.hpp>

int main(int argc, char** argv) {
  grape::Worker worker(argc, argv);
  worker.slot("word", grape::Slot("Count").state("seen"), [](grape::Event& event) {
    auto seen = event.state("seen");
    seen.set(seen.get<std::int64_t>(0) + 1);
  });
  return worker.run();
}
