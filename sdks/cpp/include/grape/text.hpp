/// Text for people and for the wire: valid UTF-8, one line, names of types, names that were meant.
#pragma once

#include <cxxabi.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace grape::detail {

/// How many bytes of one character stand at `at`; 0 if they are no UTF-8 (overlong, surrogate, over U+10FFFF, cut off).
inline std::size_t utf8_length(const unsigned char* at, std::size_t left) noexcept {
  const unsigned char first = at[0];
  if (first < 0x80) return 1;
  const auto follows = [&](std::size_t i, unsigned char low = 0x80, unsigned char high = 0xBF) {
    return i < left && at[i] >= low && at[i] <= high;
  };
  if (first >= 0xC2 && first <= 0xDF) return follows(1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    const unsigned char low = first == 0xE0 ? 0xA0 : 0x80;
    const unsigned char high = first == 0xED ? 0x9F : 0xBF;
    return follows(1, low, high) && follows(2) ? 3 : 0;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    const unsigned char low = first == 0xF0 ? 0x90 : 0x80;
    const unsigned char high = first == 0xF4 ? 0x8F : 0xBF;
    return follows(1, low, high) && follows(2) && follows(3) ? 4 : 0;
  }
  return 0;
}

inline bool is_utf8(std::string_view text) noexcept {
  const auto* at = reinterpret_cast<const unsigned char*>(text.data());
  std::size_t left = text.size();
  while (left > 0) {
    // Most text is ASCII: eight bytes at once.
    std::uint64_t word = 0;
    if (left >= sizeof word) {
      std::memcpy(&word, at, sizeof word);
      if ((word & 0x8080808080808080U) == 0) {
        at += sizeof word;
        left -= sizeof word;
        continue;
      }
    }
    const std::size_t length = utf8_length(at, left);
    if (length == 0) return false;
    at += length;
    left -= length;
  }
  return true;
}

/// `text` with what is no UTF-8 replaced, at most `most` bytes of it: a frame with invalid text would cost the worker.
inline std::string clean_text(std::string_view text, std::size_t most = 16'000) {
  std::string out;
  out.reserve(std::min(text.size(), most) + 3);
  const auto* at = reinterpret_cast<const unsigned char*>(text.data());
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = utf8_length(at + i, text.size() - i);
    if (out.size() + std::max<std::size_t>(length, 3) > most) break;
    if (length == 0) {
      out += "\xEF\xBF\xBD";
      ++i;
    } else {
      out.append(text, i, length);
      i += length;
    }
  }
  return out;
}

/// The same on one line.
inline std::string one_line(std::string_view text, std::size_t most = 16'000) {
  std::string out = clean_text(text, most);
  std::replace_if(
      out.begin(), out.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  return out;
}

/// A name of the C++ ABI as its author wrote it.
inline std::string demangled(const char* name) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(abi::__cxa_demangle(name, nullptr, nullptr, &status), &std::free);
  return status == 0 && text ? std::string(text.get()) : std::string(name);
}

/// Edits (insert, delete, replace, swap of neighbours) that make `a` of `b`.
inline std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before;
  std::vector<std::size_t> last(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::vector<std::size_t> row(b.size() + 1);
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before = std::move(last);
    last = std::move(row);
  }
  return last[b.size()];
}

/// "did you mean 'total'?", or what is known if nothing is near.
inline std::string did_you_mean(std::string_view name, const std::vector<std::string>& known) {
  const std::string* nearest = nullptr;
  std::size_t best = std::max<std::size_t>(2, name.size() / 3) + 1;
  for (const auto& other : known) {
    const std::size_t edits = distance(name.substr(0, 255), other);
    if (edits < best) {
      best = edits;
      nearest = &other;
    }
  }
  if (nearest != nullptr) return "did you mean '" + *nearest + "'?";
  std::string out = "known are";
  for (const auto& other : known) {
    if (out.size() > 1'000) {
      out += " ...";
      break;
    }
    out += " '" + other + "'";
  }
  return out;
}

}  // namespace grape::detail
