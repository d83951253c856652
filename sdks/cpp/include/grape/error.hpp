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
/// Of `Event::call`: who should have answered failed for good.
class CallFailed : public Error {
 public:
  CallFailed(std::string code, std::string text, std::string node)
      : Error("call-failed", "node '" + node + "' failed: " + text), code_(std::move(code)), text_(std::move(text)), node_(std::move(node)) {}

  /// The kind of that failure.
  [[nodiscard]] const std::string& code() const noexcept { return code_; }
  [[nodiscard]] const std::string& text() const noexcept { return text_; }
  /// Whose it is.
  [[nodiscard]] const std::string& node() const noexcept { return node_; }

 private:
  std::string code_;
  std::string text_;
  std::string node_;
};

/// Of `Event::call`: nobody answered in time.
class NoAnswer : public Error {
 public:
  explicit NoAnswer(std::string text) : Error("no-answer", std::move(text)) {}
};

/// A handler is left at a call: the answer is yet to come, and with it the handler runs from its beginning. No std::exception:
/// what catches it (`catch (...)`) has to throw it again.
class Suspended {};

}  // namespace grape
