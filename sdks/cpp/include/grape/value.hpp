/// Values of no fixed type, and how C++ types travel as msgpack.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "msgpack.hpp"

namespace grape {

/// Bytes that are no text.
struct Bytes {
  std::string data;

  Bytes() = default;
  explicit Bytes(std::string bytes) : data(std::move(bytes)) {}
  friend bool operator==(const Bytes& a, const Bytes& b) { return a.data == b.data; }
  friend bool operator!=(const Bytes& a, const Bytes& b) { return !(a == b); }
};

/// How `T` is packed and unpacked: `pack(buffer, value)` and `unpack(reader)`. Specialize it for types of your own, or say
/// GRAPE_FIELDS (fields.hpp).
template <class T, class = void>
struct Codec;

/// One encoded value. It does not own its bytes: those of an event are there while its handler runs.
class Raw {
 public:
  Raw() = default;
  explicit Raw(std::string_view bytes) : bytes_(bytes) {}

  /// Msgpack; empty is nil.
  [[nodiscard]] std::string_view bytes() const noexcept { return bytes_.empty() ? std::string_view("\xC0", 1) : bytes_; }

  [[nodiscard]] bool is_nil() const noexcept { return bytes()[0] == '\xC0'; }

  /// The value as a `T`.
  ///
  /// Throws Error "bad-payload": it is something else.
  template <class T>
  [[nodiscard]] T as() const {
    detail::Reader reader(bytes());
    return Codec<T>::unpack(reader);
  }

 private:
  std::string_view bytes_;
};

/// Any value. Maps keep their order, and may have keys of any type.
class Value {
 public:
  using Array = std::vector<Value>;
  using Map = std::vector<std::pair<Value, Value>>;
  struct Ext {
    std::int8_t type = 0;
    std::string data;
    friend bool operator==(const Ext& a, const Ext& b) { return a.type == b.type && a.data == b.data; }
  };
  using Held = std::variant<std::nullptr_t, bool, std::int64_t, std::uint64_t, double, std::string, Bytes, Array, Map, Time, Ext>;

  Value() : held_(nullptr) {}
  Value(std::nullptr_t) : held_(nullptr) {}                   // NOLINT(google-explicit-constructor): the point of a value, here and below
  Value(bool value) : held_(value) {}                         // NOLINT(google-explicit-constructor)
  Value(double value) : held_(value) {}                       // NOLINT(google-explicit-constructor)
  Value(const char* text) : held_(std::string(text)) {}       // NOLINT(google-explicit-constructor)
  Value(std::string text) : held_(std::move(text)) {}         // NOLINT(google-explicit-constructor)
  Value(std::string_view text) : held_(std::string(text)) {}  // NOLINT(google-explicit-constructor)
  Value(Bytes bytes) : held_(std::move(bytes)) {}             // NOLINT(google-explicit-constructor)
  Value(Array items) : held_(std::move(items)) {}             // NOLINT(google-explicit-constructor)
  Value(Map items) : held_(std::move(items)) {}               // NOLINT(google-explicit-constructor)
  Value(Time time) : held_(time) {}                           // NOLINT(google-explicit-constructor)
  Value(Ext ext) : held_(std::move(ext)) {}                   // NOLINT(google-explicit-constructor)

  template <class Int, std::enable_if_t<std::is_integral_v<Int> && !std::is_same_v<Int, bool>, int> = 0>
  Value(Int value) : held_(whole(value)) {}  // NOLINT(google-explicit-constructor)

  template <class T, std::enable_if_t<std::is_constructible_v<Value, T>, int> = 0>
  Value(const std::optional<T>& value) : held_(value ? Value(*value).held_ : Held(nullptr)) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] const Held& held() const& noexcept { return held_; }
  [[nodiscard]] Held held() && noexcept { return std::move(held_); }
  [[nodiscard]] bool is_nil() const noexcept { return std::holds_alternative<std::nullptr_t>(held_); }

  /// The value if it is held as exactly this type, else null.
  template <class T>
  [[nodiscard]] const T* get_if() const& noexcept {
    return std::get_if<T>(&held_);
  }
  template <class T>
  const T* get_if() && = delete;  // it would point into what is gone

  /// The value as a `T`, as if it had travelled.
  ///
  /// Throws Error "bad-payload": it is something else.
  template <class T>
  [[nodiscard]] T as() const;

