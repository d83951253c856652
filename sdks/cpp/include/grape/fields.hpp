/// Structs that travel as maps of their fields:
///
///     struct Order { std::string item; int count = 0; std::optional<double> price; };
///     GRAPE_FIELDS(Order, item, count, price)
///
/// Fields that are not in the map are an error, unless they are optional; what else is in it is passed over.
#pragma once

#include "value.hpp"

#define GRAPE_EXPAND(x) x
#define GRAPE_EACH_1(f) GRAPE_VISIT(f)
#define GRAPE_EACH_2(f, ...) GRAPE_VISIT(f) GRAPE_EXPAND(GRAPE_EACH_1(__VA_ARGS__))
#define GRAPE_EACH_3(f, ...) GRAPE_VISIT(f) GRAPE_EXPAND(GRAPE_EACH_2(__VA_ARGS__))
#define GRAPE_EACH_4(f, ...) GRAPE_VISIT(f) GRAPE_EXPAND(GRAPE_EACH_3(__VA_ARGS__))
#define GRAPE_EACH_5(f, ...) GRAPE_VISIT(f) GRAPE_EXPAND(GRAPE_EACH_4(__VA_ARGS__))
#define GRAPE_EACH_6(f, ...) GRAPE_VISIT(f) GRAPE_EXPAND(GRAPE_EACH_5(__VA_ARGS__))
#define GRAPE_EACH_7(f, ...) GRAPE_VISIT(f) GRAPE_EXPAND(GRAPE_EACH_6(__VA_ARGS__))
#define GRAPE_EACH_8(f, ...) GRAPE_VISIT(f) GRAPE_EXPAND(GRAPE_EACH_7(__VA_ARGS__))
#define GRAPE_EACH_9(f, ...) GRAPE_VISIT(f) GRAPE_EXPAND(GRAPE_EACH_8(__VA_ARGS__))
#define GRAPE_EACH_10(f, ...) GRAPE_VISIT(f) GRAPE_EXPAND(GRAPE_EACH_9(__VA_ARGS__))
#define GRAPE_EACH_11(f, ...) GRAPE_VISIT(f) GRAPE_EXPAND(GRAPE_EACH_10(__VA_ARGS__))
#define GRAPE_EACH_12(f, ...) GRAPE_VISIT(f) GRAPE_EXPAND(GRAPE_EACH_11(__VA_ARGS__))
#define GRAPE_EACH_13(f, ...) GRAPE_VISIT(f) GRAPE_EXPAND(GRAPE_EACH_12(__VA_ARGS__))
#define GRAPE_EACH_14(f, ...) GRAPE_VISIT(f) GRAPE_EXPAND(GRAPE_EACH_13(__VA_ARGS__))
#define GRAPE_EACH_15(f, ...) GRAPE_VISIT(f) GRAPE_EXPAND(GRAPE_EACH_14(__VA_ARGS__))
#define GRAPE_EACH_16(f, ...) GRAPE_VISIT(f) GRAPE_EXPAND(GRAPE_EACH_15(__VA_ARGS__))
#define GRAPE_PICK(_1, _2, _3, _4, _5, _6, _7, _8, _9, _10, _11, _12, _13, _14, _15, _16, name, ...) name
#define GRAPE_EACH(...)                                                                                                                    \
  GRAPE_EXPAND(GRAPE_PICK(__VA_ARGS__, GRAPE_EACH_16, GRAPE_EACH_15, GRAPE_EACH_14, GRAPE_EACH_13, GRAPE_EACH_12, GRAPE_EACH_11,           \
                          GRAPE_EACH_10, GRAPE_EACH_9, GRAPE_EACH_8, GRAPE_EACH_7, GRAPE_EACH_6, GRAPE_EACH_5, GRAPE_EACH_4, GRAPE_EACH_3, \
                          GRAPE_EACH_2, GRAPE_EACH_1, unused)(__VA_ARGS__))
#define GRAPE_VISIT(field) visit(std::string_view(#field), object.field);

/// Up to 16 fields; say it in the namespace of the struct.
#define GRAPE_FIELDS(Type, ...)                           \
  template <class Visitor>                                \
  void grape_visit(Type& object, Visitor&& visit) {       \
    GRAPE_EACH(__VA_ARGS__)                               \
  }                                                       \
  template <class Visitor>                                \
  void grape_visit(const Type& object, Visitor&& visit) { \
    GRAPE_EACH(__VA_ARGS__)                               \
  }

namespace grape {
namespace detail {

struct CountFields {
  std::size_t count = 0;
  template <class T>
  void operator()(std::string_view, const T&) {
    ++count;
  }
};

}  // namespace detail

template <class T>
struct Codec<T, std::void_t<decltype(grape_visit(std::declval<T&>(), std::declval<detail::CountFields&>()))>> {
  static void pack(detail::Buffer& out, const T& object) {
    detail::CountFields fields;
    grape_visit(object, fields);
    detail::pack_map(out, fields.count);
    grape_visit(object, [&](std::string_view name, const auto& field) {
      detail::pack_str(out, name);
      Codec<std::remove_cv_t<std::remove_reference_t<decltype(field)>>>::pack(out, field);
    });
  }

  static T unpack(detail::Reader& reader) {
    T object{};
    std::uint32_t seen = 0;
    for (std::uint32_t left = reader.map(); left > 0; --left) {
      if (reader.kind() != detail::Kind::text) {
        reader.skip();
        reader.skip();
        continue;
      }
      const std::string_view key = reader.text();
      bool taken = false;
      std::uint32_t bit = 1;
      grape_visit(object, [&](std::string_view name, auto& field) {
        if (!taken && name == key) {
          field = Codec<std::decay_t<decltype(field)>>::unpack(reader);
          taken = true;
          seen |= bit;
        }
        bit <<= 1U;
      });
      if (!taken) reader.skip();
    }
    std::uint32_t bit = 1;
    grape_visit(object, [&](std::string_view name, const auto& field) {
      if ((seen & bit) == 0 && !detail::is_optional<std::decay_t<decltype(field)>>) {
        throw detail::Mismatch("the field '" + std::string(name) + "' is missing");
      }
      bit <<= 1U;
    });
    return object;
  }
};

}  // namespace grape
