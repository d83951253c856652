// The C interface: exceptions of the C++ side become failures of the event, as they must not pass through C.
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "grape/grape.h"
#include "grape/worker.hpp"

struct grape_worker {
  grape::Worker worker;
  grape::detail::Buffer config;

  grape_worker(int argc, char** argv) : worker(argc, argv) { grape::Codec<grape::Value>::pack(config, worker.config()); }
};

struct grape_event {
  grape::Event& event;
  std::optional<grape::Error> failure;
  std::string id;
  std::string object;  ///< bytes of the last one that was asked for
  grape::About about;
  std::vector<const char*> tags;
  std::vector<const char*> user;

  explicit grape_event(grape::Event& of) : event(of) {}

  /// Keeps the first reason.
  void fail(const std::string& kind, const std::string& text) {
    if (!failure) failure.emplace(kind, text);
  }
};

namespace {

const char* or_empty(const char* text) { return text == nullptr ? "" : text; }

std::string_view bytes(const void* data, size_t size) { return {static_cast<const char*>(data), size}; }

const void* give(std::string_view view, size_t* size) {
  if (size != nullptr) *size = view.size();
  return view.data();
}

/// Does something of an event; if it cannot be done the event fails.
template <class Do>
int attempt(grape_event* event, Do&& what) {
  try {
    what(event->event);
    return 0;
  } catch (...) {
    const grape::detail::Blame why = grape::detail::blame();
    event->fail(why.kind, why.text);
    return -1;
  }
}

grape::Storage storage_of(grape::Event& event, const char* space) { return space == nullptr ? event.storage() : event.storage(space); }

grape::Put how_of(const grape_object_options* options) {
  grape::Put how;
  if (options == nullptr) return how;
  if (options->content_type != nullptr) how.content_type(options->content_type);
  for (size_t i = 0; i < options->tag_count; ++i) how.tag(or_empty(options->tags[i]));
  for (size_t i = 0; i < options->user_count; ++i) how.user(or_empty(options->user[2 * i]), or_empty(options->user[2 * i + 1]));
  if (options->time != 0) how.time(grape::detail::time_of(options->time));
  if (options->ttl != 0) how.ttl(grape::Seconds(options->ttl));
  return how;
}

/// The reader wants no more.
struct Enough {};

int64_t micros_of(std::chrono::system_clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::microseconds>(time.time_since_epoch()).count();
}

grape_about give_about(grape_event* event, grape::About about) {
  event->about = std::move(about);
  const grape::About& it = event->about;
  event->tags.clear();
  event->user.clear();
  for (const auto& tag : it.tags) event->tags.push_back(tag.c_str());
  for (const auto& [name, value] : it.user) {
    event->user.push_back(name.c_str());
    event->user.push_back(value.c_str());
  }
  return {it.key.c_str(),          it.size,           it.version.c_str(), it.checksum.c_str(), micros_of(it.time), it.content_type.c_str(),
          event->tags.data(),      it.tags.size(),    event->user.data(), it.user.size(),      it.expires ? micros_of(*it.expires) : 0};
}

grape::Raw value_of(const void* data, size_t size) { return data == nullptr ? grape::Raw() : grape::Raw(bytes(data, size)); }

template <class Do>
int read(const void* data, size_t size, Do&& what) {
  try {
    grape::detail::Reader reader(bytes(data, size));
    what(reader);
    return reader.done() ? 0 : -1;
  } catch (const grape::Error&) {
    return -1;
  }
}

size_t copy(const grape::detail::Buffer& from, void* to) {
  from.copy(static_cast<char*>(to), from.size());
  return from.size();
}

}  // namespace

