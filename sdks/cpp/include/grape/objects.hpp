/// Objects of a worker: what handlers write is part of what they emit; what they read is asked for, unless it was written here
/// and the engine does not know of it yet.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "channel.hpp"
#include "error.hpp"
#include "messages.hpp"
#include "sha256.hpp"
#include "text.hpp"

namespace grape {

/// What is known of an object beside its bytes.
struct About {
  std::string key;
  std::int64_t size = 0;  ///< bytes
  std::string version;    ///< another one after every write; "0": it is not committed
  std::string checksum;   ///< "sha256:" and hexadecimal digits
  std::chrono::system_clock::time_point time;
  std::string content_type;
  std::vector<std::string> tags;
  std::map<std::string, std::string> user;
  std::optional<std::chrono::system_clock::time_point> expires;
};

/// How an object is put: `grape::Put().content_type("text/plain").tag("raw").ttl(1h)`.
class Put {
 public:
  Put& content_type(std::string type) {
    content_type_ = std::move(type);
    return *this;
  }
  Put& tag(std::string tag) {
    tags_.push_back(std::move(tag));
    return *this;
  }
  /// Metadata of your own.
  Put& user(std::string name, std::string value) {
    user_[std::move(name)] = std::move(value);
    return *this;
  }
  /// Without it that of now.
  Put& time(std::chrono::system_clock::time_point time) {
    time_ = std::chrono::duration_cast<std::chrono::microseconds>(time.time_since_epoch()).count();
    if (time_ <= 0) throw Error("bad-argument", "the time of an object is one after 1970");
    return *this;
  }
  /// After which it is gone.
  template <class Rep, class Period>
  Put& ttl(std::chrono::duration<Rep, Period> time) {
    const double micros = std::chrono::duration<double, std::micro>(time).count();
    if (!(micros >= 0 && micros <= 2.3e18)) throw Error("bad-argument", "the ttl of an object is from 0 to 72,000 years");
    ttl_ = std::max(std::int64_t{1}, static_cast<std::int64_t>(micros));
    return *this;
  }

 private:
  friend class Storage;
  std::string content_type_ = "application/octet-stream";
  std::vector<std::string> tags_;
  std::map<std::string, std::string> user_;
  std::int64_t time_ = 0;
  std::int64_t ttl_ = 0;
};

namespace detail {

inline constexpr std::size_t most_inline = 64U << 10U;  ///< bytes that lie in a row; more go ahead, into a file
inline constexpr std::size_t chunk_size = 1U << 20U;

[[noreturn]] inline void bad_argument(const std::string& text) { throw Error("bad-argument", text); }

inline bool is_name(std::string_view text, std::size_t most) {
  const auto is_first = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  return !text.empty() && text.size() <= most && is_first(text[0]) &&
         std::all_of(text.begin(), text.end(), [&](char c) { return is_first(c) || c == '_' || c == '.' || c == '-'; });
}

inline void check_namespace(std::string_view name) {
  if (is_name(name, 63) && name.find("..") == std::string_view::npos) return;
  bad_argument("a namespace is 1 to 63 small letters, digits, '-', '_' and '.', the first a letter or digit, without '..', not '" +
               clean_text(name, 100) + "'");
}

/// What keys may begin with.
inline void check_prefix(std::string_view prefix) {
  if (!is_utf8(prefix)) bad_argument("the key of an object is UTF-8");
  if (prefix.size() > 900) {
    bad_argument("the key of an object has at most 900 bytes of UTF-8; '" + clean_text(prefix, 30) + "' has " +
                 std::to_string(prefix.size()));
  }
  if (std::any_of(prefix.begin(), prefix.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; })) {
    bad_argument("the key of an object has no control characters");
  }
}

inline void check_object_key(std::string_view key) {
  if (key.empty()) bad_argument("the key of an object is text of 1 character at least");
  check_prefix(key);
  for (std::size_t start = 0; start <= key.size();) {
    const std::size_t end = std::min(key.find('/', start), key.size());
    const std::string_view part = key.substr(start, end - start);
    if (part.empty() || part == "." || part == "..") {
      bad_argument("the key of an object has no empty part, '.' or '..' between its '/': '" + clean_text(key, 100) + "'");
    }
    start = end + 1;
  }
}

/// Text without control characters, and without line ends of any kind.
inline bool is_plain(std::string_view text) {
  if (!is_utf8(text)) return false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c < 0x20 || c == 0x7F) return false;
    const auto next = [&](std::size_t by) { return static_cast<unsigned char>(text[i + by]); };
    if (c == 0xC2 && next(1) < 0xA0) return false;
    if (c == 0xE2 && next(1) == 0x80 && (next(2) == 0xA8 || next(2) == 0xA9)) return false;
  }
  return true;
}

