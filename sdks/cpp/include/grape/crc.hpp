/// zlib's crc32, by which keys find their partition.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace grape::detail {

using CrcTables = std::array<std::array<std::uint32_t, 256>, 4>;

constexpr CrcTables make_crc_tables() {
  CrcTables tables{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1U) ^ ((value & 1U) != 0 ? 0xEDB88320U : 0U);
    tables[0][i] = value;
  }
  for (std::uint32_t i = 0; i < 256; ++i) {
    for (std::size_t t = 1; t < tables.size(); ++t) {
      const std::uint32_t before = tables[t - 1][i];
      tables[t][i] = (before >> 8U) ^ tables[0][before & 0xFFU];
    }
  }
  return tables;
}

inline constexpr CrcTables crc_tables = make_crc_tables();

/// Four bytes a step: keys are short, so larger tables would only cost cache.
inline std::uint32_t crc32(std::string_view bytes) noexcept {
  std::uint32_t crc = 0xFFFFFFFFU;
  const auto* at = reinterpret_cast<const unsigned char*>(bytes.data());
  std::size_t left = bytes.size();
  for (; left >= 4; left -= 4, at += 4) {
    crc ^= static_cast<std::uint32_t>(at[0]) | static_cast<std::uint32_t>(at[1]) << 8U | static_cast<std::uint32_t>(at[2]) << 16U |
           static_cast<std::uint32_t>(at[3]) << 24U;
    crc = crc_tables[3][crc & 0xFFU] ^ crc_tables[2][(crc >> 8U) & 0xFFU] ^ crc_tables[1][(crc >> 16U) & 0xFFU] ^ crc_tables[0][crc >> 24U];
  }
  for (; left > 0; --left, ++at) crc = crc_tables[0][(crc ^ *at) & 0xFFU] ^ (crc >> 8U);
  return ~crc;
}

inline std::uint32_t partition_of(std::string_view key, std::uint32_t partitions) noexcept { return crc32(key) % partitions; }

}  // namespace grape::detail
