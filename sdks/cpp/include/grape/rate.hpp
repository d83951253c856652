/// Rates as people write them: "100/s", "20/min", "500/h", "10/day".
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace grape::detail {

inline constexpr double most_rate = 1e9;
inline constexpr std::int64_t most_burst = 1'000'000;

/// A number that can be a rate.
inline std::optional<double> rate_of(double rate) { return rate > 0 && rate <= most_rate ? std::optional<double>(rate) : std::nullopt; }

/// Events a second; nothing: the text is no rate.
inline std::optional<double> rate_of(std::string_view text) {
  constexpr std::string_view blank = " \t\r\n\f\v";
  constexpr std::string_view digits = "0123456789";
  constexpr std::array<std::pair<std::string_view, double>, 9> units{{{"s", 1},
                                                                     {"sec", 1},
                                                                     {"second", 1},
                                                                     {"min", 60},
                                                                     {"minute", 60},
                                                                     {"h", 3'600},
                                                                     {"hour", 3'600},
                                                                     {"d", 86'400},
                                                                     {"day", 86'400}}};
  const auto trimmed = [&](std::string_view part) {
    const std::size_t first = part.find_first_not_of(blank);
    return first == std::string_view::npos ? std::string_view() : part.substr(first, part.find_last_not_of(blank) - first + 1);
  };
  const std::size_t slash = text.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  const std::string_view number = trimmed(text.substr(0, slash));
  const std::string_view whole = number.substr(0, number.find('.'));
  const std::string_view part = whole.size() == number.size() ? std::string_view("0") : number.substr(whole.size() + 1);
  const auto is_number = [&](std::string_view one) { return !one.empty() && one.find_first_not_of(digits) == std::string_view::npos; };
  if (!is_number(whole) || !is_number(part)) return std::nullopt;
  const std::string_view per = trimmed(text.substr(slash + 1));
  double value = 0;  // not by strtod, which reads numbers as the locale writes them
  double scale = 1;
  for (const char digit : whole) value = value * 10 + (digit - '0');
  for (const char digit : part) {
    value = value * 10 + (digit - '0');
    scale *= 10;
  }
  for (const auto& [unit, seconds] : units) {
    if (unit == per) return rate_of(value / scale / seconds);
  }
  return std::nullopt;
}

}  // namespace grape::detail
