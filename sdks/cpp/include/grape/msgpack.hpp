/// The subset of msgpack that the protocol and its values need: appended to a string, read in place.
///
/// Of its own because a worker spends its time here: keys and data are found as slices of the frame that was received,
/// nothing is copied or built, and the reader never recurses, however deep a value is nested.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>

#include "error.hpp"
#include "text.hpp"

namespace grape {

/// Msgpack timestamps (ext -1).
using Time = std::chrono::time_point<std::chrono::system_clock, std::chrono::nanoseconds>;

namespace detail {

using Buffer = std::string;

/// How deep values may be nested; the protocol asks for 64.
inline constexpr int max_depth = 512;

// ------------------------------------------------------------------ writing

template <class Int>
void append_big_endian(Buffer& out, Int value) {
  std::array<char, sizeof(Int)> bytes{};
  for (std::size_t i = 0; i < sizeof(Int); ++i) {
    bytes[i] = static_cast<char>(static_cast<unsigned char>(value >> (8 * (sizeof(Int) - 1 - i))));
  }
  out.append(bytes.data(), bytes.size());
}

template <class Int>
void append_marked(Buffer& out, unsigned char mark, Int value) {
  out.push_back(static_cast<char>(mark));
  append_big_endian(out, value);
}

inline void pack_nil(Buffer& out) { out.push_back('\xC0'); }
inline void pack_bool(Buffer& out, bool value) { out.push_back(value ? '\xC3' : '\xC2'); }

inline void pack_uint(Buffer& out, std::uint64_t value) {
  if (value < 0x80) {
    out.push_back(static_cast<char>(value));
  } else if (value <= 0xFF) {
    append_marked(out, 0xCC, static_cast<std::uint8_t>(value));
  } else if (value <= 0xFFFF) {
    append_marked(out, 0xCD, static_cast<std::uint16_t>(value));
  } else if (value <= 0xFFFFFFFF) {
    append_marked(out, 0xCE, static_cast<std::uint32_t>(value));
  } else {
    append_marked(out, 0xCF, value);
  }
}

inline void pack_int(Buffer& out, std::int64_t value) {
  if (value >= 0) {
    pack_uint(out, static_cast<std::uint64_t>(value));
  } else if (value >= -32) {
    out.push_back(static_cast<char>(value));
  } else if (value >= std::numeric_limits<std::int8_t>::min()) {
    append_marked(out, 0xD0, static_cast<std::uint8_t>(value));
  } else if (value >= std::numeric_limits<std::int16_t>::min()) {
    append_marked(out, 0xD1, static_cast<std::uint16_t>(value));
  } else if (value >= std::numeric_limits<std::int32_t>::min()) {
    append_marked(out, 0xD2, static_cast<std::uint32_t>(value));
  } else {
    append_marked(out, 0xD3, static_cast<std::uint64_t>(value));
  }
}

inline void pack_double(Buffer& out, double value) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  append_marked(out, 0xCB, bits);
}

inline void append_length(Buffer& out, std::size_t size, unsigned char mark8, unsigned char mark16, unsigned char mark32) {
  if (mark8 != 0 && size <= 0xFF) {
    append_marked(out, mark8, static_cast<std::uint8_t>(size));
  } else if (size <= 0xFFFF) {
    append_marked(out, mark16, static_cast<std::uint16_t>(size));
  } else if (size <= 0xFFFFFFFF) {
    append_marked(out, mark32, static_cast<std::uint32_t>(size));
  } else {
    throw Error("bad-value", "a value of over 4 GiB cannot travel");
  }
}

/// Text that is known to be UTF-8.
inline void pack_str(Buffer& out, std::string_view text) {
  if (text.size() < 32) {
    out.push_back(static_cast<char>(0xA0U | text.size()));
  } else {
    append_length(out, text.size(), 0xD9, 0xDA, 0xDB);
  }
  out.append(text);
}

/// Text of the user.
inline void pack_text(Buffer& out, std::string_view text) {
  if (!is_utf8(text)) throw Error("bad-value", "text that is not valid UTF-8 cannot travel; send grape::Bytes");
  pack_str(out, text);
}

inline void pack_bin(Buffer& out, std::string_view bytes) {
  append_length(out, bytes.size(), 0xC4, 0xC5, 0xC6);
  out.append(bytes);
}

inline void pack_array(Buffer& out, std::size_t count) {
  if (count < 16) {
    out.push_back(static_cast<char>(0x90U | count));
  } else {
    append_length(out, count, 0, 0xDC, 0xDD);
  }
}

inline void pack_map(Buffer& out, std::size_t count) {
  if (count < 16) {
    out.push_back(static_cast<char>(0x80U | count));
  } else {
    append_length(out, count, 0, 0xDE, 0xDF);
  }
}

inline void pack_ext(Buffer& out, std::int8_t type, std::string_view bytes) {
  switch (bytes.size()) {
    case 1: out.push_back('\xD4'); break;
    case 2: out.push_back('\xD5'); break;
    case 4: out.push_back('\xD6'); break;
    case 8: out.push_back('\xD7'); break;
    case 16: out.push_back('\xD8'); break;
    default: append_length(out, bytes.size(), 0xC7, 0xC8, 0xC9);
  }
  out.push_back(static_cast<char>(type));
  out.append(bytes);
}

inline void pack_time(Buffer& out, Time time) {
  const std::int64_t total = time.time_since_epoch().count();
  std::int64_t seconds = total / 1'000'000'000;
  std::int64_t nanos = total % 1'000'000'000;
  if (nanos < 0) {
    nanos += 1'000'000'000;
    --seconds;
  }
  Buffer bytes;
  if (seconds >= 0 && seconds < (std::int64_t{1} << 34)) {
    const auto word = static_cast<std::uint64_t>(nanos) << 34U | static_cast<std::uint64_t>(seconds);
    if (word <= 0xFFFFFFFF) {
      append_big_endian(bytes, static_cast<std::uint32_t>(word));
    } else {
      append_big_endian(bytes, word);
    }
  } else {
    append_big_endian(bytes, static_cast<std::uint32_t>(nanos));
    append_big_endian(bytes, static_cast<std::uint64_t>(seconds));
  }
  pack_ext(out, -1, bytes);
}

/// The head of an array or byte string whose length is known later: `fill_in` it.
inline std::size_t pack_open(Buffer& out, unsigned char mark32) {
  append_marked(out, mark32, std::uint32_t{0});
  return out.size();
}

inline void fill_in(Buffer& out, std::size_t opened, std::size_t length) {
  for (std::size_t i = 0; i < 4; ++i) out[opened - 4 + i] = static_cast<char>(length >> (8 * (3 - i)));
}

inline constexpr unsigned char open_array = 0xDD;
inline constexpr unsigned char open_map = 0xDF;
inline constexpr unsigned char open_bin = 0xC6;

// ------------------------------------------------------------------ reading

enum class Kind { nil, boolean, integer, real, text, bytes, array, map, ext };

constexpr std::string_view name_of(Kind kind) {
  constexpr std::array<std::string_view, 9> names{"nil",   "a boolean", "an integer", "a float",     "text",
                                                  "bytes", "a list",    "a map",      "an extension"};
  return names[static_cast<std::size_t>(kind)];
}

/// Reads values from front to back. What it returns as text or bytes are slices of what it was given.
class Reader {
 public:
  explicit Reader(std::string_view bytes) noexcept : at_(reinterpret_cast<const unsigned char*>(bytes.data())), end_(at_ + bytes.size()) {}

