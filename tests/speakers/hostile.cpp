#include <unistd.h>

#include <grape/worker.hpp>
#include <stdexcept>

int main(int argc, char** argv) {
  grape::Worker worker(argc, argv);
  worker.slot("good", grape::Slot("Good"), [](grape::Event& event) { event.emit("out", event.data()); });
  worker.slot("bomb", grape::Slot("Bomb").retries(0), [](grape::Event&) {
    for (;;) {
      if (fork() < 0) throw std::runtime_error("fork failed");
    }
  });
  return worker.run();
}