  /// Of a map: what stands under `key`, nil if nothing does or this is no map.
  [[nodiscard]] const Value& operator[](std::string_view key) const& {
    static const Value nothing;
    const Value* found = find(std::get_if<Map>(&held_), key);
    return found == nullptr ? nothing : *found;
  }
  [[nodiscard]] Value operator[](std::string_view key) && {
    Value* found = find(std::get_if<Map>(&held_), key);
    return found == nullptr ? Value() : std::move(*found);
  }

  friend bool operator==(const Value& a, const Value& b) { return a.held_ == b.held_; }
  friend bool operator!=(const Value& a, const Value& b) { return !(a == b); }

 private:
  Held held_;

  template <class Items>
  static auto find(Items* items, std::string_view key) -> decltype(&items->front().second) {
    if (items == nullptr) return nullptr;
    for (auto& [name, value] : *items) {
      const auto* text = std::get_if<std::string>(&name.held_);
      if (text != nullptr && *text == key) return &value;
    }
    return nullptr;
  }

  /// Equal numbers are held alike, whatever type they had.
  template <class Int>
  static Held whole(Int value) {
    if constexpr (std::is_unsigned_v<Int>) {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        return Held(static_cast<std::uint64_t>(value));
      }
    }
    return Held(static_cast<std::int64_t>(value));
  }
};

/// `grape::map({{"word", word}, {"count", 3}})`
inline Value map(std::initializer_list<std::pair<std::string_view, Value>> fields) {
  Value::Map out;
  out.reserve(fields.size());
  for (const auto& [name, value] : fields) out.emplace_back(Value(name), value);
  return Value(std::move(out));
}

/// `grape::list({1, "two", 3.0})`
inline Value list(std::initializer_list<Value> items) { return Value(Value::Array(items)); }

namespace detail {

void pack_value(Buffer& out, const Value& value, int depth);
Value unpack_value(Reader& reader, int depth);

struct PackHeld {
  Buffer& out;
  int depth;

  void operator()(std::nullptr_t) const { pack_nil(out); }
  void operator()(bool value) const { pack_bool(out, value); }
  void operator()(std::int64_t value) const { pack_int(out, value); }
  void operator()(std::uint64_t value) const { pack_uint(out, value); }
  void operator()(double value) const { pack_double(out, value); }
  void operator()(const std::string& text) const { pack_text(out, text); }
  void operator()(const Bytes& bytes) const { pack_bin(out, bytes.data); }
  void operator()(Time time) const { pack_time(out, time); }
  void operator()(const Value::Ext& ext) const { pack_ext(out, ext.type, ext.data); }
  void operator()(const Value::Array& items) const {
    pack_array(out, items.size());
    for (const auto& item : items) pack_value(out, item, depth + 1);
  }
  void operator()(const Value::Map& items) const {
    pack_map(out, items.size());
    for (const auto& [key, value] : items) {
      pack_value(out, key, depth + 1);
      pack_value(out, value, depth + 1);
    }
  }
};

inline void pack_value(Buffer& out, const Value& value, int depth) {
  if (depth > max_depth) throw Error("bad-value", "a value is nested over 512 levels deep");
  std::visit(PackHeld{out, depth}, value.held());
}

inline Value unpack_value(Reader& reader, int depth) {
  if (depth > max_depth) throw Mismatch("a value is nested over 512 levels deep");
  switch (reader.kind()) {
    case Kind::nil: reader.nil(); return {};
    case Kind::boolean: return reader.boolean();
    case Kind::integer: {
      Reader ahead = reader;
      try {
        const std::int64_t value = reader.integer();
        return value;
      } catch (const Mismatch&) {  // over 2^63 - 1
        reader = ahead;
        return reader.whole();
      }
    }
    case Kind::real: return reader.real();
    case Kind::text: return reader.text();
    case Kind::bytes: return Bytes(std::string(reader.bytes()));
    case Kind::array: {
      Value::Array items;
      for (std::uint32_t left = reader.array(); left > 0; --left) items.push_back(unpack_value(reader, depth + 1));
      return items;
    }
    case Kind::map: {
      Value::Map items;
      for (std::uint32_t left = reader.map(); left > 0; --left) {
        Value key = unpack_value(reader, depth + 1);
        items.emplace_back(std::move(key), unpack_value(reader, depth + 1));
      }
      return items;
    }
    case Kind::ext: {
      Reader ahead = reader;
      Value::Ext ext;
      ext.data = reader.ext(ext.type);
      return ext.type == -1 ? Value(ahead.time()) : Value(std::move(ext));
    }
  }
  throw Mismatch("bytes that are no msgpack");
}

/// Whether a `T` points into what it was read from.
template <class T>
inline constexpr bool is_view = false;
template <>
inline constexpr bool is_view<std::string_view> = true;
template <>
inline constexpr bool is_view<Raw> = true;
template <class T>
inline constexpr bool is_view<const T> = is_view<T>;
template <template <class...> class Container, class... T>
inline constexpr bool is_view<Container<T...>> = (is_view<T> || ...);

template <class>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;

}  // namespace detail