  [[nodiscard]] bool done() const noexcept { return at_ == end_; }

  [[nodiscard]] Kind kind() const {
    const unsigned char mark = peek();
    if (mark <= 0x7F || mark >= 0xE0 || (mark >= 0xCC && mark <= 0xD3)) return Kind::integer;
    if (mark <= 0x8F || mark == 0xDE || mark == 0xDF) return Kind::map;
    if (mark <= 0x9F || mark == 0xDC || mark == 0xDD) return Kind::array;
    if (mark <= 0xBF || (mark >= 0xD9 && mark <= 0xDB)) return Kind::text;
    switch (mark) {
      case 0xC0: return Kind::nil;
      case 0xC2:
      case 0xC3: return Kind::boolean;
      case 0xC4:
      case 0xC5:
      case 0xC6: return Kind::bytes;
      case 0xCA:
      case 0xCB: return Kind::real;
      case 0xC1: throw Mismatch("bytes that are no msgpack");
      default: return Kind::ext;
    }
  }

  /// Takes a nil, if one is next.
  bool nil() {
    if (peek() != 0xC0) return false;
    ++at_;
    return true;
  }

  bool boolean() {
    const unsigned char mark = peek();
    if (mark != 0xC2 && mark != 0xC3) wrong("a boolean");
    ++at_;
    return mark == 0xC3;
  }