/// Sorted, each once.
inline std::vector<std::string> checked_tags(std::vector<std::string> tags) {
  for (const auto& tag : tags) {
    if (tag.empty() || tag.size() > 200 || !is_plain(tag)) {
      bad_argument("a tag is printable text of 1 to 200 bytes, not '" + clean_text(tag, 100) + "'");
    }
  }
  std::sort(tags.begin(), tags.end());
  tags.erase(std::unique(tags.begin(), tags.end()), tags.end());
  if (tags.size() > 50) bad_argument("an object has at most 50 tags, not " + std::to_string(tags.size()));
  return tags;
}

inline void check_user(const std::map<std::string, std::string>& user) {
  std::size_t size = 0;
  for (const auto& [name, value] : user) {
    if (!is_name(name, 100)) {
      bad_argument("a name of user metadata is small letters, digits, '-', '_' and '.', not '" + clean_text(name, 100) + "'");
    }
    if (!is_plain(value)) bad_argument("user metadata '" + name + "' is printable text");
    size += name.size() + value.size();
  }
  if (size > 2'000) bad_argument("the user metadata of an object has at most 2,000 bytes, not " + std::to_string(size));
}

inline void check_content_type(std::string_view type) {
  const auto is_token = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("!#$&^_.+-").find(c) != std::string_view::npos;
  };
  std::size_t at = 0;
  const auto token = [&] {
    const std::size_t start = at;
    while (at < type.size() && is_token(type[at])) ++at;
    return at > start && at - start <= 100;
  };
  bool is_right = token() && at < type.size() && type[at++] == '/' && token();
  if (is_right && at < type.size()) {
    at = std::min(type.find_first_not_of(' ', at), type.size());
    is_right = at < type.size() && type[at] == ';';
    const std::string_view rest = is_right ? type.substr(at + 1) : std::string_view();
    const std::size_t spaces = std::min(rest.find_first_not_of(' '), rest.size());
    is_right = is_right && !rest.empty() && rest.size() - spaces <= 200 &&
               std::all_of(rest.begin(), rest.end(), [](char c) { return c >= 0x20 && c <= 0x7E; });
  }
  if (!is_right) bad_argument("a content type is as image/png, not '" + clean_text(type, 100) + "'");
}

/// An object that a handler wants to be so. `size` -1: not to be.
struct Written {
  std::string space;
  std::string key;
  std::int64_t size = -1;
  std::string checksum;
  std::int64_t time = 0;
  std::string content_type;
  std::vector<std::string> tags;
  std::map<std::string, std::string> user;
  std::int64_t expires = 0;
  bool is_file = false;
  std::string data;
  bool is_undone = false;  ///< its event has failed

  [[nodiscard]] std::string place() const { return space + '\0' + key; }

  [[nodiscard]] std::size_t weight() const {
    std::size_t out = 712 + space.size() + key.size() + data.size() + 100 * user.size();
    for (const auto& tag : tags) out += tag.size();
    return out;
  }

