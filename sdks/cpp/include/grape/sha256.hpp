/// SHA-256, by which objects are named.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace grape::detail {

class Sha256 {
 public:
  static std::string of(std::string_view bytes) {
    Sha256 sum;
    sum.add(bytes);
    return sum.digest();
  }

  void add(std::string_view bytes) {
    size_ += bytes.size();
    if (!rest_.empty()) {
      const std::size_t some = std::min(64 - rest_.size(), bytes.size());
      rest_ += bytes.substr(0, some);
      bytes.remove_prefix(some);
      if (rest_.size() < 64) return;
      block(rest_.data());
      rest_.clear();
    }
    for (; bytes.size() >= 64; bytes.remove_prefix(64)) block(bytes.data());
    rest_ = bytes;
  }

  /// Nothing is added any more.
  std::string digest() {
    std::array<char, 128> tail{};
    const std::size_t left = rest_.size();
    if (left > 0) std::memcpy(tail.data(), rest_.data(), left);
    tail[left] = '\x80';
    const std::size_t size = left < 56 ? 64 : 128;
    const std::uint64_t bits = size_ * 8;
    for (std::size_t i = 0; i < 8; ++i) tail[size - 1 - i] = static_cast<char>(bits >> (8 * i));
    for (std::size_t start = 0; start < size; start += 64) block(tail.data() + start);
    std::string out;
    for (const std::uint32_t word : state_) {
      for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<char>(word >> shift));
    }
    return out;
  }

 private:
  std::uint64_t size_ = 0;
  std::string rest_;  // less than a block
  std::array<std::uint32_t, 8> state_{0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};

  static constexpr std::array<std::uint32_t, 64> constants{
      0x428A2F98, 0x71374491, 0xB5C0FBCF, 0xE9B5DBA5, 0x3956C25B, 0x59F111F1, 0x923F82A4, 0xAB1C5ED5, 0xD807AA98, 0x12835B01, 0x243185BE,
      0x550C7DC3, 0x72BE5D74, 0x80DEB1FE, 0x9BDC06A7, 0xC19BF174, 0xE49B69C1, 0xEFBE4786, 0x0FC19DC6, 0x240CA1CC, 0x2DE92C6F, 0x4A7484AA,
      0x5CB0A9DC, 0x76F988DA, 0x983E5152, 0xA831C66D, 0xB00327C8, 0xBF597FC7, 0xC6E00BF3, 0xD5A79147, 0x06CA6351, 0x14292967, 0x27B70A85,
      0x2E1B2138, 0x4D2C6DFC, 0x53380D13, 0x650A7354, 0x766A0ABB, 0x81C2C92E, 0x92722C85, 0xA2BFE8A1, 0xA81A664B, 0xC24B8B70, 0xC76C51A3,
      0xD192E819, 0xD6990624, 0xF40E3585, 0x106AA070, 0x19A4C116, 0x1E376C08, 0x2748774C, 0x34B0BCB5, 0x391C0CB3, 0x4ED8AA4A, 0x5B9CCA4F,
      0x682E6FF3, 0x748F82EE, 0x78A5636F, 0x84C87814, 0x8CC70208, 0x90BEFFFA, 0xA4506CEB, 0xBEF9A3F7, 0xC67178F2};

  static std::uint32_t turned(std::uint32_t word, unsigned by) noexcept { return word >> by | word << (32 - by); }

  void block(const char* bytes) noexcept {
    std::array<std::uint32_t, 64> w{};
    for (std::size_t i = 0; i < 16; ++i) {
      for (std::size_t j = 0; j < 4; ++j) w[i] = w[i] << 8U | static_cast<unsigned char>(bytes[4 * i + j]);
    }
    for (std::size_t i = 16; i < 64; ++i) {
      const std::uint32_t low = turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3U;
      const std::uint32_t high = turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10U;
      w[i] = w[i - 16] + low + w[i - 7] + high;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (std::size_t i = 0; i < 64; ++i) {
      const std::uint32_t one = h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + constants[i] + w[i];
      const std::uint32_t two = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g;
      g = f;
      f = e;
      e = d + one;
      d = c;
      c = b;
      b = a;
      a = one + two;
    }
    const std::array<std::uint32_t, 8> add{a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; ++i) state_[i] += add[i];
  }
};

}  // namespace grape::detail
