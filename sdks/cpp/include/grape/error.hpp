/// What a handler throws to fail its event with a kind that programs can rely on.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace grape {

/// Fails the event. `kind` is stable and for programs, the text is for people. Any other exception fails it too; its kind
/// is then the name of its type.
class Error : public std::runtime_error {
 public:
  Error(std::string kind, const std::string& text) : std::runtime_error(text), kind_(std::move(kind)) {}

  [[nodiscard]] const std::string& kind() const noexcept { return kind_; }

 private:
  std::string kind_;
};

namespace detail {

/// The engine, or a frame of it, is not what the protocol says. The worker ends.
class ProtocolError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Bytes that are no msgpack, or a value of another type than was asked for.
class Mismatch : public Error {
 public:
  explicit Mismatch(const std::string& text) : Error("bad-payload", text) {}
};

}  // namespace detail
}  // namespace grape