// ------------------------------------------------------------------ how C++ types travel

template <>
struct Codec<Value> {
  static void pack(detail::Buffer& out, const Value& value) { detail::pack_value(out, value, 0); }
  static Value unpack(detail::Reader& reader) { return detail::unpack_value(reader, 0); }
};

template <>
struct Codec<Raw> {
  static void pack(detail::Buffer& out, const Raw& value) {
    detail::check_value(value.bytes());
    out.append(value.bytes());
  }
  static Raw unpack(detail::Reader& reader) { return Raw(reader.skip()); }
};

template <>
struct Codec<std::nullptr_t> {
  static void pack(detail::Buffer& out, std::nullptr_t) { detail::pack_nil(out); }
  static std::nullptr_t unpack(detail::Reader& reader) {
    if (!reader.nil()) throw detail::Mismatch("expected nil, got " + std::string(detail::name_of(reader.kind())));
    return nullptr;
  }
};

template <>
struct Codec<bool> {
  static void pack(detail::Buffer& out, bool value) { detail::pack_bool(out, value); }
  static bool unpack(detail::Reader& reader) { return reader.boolean(); }
};

template <class T>
struct Codec<T, std::enable_if_t<std::is_integral_v<T> && !std::is_same_v<T, bool>>> {
  static void pack(detail::Buffer& out, T value) {
    if constexpr (std::is_signed_v<T>) {
      detail::pack_int(out, value);
    } else {
      detail::pack_uint(out, value);
    }
  }
  static T unpack(detail::Reader& reader) {
    if constexpr (std::is_signed_v<T>) {
      return narrow(reader.integer());
    } else {
      return narrow(reader.whole());
    }
  }

 private:
  template <class Wide>
  static T narrow(Wide value) {
    if (value < static_cast<Wide>(std::numeric_limits<T>::min()) || value > static_cast<Wide>(std::numeric_limits<T>::max())) {
      throw detail::Mismatch("the integer " + std::to_string(value) + " is too large here");
    }
    return static_cast<T>(value);
  }
};

template <class T>
struct Codec<T, std::enable_if_t<std::is_floating_point_v<T>>> {
  static void pack(detail::Buffer& out, T value) { detail::pack_double(out, static_cast<double>(value)); }
  static T unpack(detail::Reader& reader) { return static_cast<T>(reader.real()); }
};

template <class T>
struct Codec<T, std::enable_if_t<std::is_enum_v<T>>> {
  using Number = std::underlying_type_t<T>;
  static void pack(detail::Buffer& out, T value) { Codec<Number>::pack(out, static_cast<Number>(value)); }
  static T unpack(detail::Reader& reader) { return static_cast<T>(Codec<Number>::unpack(reader)); }
};

template <>
struct Codec<std::string> {
  static void pack(detail::Buffer& out, const std::string& text) { detail::pack_text(out, text); }
  static std::string unpack(detail::Reader& reader) { return std::string(reader.text()); }
};

/// Unpacked it is a slice of the event: valid while the handler runs.
template <>
struct Codec<std::string_view> {
  static void pack(detail::Buffer& out, std::string_view text) { detail::pack_text(out, text); }
  static std::string_view unpack(detail::Reader& reader) { return reader.text(); }
};

template <>
struct Codec<const char*> {
  static void pack(detail::Buffer& out, const char* text) { detail::pack_text(out, text); }
};

template <>
struct Codec<char*> : Codec<const char*> {};

/// Up to its NUL, if it has one.
template <std::size_t N>
struct Codec<char[N]> {                                           // NOLINT(modernize-avoid-c-arrays): what a literal is
  static void pack(detail::Buffer& out, const char (&text)[N]) {  // NOLINT(modernize-avoid-c-arrays)
    detail::pack_text(out, {text, ::strnlen(text, N)});
  }
};

template <>
struct Codec<Bytes> {
  static void pack(detail::Buffer& out, const Bytes& bytes) { detail::pack_bin(out, bytes.data); }
  static Bytes unpack(detail::Reader& reader) { return Bytes(std::string(reader.bytes())); }
};

