/// JSON text as a value: the app's configuration comes so.
#pragma once

#include <charconv>
#include <cstdlib>
#include <string>
#include <string_view>

#include "text.hpp"
#include "value.hpp"

namespace grape::detail {

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  Value read() {
    Value value = any(0);
    blank();
    if (at_ != text_.size()) fail();
    return value;
  }

 private:
  std::string_view text_;
  std::size_t at_ = 0;

  [[noreturn]] void fail() const { throw Error("usage", "no JSON: it cannot be read at byte " + std::to_string(at_)); }

  void blank() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }

  bool next(char wanted) {
    blank();
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  bool word(std::string_view wanted) {
    if (text_.substr(at_, wanted.size()) != wanted) return false;
    at_ += wanted.size();
    return true;
  }

  Value any(int depth) {
    if (depth > max_depth) fail();
    if (next('{')) return object(depth);
    if (next('[')) {
      Value::Array items;
      if (next(']')) return items;
      do items.push_back(any(depth + 1));
      while (next(','));
      if (!next(']')) fail();
      return items;
    }
    if (next('"')) return text();
    if (word("true")) return true;
    if (word("false")) return false;
    if (word("null")) return {};
    return number();
  }

  Value object(int depth) {
    Value::Map items;
    if (next('}')) return items;
    do {
      if (!next('"')) fail();
      std::string name = text();
      if (!next(':')) fail();
      items.emplace_back(Value(std::move(name)), any(depth + 1));
    } while (next(','));
    if (!next('}')) fail();
    return items;
  }

  Value number() {
    const std::size_t end = std::min(text_.find_first_not_of("+-0123456789.eE", at_), text_.size());
    const std::string digits(text_.substr(at_, end - at_));
    std::int64_t whole = 0;
    const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), whole);
    Value out = whole;
    if (error != std::errc() || stop != digits.data() + digits.size()) {
      char* stopped = nullptr;
      out = std::strtod(digits.c_str(), &stopped);
      if (digits.empty() || stopped != digits.data() + digits.size()) fail();
    }
    at_ = end;
    return out;
  }

  unsigned hex() {
    unsigned value = 0;
    const std::string_view digits = text_.substr(at_, 4);
    const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (error != std::errc() || stop != digits.data() + 4) fail();
    at_ += 4;
    return value;
  }

  std::string text() {
    std::string out;
    while (true) {
      if (at_ >= text_.size()) fail();
      const char c = text_[at_++];
      if (c == '"') return out;
      if (c != '\\') {
        out += c;
        continue;
      }
      if (at_ >= text_.size()) fail();
      switch (text_[at_++]) {
        case '"': out += '"'; break;
        case '\\': out += '\\'; break;
        case '/': out += '/'; break;
        case 'b': out += '\b'; break;
        case 'f': out += '\f'; break;
        case 'n': out += '\n'; break;
        case 'r': out += '\r'; break;
        case 't': out += '\t'; break;
        case 'u': append(out, hex()); break;
        default: fail();
      }
    }
  }

  void append(std::string& out, unsigned point) {
    if (point >= 0xD800 && point < 0xDC00 && word("\\u")) {
      const unsigned low = hex();
      if (low < 0xDC00 || low > 0xDFFF) fail();
      point = 0x10000 + ((point - 0xD800) << 10U) + (low - 0xDC00);
    }
    if (point >= 0xD800 && point <= 0xDFFF) fail();
    const auto byte = [&](unsigned bits) { out += static_cast<char>(bits); };
    if (point < 0x80) {
      byte(point);
    } else if (point < 0x800) {
      byte(0xC0 | point >> 6U), byte(0x80 | (point & 0x3FU));
    } else if (point < 0x10000) {
      byte(0xE0 | point >> 12U), byte(0x80 | ((point >> 6U) & 0x3FU)), byte(0x80 | (point & 0x3FU));
    } else {
      byte(0xF0 | point >> 18U), byte(0x80 | ((point >> 12U) & 0x3FU)), byte(0x80 | ((point >> 6U) & 0x3FU)), byte(0x80 | (point & 0x3FU));
    }
  }
};

/// Throws Error "usage": it is no JSON.
inline Value read_json(std::string_view text) { return JsonReader(text).read(); }

}  // namespace grape::detail
