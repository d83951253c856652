/* The C interface of Grape's worker SDK. Values travel as msgpack bytes: one whole value each.
 *
 * Functions that return int give 0, or -1 if it cannot be done. In a handler that fails the event, with the reason, as soon as
 * the handler returns (unless it says another one with grape_fail). Pointers that a function returns belong to the event or the
 * worker; those of an event are valid until its handler returns. */
#ifndef GRAPE_GRAPE_H
#define GRAPE_GRAPE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct grape_worker grape_worker;
typedef struct grape_event grape_event;
typedef void (*grape_handler)(grape_event* event, void* user);
typedef void (*grape_hook)(void* user);

typedef struct {
  const char* name;
  double ttl; /* seconds after it was last set; 0: kept until deleted */
} grape_state;

/* Fill it with grape_slot_defaults, then change what should be otherwise. Times are seconds. */
typedef struct {
  const char* node;
  const grape_state* states; /* of the node, beside those that its other slots name */
  size_t state_count;
  const char* const* emits;
  size_t emit_count;
  int64_t retries; /* attempts after the first one */
  double backoff;
  double backoff_max;
  double timeout; /* 0: none */
  int stop;       /* after the last attempt the key waits for an operator */
  int ordered;    /* later events of a key wait while one is retried */
  int eager;      /* a client's event runs before it is accepted */
  const char* rate; /* "100/s", "20/min", "500/h", "10/day": events at most, over all workers of the app; null: any number */
  int64_t burst;    /* of them at once, after a pause */
} grape_slot_options;

typedef struct {
  const char* key; /* UTF-8; null: that of the event, or none if keyless */
  size_t key_size;
  int keyless;
  int64_t delay; /* microseconds; below 0: none */
  const char* timer; /* of an emit with a delay: its name, one of this node and key; null: none */
} grape_emit_options;

/* ---- the worker ---- */

/* Null: no memory. */
grape_worker* grape_worker_new(int argc, char** argv);
void grape_worker_free(grape_worker* worker);
/* The app's configuration, a msgpack map. */
const void* grape_config(grape_worker* worker, size_t* size);
void grape_slot_defaults(grape_slot_options* options, const char* node);
int grape_slot(grape_worker* worker, const char* event, const grape_slot_options* options, grape_handler handler, void* user);
void grape_setup(grape_worker* worker, grape_hook hook, void* user);
void grape_teardown(grape_worker* worker, grape_hook hook, void* user);
/* Serves the engine; returns what main should. */
int grape_run(grape_worker* worker);

/* ---- an event ---- */

const char* grape_event_name(const grape_event* event, size_t* size);
/* Null: it has none. Not ended by a NUL. */
const char* grape_event_key(const grape_event* event, size_t* size);
const void* grape_event_data(const grape_event* event, size_t* size);
/* Ended by a NUL. */
const char* grape_event_id(grape_event* event);
int64_t grape_event_attempt(const grape_event* event);
/* Microseconds since 1970. */
int64_t grape_event_created(const grape_event* event);

/* `options` null: with the key of the event, at once. `data` null: nil. */
int grape_emit(grape_event* event, const char* name, const void* data, size_t size, const grape_emit_options* options);
/* Takes back the timer of that name, if it is not due yet. */
int grape_cancel_timer(grape_event* event, const char* timer);
int grape_reply(grape_event* event, const void* data, size_t size, int is_final);
/* The value of a state; null if it is not set, or cannot be had (then the event fails). Valid until a state is set. */
const void* grape_state_get(grape_event* event, const char* state, size_t* size);
int grape_state_set(grape_event* event, const char* state, const void* data, size_t size);
int grape_state_erase(grape_event* event, const char* state);
/* ---- objects: `space` is a namespace that grape.toml grants; null: the app's own ---- */

/* All of it may be 0 or null. */
typedef struct {
  const char* content_type;
  const char* const* tags;
  size_t tag_count;
  const char* const* user; /* metadata of your own: name, value, name, value, ... */
  size_t user_count;       /* pairs */
  int64_t time;            /* microseconds since 1970; 0: now */
  double ttl;              /* seconds after which it is gone; 0: never */
} grape_object_options;

/* What is known of an object. Texts end with a NUL, and are valid until the next question for objects. */
typedef struct {
  const char* key;
  int64_t size;
  const char* version;
  const char* checksum; /* "sha256:" and hexadecimal digits */
  int64_t time;
  const char* content_type;
  const char* const* tags;
  size_t tag_count;
  const char* const* user;
  size_t user_count;
  int64_t expires; /* microseconds since 1970; 0: never */
} grape_about;

/* Gives the next chunk, valid until it is called again: its bytes, 0 at the end, or -1: it cannot go on, and the event fails. */
typedef int64_t (*grape_source)(const void** chunk, void* user);
/* Takes a chunk; what is not 0 ends the reading. */
typedef int (*grape_sink)(const void* chunk, size_t size, void* user);
typedef int (*grape_each)(const grape_about* about, void* user);

/* Written with what else the event does. `options` may be null. */
int grape_object_put(grape_event* event, const char* space, const char* key, const void* data, size_t size, const grape_object_options* options);
int grape_object_put_chunks(grape_event* event, const char* space, const char* key, grape_source source, void* user,
                            const grape_object_options* options);
/* From `start` up to `end` (not included; -1: all). 1: it is there, 0: it is not. `data` is valid until the next question for objects. */
int grape_object_get(grape_event* event, const char* space, const char* key, int64_t start, int64_t end, const void** data, size_t* size);
int grape_object_chunks(grape_event* event, const char* space, const char* key, int64_t start, int64_t end, grape_sink sink, void* user);
int grape_object_stat(grape_event* event, const char* space, const char* key, grape_about* about);
/* Those that are committed, begin with `prefix`, and have all of these tags, in the order of keys. */
int grape_object_list(grape_event* event, const char* space, const char* prefix, const char* const* tags, size_t tag_count, grape_each each,
                      void* user);
int grape_object_remove(grape_event* event, const char* space, const char* key);

/* ---- how it ends ---- */

/* The event fails when the handler returns; nothing that it did becomes effective. */
void grape_fail(grape_event* event, const char* kind, const char* text);
/* The timeout starts anew. */
void grape_progress(grape_event* event);

/* "debug", "info", "warning", "error" or "critical". */
void grape_log(const char* level, const char* text);
/* With plain values beside the text: a msgpack map. */
void grape_log_fields(const char* level, const char* text, const void* fields, size_t size);
/* Whether a record of this level is wanted of the node that runs. */
int grape_logs(const char* level);

/* ---- msgpack of plain values, so that small handlers need no library ---- */

/* These give 0, or -1 if the value is something else. */
int grape_read_int(const void* data, size_t size, int64_t* value);
int grape_read_double(const void* data, size_t size, double* value);
int grape_read_text(const void* data, size_t size, const char** text, size_t* length);
/* These write at most 9 bytes, and return how many. */
size_t grape_write_int(void* to, int64_t value);
size_t grape_write_double(void* to, double value);

/* A shared object for grape-run-so defines this, and declares its slots in it. */
void grape_register(grape_worker* worker);

#ifdef __cplusplus
}
#endif

#endif