  void pack(Buffer& out) const {
    pack_array(out, size < 0 ? 3 : 11);
    pack_str(out, space);
    pack_str(out, key);
    pack_int(out, size);
    if (size < 0) return;
    pack_bin(out, checksum);
    pack_int(out, time);
    pack_str(out, content_type);
    pack_array(out, tags.size());
    for (const auto& tag : tags) pack_str(out, tag);
    pack_map(out, user.size());
    for (const auto& [name, value] : user) {
      pack_str(out, name);
      pack_str(out, value);
    }
    pack_int(out, expires);
    pack_bool(out, is_file);
    pack_bin(out, data);
  }
};

using WrittenPtr = std::shared_ptr<Written>;
/// What was written in a partition and the engine does not know of yet, by place; the last one counts.
using Shelf = std::unordered_map<std::string, std::vector<WrittenPtr>>;

inline std::string hex_of(std::string_view bytes) {
  std::string out;
  for (const unsigned char byte : bytes) {
    out.push_back("0123456789abcdef"[byte >> 4U]);
    out.push_back("0123456789abcdef"[byte & 15U]);
  }
  return out;
}

inline std::chrono::system_clock::time_point time_of(std::int64_t micros) {
  return std::chrono::system_clock::time_point(std::chrono::microseconds(micros));
}

/// Of one worker. Nothing goes on while something is asked.
class Objects {
 public:
  explicit Objects(Channel& channel) : channel_(channel) {}

  std::vector<std::pair<std::string, std::string>> namespaces;  ///< what is granted, the app's own first

  [[nodiscard]] std::string own() const { return namespaces.empty() ? "app" : namespaces[0].first; }

  /// An event is handled in this partition.
  void enter(std::int64_t partition, std::int64_t epoch, Shelf& shelf) {
    partition_ = partition;
    epoch_ = epoch;
    shelf_ = &shelf;
  }

  void check_may(std::string_view node, std::string_view space, bool writes) const {
    for (const auto& [name, granted] : namespaces) {
      if (name != space) continue;
      if (!writes || granted == "write") return;
      throw Error("handler", "node '" + std::string(node) + "' writes into the namespace '" + name + "', which its app may only read");
    }
    std::vector<std::string> known;
    for (const auto& granted : namespaces) known.push_back(granted.first);
    throw Error("handler", "node '" + std::string(node) + "' uses the namespace '" + std::string(space) +
                               "' of objects, which its app is not granted ([namespaces] in grape.toml); " + did_you_mean(space, known));
  }

  /// Later events of the partition see it from now on.
  void note(const WrittenPtr& written) { (*shelf_)[written->place()].push_back(written); }

  /// Bytes that are too many for a row go ahead: `next` gives the next chunk, empty at the end. Fills in what has come of it.
  template <class Next>
  void bring(Written& written, Next&& next) {
    const std::int64_t upload = ++uploads_;
    written.size = 0;
    written.is_file = true;
    try {
      std::string ahead = next();
      while (!ahead.empty()) {
        const std::string chunk = std::move(ahead);
        ahead = next();
        written.size += static_cast<std::int64_t>(chunk.size());
        ask(keep(chunk, ahead.empty(), upload, false), [&](const Said& said) { written.checksum = said.data; });
      }
    } catch (const EngineGone&) {
      throw;
    } catch (...) {
      if (written.size > 0) ask(keep({}, true, upload, true), [](const Said&) {});
      throw;
    }
  }

  [[nodiscard]] std::optional<About> stat(const std::string& space, const std::string& key) {
    if (const WrittenPtr own = own_of(space, key)) {
      if (own->size < 0) return std::nullopt;
      About out{key, own->size, "0", "sha256:" + hex_of(own->checksum), time_of(own->time), own->content_type, own->tags, own->user, {}};
      if (own->expires != 0) out.expires = time_of(own->expires);
      return out;
    }
    std::optional<About> out;
    ask(fetch("stat", space, key, 0, -1, {}), [&](const Said& said) {
      if (said.stored) out = about_of(key, *said.stored);
    });
    return out;
  }