  std::int64_t integer() {
    const unsigned char mark = peek();
    if (mark <= 0x7F || mark >= 0xE0) {
      ++at_;
      return static_cast<std::int8_t>(mark);
    }
    switch (mark) {
      case 0xCC: return number<std::uint8_t>();
      case 0xCD: return number<std::uint16_t>();
      case 0xCE: return number<std::uint32_t>();
      case 0xCF: {
        const auto value = number<std::uint64_t>();
        if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
          throw Mismatch("the integer " + std::to_string(value) + " is too large here");
        }
        return static_cast<std::int64_t>(value);
      }
      case 0xD0: return static_cast<std::int8_t>(number<std::uint8_t>());
      case 0xD1: return static_cast<std::int16_t>(number<std::uint16_t>());
      case 0xD2: return static_cast<std::int32_t>(number<std::uint32_t>());
      case 0xD3: return static_cast<std::int64_t>(number<std::uint64_t>());
      default: wrong("an integer");
    }
  }

  std::uint64_t whole() {
    if (peek() == 0xCF) return number<std::uint64_t>();
    const std::int64_t value = integer();
    if (value < 0) throw Mismatch("the integer " + std::to_string(value) + " is negative");
    return static_cast<std::uint64_t>(value);
  }

  /// A float; integers are taken as such.
  double real() {
    const unsigned char mark = peek();
    if (mark == 0xCB) {
      const auto bits = number<std::uint64_t>();
      double value = 0;
      std::memcpy(&value, &bits, sizeof value);
      return value;
    }
    if (mark == 0xCA) {
      const auto bits = number<std::uint32_t>();
      float value = 0;
      std::memcpy(&value, &bits, sizeof value);
      return static_cast<double>(value);
    }
    if (mark == 0xCF) return static_cast<double>(number<std::uint64_t>());
    if (kind() != Kind::integer) wrong("a float");
    return static_cast<double>(integer());
  }

  std::string_view text() {
    const unsigned char mark = peek();
    if (mark >= 0xA0 && mark <= 0xBF) {
      ++at_;
      return take(mark & 0x1FU);
    }
    switch (mark) {
      case 0xD9: return take(number<std::uint8_t>());
      case 0xDA: return take(number<std::uint16_t>());
      case 0xDB: return take(number<std::uint32_t>());
      default: wrong("text");
    }
  }

  std::string_view bytes() {
    switch (peek()) {
      case 0xC4: return take(number<std::uint8_t>());
      case 0xC5: return take(number<std::uint16_t>());
      case 0xC6: return take(number<std::uint32_t>());
      default: wrong("bytes");
    }
  }

  std::uint32_t array() {
    const unsigned char mark = peek();
    if (mark >= 0x90 && mark <= 0x9F) {
      ++at_;
      return mark & 0x0FU;
    }
    if (mark == 0xDC) return number<std::uint16_t>();
    if (mark == 0xDD) return number<std::uint32_t>();
    wrong("a list");
  }

  std::uint32_t map() {
    const unsigned char mark = peek();
    if (mark >= 0x80 && mark <= 0x8F) {
      ++at_;
      return mark & 0x0FU;
    }
    if (mark == 0xDE) return number<std::uint16_t>();
    if (mark == 0xDF) return number<std::uint32_t>();
    wrong("a map");
  }

  std::string_view ext(std::int8_t& type) {
    std::size_t size = 0;
    switch (peek()) {
      case 0xD4: size = 1, ++at_; break;
      case 0xD5: size = 2, ++at_; break;
      case 0xD6: size = 4, ++at_; break;
      case 0xD7: size = 8, ++at_; break;
      case 0xD8: size = 16, ++at_; break;
      case 0xC7: size = number<std::uint8_t>(); break;
      case 0xC8: size = number<std::uint16_t>(); break;
      case 0xC9: size = number<std::uint32_t>(); break;
      default: wrong("an extension");
    }
    type = static_cast<std::int8_t>(take(1)[0]);
    return take(size);
  }

  Time time() {
    if (kind() != Kind::ext) wrong("a timestamp");
    std::int8_t type = 0;
    const std::string_view bytes = ext(type);
    std::int64_t seconds = 0;
    std::uint64_t nanos = 0;
    if (type == -1 && bytes.size() == 4) {
      seconds = load<std::uint32_t>(bytes, 0);
    } else if (type == -1 && bytes.size() == 8) {
      const auto word = load<std::uint64_t>(bytes, 0);
      seconds = static_cast<std::int64_t>(word & ((std::uint64_t{1} << 34U) - 1));
      nanos = word >> 34U;
    } else if (type == -1 && bytes.size() == 12) {
      nanos = load<std::uint32_t>(bytes, 0);
      seconds = static_cast<std::int64_t>(load<std::uint64_t>(bytes, 4));
    } else {
      throw Mismatch("expected a timestamp, got another extension");
    }
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max() / 1'000'000'000 - 1;
    if (nanos > 999'999'999 || seconds > most || seconds < -most) {
      throw Mismatch("a timestamp outside of what can be represented (the years 1678 to 2261)");
    }
    return Time(std::chrono::seconds(seconds) + std::chrono::nanoseconds(nanos));
  }