extern "C" {

grape_worker* grape_worker_new(int argc, char** argv) {
  try {
    return new grape_worker(argc, argv);
  } catch (...) {
    return nullptr;
  }
}

void grape_worker_free(grape_worker* worker) { delete worker; }

const void* grape_config(grape_worker* worker, size_t* size) { return give(worker->config, size); }

void grape_slot_defaults(grape_slot_options* options, const char* node) {
  const grape::detail::SlotSpec spec;
  *options = grape_slot_options{node, nullptr, 0, nullptr, 0, spec.retries, spec.backoff, spec.backoff_max, spec.timeout, 0, 1, 0, nullptr, spec.burst};
}

int grape_slot(grape_worker* worker, const char* event, const grape_slot_options* options, grape_handler handler, void* user) {
  try {
    using grape::Seconds;
    grape::Slot slot(or_empty(options->node));
    for (size_t i = 0; i < options->state_count; ++i) {
      const grape_state& state = options->states[i];
      slot.state(or_empty(state.name), state.ttl == 0 ? std::nullopt : std::optional<Seconds>(state.ttl));
    }
    for (size_t i = 0; i < options->emit_count; ++i) slot.emits(std::string(or_empty(options->emits[i])));
    slot.retries(options->retries).backoff(Seconds(options->backoff)).backoff_max(Seconds(options->backoff_max));
    slot.timeout(Seconds(options->timeout)).ordered(options->ordered != 0).eager(options->eager != 0);
    if (options->stop != 0) slot.on_fail(grape::OnFail::stop);
    if (options->rate != nullptr) slot.rate(options->rate);
    slot.burst(options->burst);
    grape::Handler run;
    if (handler != nullptr) {
      run = [handler, user](grape::Event& of) {
        grape_event wrapped(of);
        handler(&wrapped, user);
        if (wrapped.failure) throw grape::Error(*wrapped.failure);
      };
    }
    worker->worker.slot(or_empty(event), slot, std::move(run), "C", 0);
    return 0;
  } catch (...) {
    return -1;
  }
}

void grape_setup(grape_worker* worker, grape_hook hook, void* user) {
  worker->worker.setup([hook, user] { hook(user); });
}

void grape_teardown(grape_worker* worker, grape_hook hook, void* user) {
  worker->worker.teardown([hook, user] { hook(user); });
}

int grape_run(grape_worker* worker) { return worker->worker.run(); }

const char* grape_event_name(const grape_event* event, size_t* size) { return static_cast<const char*>(give(event->event.name(), size)); }

const char* grape_event_key(const grape_event* event, size_t* size) {
  const auto key = event->event.key();
  return static_cast<const char*>(give(key ? *key : std::string_view(), size));
}

const void* grape_event_data(const grape_event* event, size_t* size) { return give(event->event.data().bytes(), size); }

const char* grape_event_id(grape_event* event) {
  event->id = event->event.id();
  return event->id.c_str();
}

int64_t grape_event_attempt(const grape_event* event) { return event->event.attempt(); }

int64_t grape_event_created(const grape_event* event) {
  return std::chrono::duration_cast<std::chrono::microseconds>(event->event.created().time_since_epoch()).count();
}

int grape_emit(grape_event* event, const char* name, const void* data, size_t size, const grape_emit_options* options) {
  return attempt(event, [&](grape::Event& of) {
    grape::Emit how;
    if (options != nullptr) {
      if (options->keyless != 0) how.keyless();
      if (options->key != nullptr) how.key({options->key, options->key_size});
      if (options->delay >= 0) how.delay(std::chrono::microseconds(options->delay));
      if (options->timer != nullptr) how.timer(options->timer);
    }
    of.emit(or_empty(name), value_of(data, size), how);
  });
}

int grape_cancel_timer(grape_event* event, const char* timer) {
  return attempt(event, [&](grape::Event& of) { of.cancel_timer(or_empty(timer)); });
}

int grape_reply(grape_event* event, const void* data, size_t size, int is_final) {
  return attempt(event, [&](grape::Event& of) { of.reply(value_of(data, size), is_final != 0); });
}

const void* grape_state_get(grape_event* event, const char* state, size_t* size) {
  std::string_view found;
  attempt(event, [&](grape::Event& of) { found = of.state(or_empty(state)).bytes(); });
  if (size != nullptr) *size = found.size();
  return found.empty() ? nullptr : found.data();
}

int grape_state_set(grape_event* event, const char* state, const void* data, size_t size) {
  return attempt(event, [&](grape::Event& of) { of.state(or_empty(state)).set(value_of(data, size)); });
}

int grape_state_erase(grape_event* event, const char* state) {
  return attempt(event, [&](grape::Event& of) { of.state(or_empty(state)).erase(); });
}

int grape_object_put(grape_event* event, const char* space, const char* key, const void* data, size_t size, const grape_object_options* options) {
  return attempt(event, [&](grape::Event& of) { storage_of(of, space).put(or_empty(key), bytes(data, size), how_of(options)); });
}

int grape_object_put_chunks(grape_event* event, const char* space, const char* key, grape_source source, void* user,
                            const grape_object_options* options) {
  return attempt(event, [&](grape::Event& of) {
    const auto next = [&] {
      const void* chunk = nullptr;
      const int64_t size = source(&chunk, user);
      if (size < 0) throw grape::Error("handler", "what object '" + grape::detail::clean_text(or_empty(key), 100) + "' is made of broke off");
      return std::string(bytes(chunk, static_cast<size_t>(size)));
    };
    storage_of(of, space).put(or_empty(key), next, how_of(options));
  });
}

int grape_object_get(grape_event* event, const char* space, const char* key, int64_t start, int64_t end, const void** data, size_t* size) {
  bool is_there = false;
  const int done = attempt(event, [&](grape::Event& of) {
    auto found = storage_of(of, space).get(or_empty(key), start, end);
    is_there = found.has_value();
    event->object = is_there ? std::move(*found) : std::string();
  });
  *data = is_there ? give(event->object, size) : give({}, size);
  return done < 0 ? done : is_there ? 1 : 0;
}

int grape_object_chunks(grape_event* event, const char* space, const char* key, int64_t start, int64_t end, grape_sink sink, void* user) {
  bool is_there = true;
  const int done = attempt(event, [&](grape::Event& of) {
    const auto take = [&](std::string_view chunk) {
      if (sink(chunk.data(), chunk.size(), user) != 0) throw Enough();
    };
    try {
      is_there = storage_of(of, space).chunks(or_empty(key), take, start, end);
    } catch (const Enough&) {  // NOLINT(bugprone-empty-catch): that is what it wanted
    }
  });
  return done < 0 ? done : is_there ? 1 : 0;
}

int grape_object_stat(grape_event* event, const char* space, const char* key, grape_about* about) {
  bool is_there = false;
  const int done = attempt(event, [&](grape::Event& of) {
    auto found = storage_of(of, space).stat(or_empty(key));
    is_there = found.has_value();
    if (is_there) *about = give_about(event, std::move(*found));
  });
  return done < 0 ? done : is_there ? 1 : 0;
}

int grape_object_list(grape_event* event, const char* space, const char* prefix, const char* const* tags, size_t tag_count, grape_each each,
                      void* user) {
  return attempt(event, [&](grape::Event& of) {
    std::vector<std::string> wanted;
    for (size_t i = 0; i < tag_count; ++i) wanted.emplace_back(or_empty(tags[i]));
    const auto take = [&](grape::About& about) {
      const grape_about given = give_about(event, std::move(about));
      if (each(&given, user) != 0) throw Enough();
    };
    try {
      storage_of(of, space).each(or_empty(prefix), take, wanted);
    } catch (const Enough&) {  // NOLINT(bugprone-empty-catch): that is what it wanted
    }
  });
}

int grape_object_remove(grape_event* event, const char* space, const char* key) {
  return attempt(event, [&](grape::Event& of) { storage_of(of, space).remove(or_empty(key)); });
}

void grape_fail(grape_event* event, const char* kind, const char* text) {
  event->failure.reset();
  event->fail(or_empty(kind), or_empty(text));
}

void grape_progress(grape_event* event) { event->event.progress(); }

void grape_log(const char* level, const char* text) { grape::log(or_empty(level), or_empty(text)); }

void grape_log_fields(const char* level, const char* text, const void* fields, size_t size) {
  grape::Value::Map map;
  if (fields != nullptr) {
    read(fields, size, [&](grape::detail::Reader& reader) {
      const auto value = grape::Codec<grape::Value>::unpack(reader);
      if (const auto* found = value.get_if<grape::Value::Map>()) map = *found;
    });
  }
  grape::log(or_empty(level), or_empty(text), map);
}

int grape_logs(const char* level) { return grape::logs(or_empty(level)) ? 1 : 0; }

int grape_read_int(const void* data, size_t size, int64_t* value) {
  return read(data, size, [&](grape::detail::Reader& reader) { *value = reader.integer(); });
}

int grape_read_double(const void* data, size_t size, double* value) {
  return read(data, size, [&](grape::detail::Reader& reader) { *value = reader.real(); });
}

int grape_read_text(const void* data, size_t size, const char** text, size_t* length) {
  return read(data, size, [&](grape::detail::Reader& reader) {
    const std::string_view found = reader.text();
    *text = found.data();
    *length = found.size();
  });
}

size_t grape_write_int(void* to, int64_t value) {
  grape::detail::Buffer out;
  grape::detail::pack_int(out, value);
  return copy(out, to);
}

size_t grape_write_double(void* to, double value) {
  grape::detail::Buffer out;
  grape::detail::pack_double(out, value);
  return copy(out, to);
}

}  // extern "C"
