/* The same as a shared object: grape-run-so ./libcount.so */
#include <grape/grape.h>

static void count(grape_event* event, void* user) {
  (void)user;
  int64_t total = 0;
  size_t size = 0;
  const void* stored = grape_state_get(event, "count", &size);
  if (stored != NULL && grape_read_int(stored, size, &total) != 0) {
    grape_fail(event, "bad-state", "the count is no number");
    return;
  }
  unsigned char packed[9];
  size = grape_write_int(packed, total + 1);
  grape_state_set(event, "count", packed, size);
  grape_emit(event, "total", packed, size, NULL);
}

void grape_register(grape_worker* worker) {
  static const grape_state states[] = {{"count", 0}};
  static const char* const emits[] = {"total"};
  grape_slot_options options;
  grape_slot_defaults(&options, "Count");
  options.states = states;
  options.state_count = 1;
  options.emits = emits;
  options.emit_count = 1;
  grape_slot(worker, "word", &options, count, NULL);
}