template <class Duration>
struct Codec<std::chrono::time_point<std::chrono::system_clock, Duration>> {
  using Point = std::chrono::time_point<std::chrono::system_clock, Duration>;
  static void pack(detail::Buffer& out, Point time) {
    detail::pack_time(out, std::chrono::time_point_cast<std::chrono::nanoseconds>(time));
  }
  static Point unpack(detail::Reader& reader) { return std::chrono::time_point_cast<Duration>(reader.time()); }
};

template <class T>
struct Codec<std::optional<T>> {
  static void pack(detail::Buffer& out, const std::optional<T>& value) {
    if (value) {
      Codec<T>::pack(out, *value);
    } else {
      detail::pack_nil(out);
    }
  }
  static std::optional<T> unpack(detail::Reader& reader) {
    if (reader.nil()) return std::nullopt;
    return Codec<T>::unpack(reader);
  }
};

template <class T>
struct Codec<std::vector<T>> {
  static void pack(detail::Buffer& out, const std::vector<T>& items) {
    detail::pack_array(out, items.size());
    for (const auto& item : items) Codec<T>::pack(out, item);
  }
  static std::vector<T> unpack(detail::Reader& reader) {
    std::vector<T> items;  // not reserved: the length is only said, the items may not be there
    for (std::uint32_t left = reader.array(); left > 0; --left) items.push_back(Codec<T>::unpack(reader));
    return items;
  }
};

namespace detail {

template <class Items>
struct MapCodec {
  using Key = typename Items::key_type;
  using Mapped = typename Items::mapped_type;
  static void pack(Buffer& out, const Items& items) {
    pack_map(out, items.size());
    for (const auto& [key, value] : items) {
      Codec<Key>::pack(out, key);
      Codec<Mapped>::pack(out, value);
    }
  }
  static Items unpack(Reader& reader) {
    Items items;
    for (std::uint32_t left = reader.map(); left > 0; --left) {
      Key key = Codec<Key>::unpack(reader);
      items.insert_or_assign(std::move(key), Codec<Mapped>::unpack(reader));
    }
    return items;
  }
};

}  // namespace detail

template <class K, class V, class... Rest>
struct Codec<std::map<K, V, Rest...>> : detail::MapCodec<std::map<K, V, Rest...>> {};

template <class K, class V, class... Rest>
struct Codec<std::unordered_map<K, V, Rest...>> : detail::MapCodec<std::unordered_map<K, V, Rest...>> {};

/// As a list of fixed length.
template <class... T>
struct Codec<std::tuple<T...>> {
  static void pack(detail::Buffer& out, const std::tuple<T...>& items) {
    detail::pack_array(out, sizeof...(T));
    std::apply([&](const auto&... item) { (Codec<T>::pack(out, item), ...); }, items);
  }
  static std::tuple<T...> unpack(detail::Reader& reader) {
    if (reader.array() != sizeof...(T)) throw detail::Mismatch("a list of another length than " + std::to_string(sizeof...(T)));
    return std::tuple<T...>{Codec<T>::unpack(reader)...};  // braces: from left to right
  }
};

template <class A, class B>
struct Codec<std::pair<A, B>> {
  static void pack(detail::Buffer& out, const std::pair<A, B>& items) {
    detail::pack_array(out, 2);
    Codec<A>::pack(out, items.first);
    Codec<B>::pack(out, items.second);
  }
  static std::pair<A, B> unpack(detail::Reader& reader) {
    if (reader.array() != 2) throw detail::Mismatch("a list of another length than 2");
    A first = Codec<A>::unpack(reader);
    return {std::move(first), Codec<B>::unpack(reader)};
  }
};

template <class T>
T Value::as() const {
  static_assert(!detail::is_view<T>, "it would point into what is gone");
  detail::Buffer packed;
  detail::pack_value(packed, *this, 0);
  return Raw(packed).as<T>();
}

namespace detail {

/// Appends one value that travels by itself: data of an event, a reply, a state.
///
/// Throws Error "bad-value": it cannot; "too-large": it has over `most` bytes.
template <class T>
void pack_whole(Buffer& out, const T& value, std::size_t most) {
  const std::size_t start = out.size();
  Codec<T>::pack(out, value);
  if (out.size() - start > most) {
    throw Error("too-large", std::to_string(out.size() - start) + " bytes are over max-event (" + std::to_string(most) + ")");
  }
  // Not every language has whole numbers over 2^63 - 1; inside lists and maps they are let through.
  if (out[start] == '\xCF' && (static_cast<unsigned char>(out[start + 1]) & 0x80U) != 0) {
    throw Error("bad-value", "an integer over 2^63 - 1 cannot travel");
  }
}

}  // namespace detail
}  // namespace grape