  /// Gives every chunk to `take`; false: there is no such object.
  template <class Take>
  bool read(const std::string& space, const std::string& key, std::int64_t start, std::int64_t end, Take&& take) {
    const WrittenPtr own = own_of(space, key);
    if (own && own->size < 0) return false;
    if (own && !own->is_file) {
      const std::string_view data = own->data;
      const auto from = std::min(static_cast<std::size_t>(start), data.size());
      const auto to = end < 0 ? data.size() : std::min(static_cast<std::size_t>(end), data.size());
      if (from < to) take(data.substr(from, to - from));
      return true;
    }
    const std::string digest = own ? hex_of(own->checksum) : std::string();
    std::optional<std::string> checksum;  // not the number: it has one when it is committed
    std::optional<Sha256> sum;            // of one in a file that is read whole
    const auto name = [&key] { return "object '" + clean_text(key, 200) + "'"; };
    for (std::int64_t left = 1; left > 0;) {
      bool is_there = false;
      std::string data;
      ask(fetch("read", space, key, start, end, digest), [&](const Said& said) {
        is_there = said.stored.has_value();
        data = said.data;
        if (checksum && (!is_there || said.stored->checksum != *checksum)) {
          throw Error("handler", name() + " was written by somebody else while it was read; try again");
        }
        if (!is_there || checksum) return;
        checksum = said.stored->checksum;
        const bool is_whole = start == 0 && (end < 0 || end >= said.stored->size) && said.stored->size > static_cast<std::int64_t>(most_inline);
        if (is_whole && !checksum->empty()) sum.emplace();
        left = (end < 0 ? said.stored->size : std::min(end, said.stored->size)) - start;
      });
      if (!is_there) return false;
      if (left <= 0) return true;
      if (data.empty()) throw Error("handler", name() + " is shorter than it says");
      if (sum) sum->add(data);
      start += static_cast<std::int64_t>(data.size());
      left -= static_cast<std::int64_t>(data.size());
      take(std::string_view(data));
    }
    if (sum && sum->digest() != *checksum) {
      throw Error("handler", "corrupt: " + name() + " is not what was written: its checksum is another one");
    }
    return true;
  }

  /// Those behind `position`; returns where the next page goes on, empty: that was all.
  std::string page(const std::string& space, const std::string& prefix, const std::string& position, std::vector<About>& out) {
    std::string next;
    ask(fetch("page", space, prefix, 0, -1, position), [&](const Said& said) {
      next = said.position;
      for (const auto& [key, stored] : said.items) out.push_back(about_of(std::string(key), stored));
    });
    return next;
  }

 private:
  Channel& channel_;
  std::int64_t partition_ = 0;
  std::int64_t epoch_ = 0;
  Shelf* shelf_ = nullptr;
  std::int64_t ids_ = 0;
  std::int64_t uploads_ = 0;

  /// What an answer says. Texts and bytes are slices of its frame.
  struct Stored {
    std::int64_t number = 0;
    std::int64_t size = 0;
    std::string_view checksum;
    std::int64_t time = 0;
    std::string_view content_type = "application/octet-stream";
    std::vector<std::string> tags;
    std::map<std::string, std::string> user;
    std::int64_t expires = 0;
    std::string_view version;  ///< of an object in another storage
    std::string_view told;     ///< its checksum there, if it is no SHA-256

    explicit Stored(Reader& reader) {
      Fields fields(reader);
      fields.integer(number);
      fields.integer(size);
      fields.bytes(checksum);
      fields.integer(time);
      fields.text(content_type);
      if (fields.next()) tags = read_texts(reader);
      if (fields.next()) {
        for (std::uint32_t left = reader.map(); left > 0; --left) {
          std::string name(reader.text());
          user[std::move(name)] = reader.text();
        }
      }
      fields.integer(expires);
      bool is_file = false;
      std::string_view data;
      fields.boolean(is_file);
      fields.bytes(data);
      fields.text(version);
      fields.text(told);
      fields.done();
    }
  };