  /// Passes over the next value, whatever it is; returns its bytes. Does not recurse.
  std::string_view skip() {
    const unsigned char* start = at_;
    for (std::uint64_t left = 1; left > 0; --left) {
      const unsigned char mark = peek();
      if (mark <= 0x7F || mark >= 0xE0) {
        ++at_;
      } else if (mark <= 0x8F) {
        ++at_;
        left += 2ULL * (mark & 0x0FU);
      } else if (mark <= 0x9F) {
        ++at_;
        left += mark & 0x0FU;
      } else if (mark <= 0xBF) {
        ++at_;
        take(mark & 0x1FU);
      } else {
        skip_marked(mark, left);
      }
    }
    return {reinterpret_cast<const char*>(start), static_cast<std::size_t>(at_ - start)};
  }

 private:
  const unsigned char* at_;
  const unsigned char* end_;

  [[nodiscard]] unsigned char peek() const {
    if (at_ == end_) throw Mismatch("a value is cut off");
    return *at_;
  }

  [[noreturn]] void wrong(std::string_view wanted) const {
    throw Mismatch("expected " + std::string(wanted) + ", got " + std::string(name_of(kind())));
  }

  std::string_view take(std::size_t size) {
    if (size > static_cast<std::size_t>(end_ - at_)) throw Mismatch("a value is cut off");
    const std::string_view out(reinterpret_cast<const char*>(at_), size);
    at_ += size;
    return out;
  }

  template <class Int>
  static Int load(std::string_view bytes, std::size_t from) noexcept {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < sizeof(Int); ++i) value = value << 8U | static_cast<unsigned char>(bytes[from + i]);
    return static_cast<Int>(value);
  }

  /// The number behind a mark.
  template <class Int>
  Int number() {
    ++at_;
    return load<Int>(take(sizeof(Int)), 0);
  }

  void skip_marked(unsigned char mark, std::uint64_t& left) {
    switch (mark) {
      case 0xC0:
      case 0xC2:
      case 0xC3: ++at_; return;
      case 0xC4:
      case 0xD9: take(number<std::uint8_t>()); return;
      case 0xC5:
      case 0xDA: take(number<std::uint16_t>()); return;
      case 0xC6:
      case 0xDB: take(number<std::uint32_t>()); return;
      case 0xC7: take(std::size_t{number<std::uint8_t>()} + 1); return;
      case 0xC8: take(std::size_t{number<std::uint16_t>()} + 1); return;
      case 0xC9: take(std::size_t{number<std::uint32_t>()} + 1); return;
      case 0xCC:
      case 0xD0: take(2); return;
      case 0xCD:
      case 0xD1:
      case 0xD4: take(3); return;
      case 0xD5: take(4); return;
      case 0xCA:
      case 0xCE:
      case 0xD2: take(5); return;
      case 0xD6: take(6); return;
      case 0xCB:
      case 0xCF:
      case 0xD3: take(9); return;
      case 0xD7: take(10); return;
      case 0xD8: take(18); return;
      case 0xDC: left += number<std::uint16_t>(); return;
      case 0xDD: left += number<std::uint32_t>(); return;
      case 0xDE: left += 2ULL * number<std::uint16_t>(); return;
      case 0xDF: left += 2ULL * number<std::uint32_t>(); return;
      default: throw Mismatch("bytes that are no msgpack");
    }
  }
};

/// Whether `bytes` may travel as they are: exactly one value, text that is UTF-8, not nested too deep. Bytes that others
/// cannot read would cost a worker of theirs.
inline void check_value(std::string_view bytes) {
  std::array<std::uint64_t, max_depth + 1> left{};
  std::size_t depth = 0;
  left[0] = 1;
  Reader reader(bytes);
  while (true) {
    while (left[depth] == 0) {
      if (depth == 0) {
        if (!reader.done()) throw Error("bad-value", "more than one msgpack value");
        return;
      }
      --depth;
    }
    --left[depth];
    std::uint64_t inside = 0;
    try {
      switch (reader.kind()) {
        case Kind::array: inside = reader.array(); break;
        case Kind::map: inside = 2ULL * reader.map(); break;
        case Kind::text:
          if (!is_utf8(reader.text())) throw Error("bad-value", "text that is not valid UTF-8 cannot travel");
          break;
        default: reader.skip();
      }
    } catch (const Mismatch& e) {
      throw Error("bad-value", std::string("bytes that are no msgpack value: ") + e.what());
    }
    if (inside > 0) {
      if (depth == max_depth) throw Error("bad-value", "a value is nested over 512 levels deep");
      left[++depth] = inside;
    }
  }
}

}  // namespace detail
}  // namespace grape
