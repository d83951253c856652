/// What a handler does with objects: `event.storage()`.
#pragma once

#include <istream>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "event.hpp"
#include "objects.hpp"

namespace grape {

/// The objects of one namespace, valid while the handler of its event runs. What is written is committed with what else the event
/// does, or not at all; later events of its partition, so of its key, see it at once.
///
/// Throws Error "handler": it is not granted, or cannot be had; "bad-argument": a key, a tag or a range that cannot be;
/// "too-large"; "event-over".
class Storage {
 public:
  /// Writes an object, whole. Over 64 KiB go to a file at once, chunk by chunk.
  void put(std::string_view key, std::string_view data, const Put& how = Put()) {
    detail::Written written = begin(key, how);
    if (data.size() <= detail::most_inline) return put_inline(std::move(written), data);
    std::size_t at = 0;
    bring(std::move(written), [&] {
      const std::string_view chunk = data.substr(at, detail::chunk_size);
      at += chunk.size();
      return std::string(chunk);
    });
  }
  void put(std::string_view key, const char* text, const Put& how = Put()) { put(key, std::string_view(text), how); }

  /// What a stream still has, such as a std::ifstream.
  void put(std::string_view key, std::istream& stream, const Put& how = Put()) {
    if (!stream) throw Error("handler", "the stream for object '" + detail::clean_text(key, 100) + "' cannot be read");
    put(
        key,
        [&stream] {
          std::string chunk(detail::chunk_size, '\0');
          stream.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
          if (stream.bad()) throw Error("handler", "a stream that is put broke off");
          chunk.resize(static_cast<std::size_t>(stream.gcount()));
          return chunk;
        },
        how);
  }

  /// Chunks: `next()` gives the next one, an empty one at the end.
  template <class Next, std::enable_if_t<std::is_invocable_r_v<std::string, Next&>, int> = 0>
  void put(std::string_view key, Next&& next, const Put& how = Put()) {
    detail::Written written = begin(key, how);
    std::string buffer;
    bool is_over = false;
    const auto fill = [&](std::size_t size) {
      while (!is_over && buffer.size() < size) {
        const std::string chunk = next();
        is_over = chunk.empty();
        buffer += chunk;
      }
    };
    fill(detail::most_inline + 1);
    if (is_over && buffer.size() <= detail::most_inline) return put_inline(std::move(written), buffer);
    bring(std::move(written), [&] {
      fill(detail::chunk_size);
      std::string rest = buffer.size() > detail::chunk_size ? buffer.substr(detail::chunk_size) : std::string();
      buffer.resize(std::min(buffer.size(), detail::chunk_size));
      return std::exchange(buffer, std::move(rest));
    });
  }

  /// Its bytes from `start` up to `end` (not included; -1: all), if it is there.
  [[nodiscard]] std::optional<std::string> get(std::string_view key, std::int64_t start = 0, std::int64_t end = -1) const {
    std::string out;
    if (!chunks(key, [&](std::string_view chunk) { out.append(chunk); }, start, end)) return std::nullopt;
    return out;
  }

  /// The same as chunks of up to 1 MiB, each given to `take`; false: there is no such object.
  template <class Take>
  bool chunks(std::string_view key, Take&& take, std::int64_t start = 0, std::int64_t end = -1) const {
    check(false);
    detail::check_object_key(key);
    if (start < 0 || end < -1 || (end >= 0 && end < start)) {
      detail::bad_argument("a range is from 0 or more to the same or more, not " + std::to_string(start) + " to " + std::to_string(end));
    }
    return objects().read(space_, std::string(key), start, end, std::forward<Take>(take));
  }

  [[nodiscard]] std::optional<About> stat(std::string_view key) const {
    check(false);
    detail::check_object_key(key);
    return objects().stat(space_, std::string(key));
  }

  /// Those that are committed, begin with `prefix` and have all of `tags`, in the order of keys.
  [[nodiscard]] std::vector<About> list(std::string_view prefix = {}, const std::vector<std::string>& tags = {}) const {
    std::vector<About> out;
    each(prefix, [&](About& about) { out.push_back(std::move(about)); }, tags);
    return out;
  }

  /// The same, each given to `take`.
  template <class Take>
  void each(std::string_view prefix, Take&& take, const std::vector<std::string>& tags = {}) const {
    check(false);
    detail::check_prefix(prefix);
    const std::vector<std::string> wanted = detail::checked_tags(tags);
    std::string position;
    do {
      std::vector<About> page;
      position = objects().page(space_, std::string(prefix), position, page);
      for (auto& about : page) {
        if (std::includes(about.tags.begin(), about.tags.end(), wanted.begin(), wanted.end())) take(about);
      }
    } while (!position.empty());
  }

  void remove(std::string_view key) {
    check(true);
    detail::check_object_key(key);
    detail::Written written;
    written.space = space_;
    written.key = key;
    write(std::move(written));
  }

 private:
  friend class Event;
  Event& event_;
  std::string space_;

  Storage(Event& event, std::string space) : event_(event), space_(std::move(space)) {}

  [[nodiscard]] detail::Objects& objects() const { return *event_.objects_; }

  void check(bool writes) const {
    event_.check_open();
    objects().check_may(event_.node_->name, space_, writes);
  }

  [[nodiscard]] detail::Written begin(std::string_view key, const Put& how) const {
    check(true);
    detail::check_object_key(key);
    detail::check_content_type(how.content_type_);
    detail::check_user(how.user_);
    detail::Written out;
    out.space = space_;
    out.key = key;
    out.content_type = how.content_type_;
    out.tags = detail::checked_tags(how.tags_);
    out.user = how.user_;
    out.time = how.time_;
    if (how.ttl_ > 0) {
      const auto now = std::chrono::system_clock::now().time_since_epoch();
      out.expires = std::chrono::duration_cast<std::chrono::microseconds>(now).count() + how.ttl_;
    }
    return out;
  }

  void put_inline(detail::Written written, std::string_view data) {
    written.size = static_cast<std::int64_t>(data.size());
    written.checksum = detail::Sha256::of(data);
    written.data = data;
    write(std::move(written));
  }

  template <class Next>
  void bring(detail::Written written, Next&& next) {
    objects().bring(written, std::forward<Next>(next));
    write(std::move(written));
  }

  void write(detail::Written written) {
    auto whole = std::make_shared<detail::Written>(std::move(written));
    event_.objects_size_ += whole->weight();
    event_.check_size();
    event_.written_.push_back(whole);
    objects().note(whole);
  }
};

inline Storage Event::storage() {
  check_open();
  return {*this, objects_->own()};
}

inline Storage Event::storage(std::string_view name) {
  check_open();
  detail::check_namespace(name);
  return {*this, std::string(name)};
}

}  // namespace grape