  struct Said {
    std::int64_t id = 0;
    std::optional<Stored> stored;
    std::string_view data;
    std::vector<std::pair<std::string_view, Stored>> items;
    std::string_view position;
    std::string error;

    explicit Said(Reader& reader) {
      Fields fields(reader);
      fields.next();  // the tag
      reader.skip();
      fields.integer(id);
      if (fields.next() && !reader.nil()) stored.emplace(reader);
      fields.bytes(data);
      if (fields.next()) {
        for (std::uint32_t left = reader.array(); left > 0; --left) {
          Fields item(reader);
          std::string_view key;
          item.text(key);
          if (!item.next()) throw ProtocolError("an object of a list without what is known of it");
          items.emplace_back(key, Stored(reader));
          item.done();
        }
      }
      fields.text(position);
      if (fields.next() && !reader.nil()) {
        Fields parts(reader);
        std::string_view code;
        std::string_view text;
        parts.text(code);
        parts.text(text);
        parts.done();
        error = std::string(code) + ": " + std::string(text);
      }
      fields.done();
    }
  };

  static About about_of(std::string key, const Stored& stored) {
    About out;
    out.key = std::move(key);
    out.size = stored.size;
    out.version = stored.version.empty() ? std::to_string(stored.number) : std::string(stored.version);
    out.checksum = stored.told;
    if (!stored.checksum.empty()) out.checksum = "sha256:" + hex_of(stored.checksum);
    out.time = time_of(stored.time);
    out.content_type = stored.content_type;
    out.tags = stored.tags;
    out.user = stored.user;
    if (stored.expires != 0) out.expires = time_of(stored.expires);
    return out;
  }

  /// What was written here and nobody else knows of yet.
  [[nodiscard]] WrittenPtr own_of(const std::string& space, const std::string& key) const {
    const auto found = shelf_->find(space + '\0' + key);
    if (found == shelf_->end()) return nullptr;
    auto& all = found->second;
    while (!all.empty() && all.back()->is_undone) all.pop_back();
    return all.empty() ? nullptr : all.back();
  }

  template <class Take>
  void ask(const Buffer& frame, Take&& take) {
    channel_.send(frame);
    Frame answer = channel_.receive_only(tag::fetched);
    Reader reader(answer.message());
    const Said said(reader);
    if (said.id != ids_) throw ProtocolError("an object that nobody has asked for");
    if (!said.error.empty()) throw Error("handler", said.error);
    take(said);
    channel_.recycle(std::move(answer));
  }

  Buffer fetch(std::string_view what, std::string_view space, std::string_view key, std::int64_t start, std::int64_t end,
               std::string_view position) {
    Buffer frame = begin(10, tag::fetch);
    pack_str(frame, what);
    pack_str(frame, space);
    pack_str(frame, key);
    pack_int(frame, start);
    pack_int(frame, end);
    pack_str(frame, position);
    close_frame(frame);
    return frame;
  }

  Buffer keep(std::string_view data, bool is_last, std::int64_t upload, bool is_given_up) {
    Buffer frame = begin(8, tag::keep);
    pack_bin(frame, data);
    pack_bool(frame, is_last);
    pack_int(frame, upload);
    pack_bool(frame, is_given_up);
    close_frame(frame);
    return frame;
  }

  Buffer begin(std::size_t fields, std::int64_t tag) {
    Buffer frame = open_frame();
    pack_array(frame, fields);
    pack_int(frame, tag);
    pack_int(frame, partition_);
    pack_int(frame, epoch_);
    pack_int(frame, ++ids_);
    return frame;
  }
};

}  // namespace detail
}  // namespace grape
