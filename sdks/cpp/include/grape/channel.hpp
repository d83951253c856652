/// The socket to the engine: whole frames, both ways.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "batch.hpp"
#include "error.hpp"
#include "messages.hpp"

namespace grape::detail {

/// The other end is closed. There is nobody left to work for.
struct EngineGone {};

/// A message that was received. Its bytes stay where they are as long as it lives.
class Frame {
 public:
  explicit Frame(std::size_t size) : bytes_(new char[size]), room_(size), size_(size) {}

  [[nodiscard]] std::string_view message() const noexcept { return {bytes_.get(), size_}; }
  [[nodiscard]] char* bytes() noexcept { return bytes_.get(); }
  [[nodiscard]] std::size_t room() const noexcept { return room_; }
  void use(std::size_t size) noexcept { size_ = size; }

 private:
  std::unique_ptr<char[]> bytes_;  // NOLINT(modernize-avoid-c-arrays): not to be filled with zeros first
  std::size_t room_;
  std::size_t size_;
};

class Channel {
 public:
  explicit Channel(int fd) : fd_(fd) {}
  ~Channel() { ::close(fd_); }
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  /// Sends a whole frame; from any thread.
  void send(std::string_view frame) {
    const std::lock_guard lock(sending_);
    send_locked(frame);
  }

  /// Nobody sends any more but whoever holds this.
  [[nodiscard]] std::unique_lock<std::mutex> hold() { return std::unique_lock(sending_); }
  void send_locked(std::string_view frame) {
    while (!frame.empty()) {
      const ssize_t sent = ::send(fd_, frame.data(), frame.size(), MSG_NOSIGNAL);
      if (sent >= 0) {
        frame.remove_prefix(static_cast<std::size_t>(sent));
      } else if (errno == EPIPE || errno == ECONNRESET) {
        throw EngineGone();
      } else if (errno != EINTR) {
        throw std::system_error(errno, std::generic_category(), "send");
      }
    }
  }

  /// The next message in order.
  Frame receive() {
    if (waiting_.empty()) return read_frame();
    Frame frame = std::move(waiting_.front());
    waiting_.pop_front();
    return frame;
  }

  /// The next message with a tag; others that come before it wait.
  Frame receive_only(std::int64_t tag) {
    while (true) {
      Frame frame = read_frame();
      if (tag_of(frame.message()) == tag) return frame;
      waiting_.push_back(std::move(frame));
    }
  }

  /// The same, unless a message comes for which `stops`: then nothing. All others wait.
  template <class Stops>
  std::optional<Frame> receive_unless(std::int64_t tag, Stops&& stops) {
    for (auto at = waiting_.begin(); at != waiting_.end(); ++at) {
      if (tag_of(at->message()) != tag) continue;
      Frame frame = std::move(*at);
      waiting_.erase(at);
      return frame;
    }
    for (const auto& frame : waiting_) {
      if (stops(frame.message())) return std::nullopt;
    }
    while (true) {
      Frame frame = read_frame();
      if (tag_of(frame.message()) == tag) return frame;
      waiting_.push_back(std::move(frame));
      if (stops(waiting_.back().message())) return std::nullopt;
    }
  }

  /// Takes back what is no longer needed: fresh memory for every message would cost more than the copy into it.
  void recycle(Frame frame) {
    if (frame.room() <= largest_kept && spare_.size() < 4) spare_.push_back(std::move(frame));
  }

 private:
  static constexpr std::size_t largest_kept = 8U << 20U;

  int fd_;
  std::mutex sending_;
  std::deque<Frame> waiting_;
  std::vector<Frame> spare_;
  std::array<char, 64U << 10U> buffer_{};
  std::size_t begin_ = 0;
  std::size_t end_ = 0;

  Frame read_frame() {
    std::array<char, 4> head{};
    read(head.data(), head.size());
    const std::size_t size = load_u32({head.data(), head.size()}, 0);
    if (size > max_frame) throw ProtocolError("a frame says it has " + std::to_string(size) + " bytes");
    Frame frame = room_for(size);
    read(frame.bytes(), size);
    return frame;
  }

  Frame room_for(std::size_t size) {
    if (!spare_.empty()) {
      Frame frame = std::move(spare_.back());
      spare_.pop_back();
      if (frame.room() >= size) {
        frame.use(size);
        return frame;
      }
    }
    Frame frame(std::max<std::size_t>(size, 4'096));
    frame.use(size);
    return frame;
  }

  /// Small reads through the buffer, large ones past it.
  void read(char* to, std::size_t size) {
    while (size > 0) {
      if (begin_ < end_) {
        const std::size_t part = std::min(size, end_ - begin_);
        std::memcpy(to, buffer_.data() + begin_, part);
        begin_ += part;
        to += part;
        size -= part;
      } else if (size >= buffer_.size()) {
        const std::size_t part = receive_some(to, size);
        to += part;
        size -= part;
      } else {
        end_ = receive_some(buffer_.data(), buffer_.size());
        begin_ = 0;
      }
    }
  }

  std::size_t receive_some(char* to, std::size_t size) const {
    while (true) {
      const ssize_t got = ::recv(fd_, to, size, 0);
      if (got > 0) return static_cast<std::size_t>(got);
      if (got == 0 || errno == ECONNRESET) throw EngineGone();
      if (errno != EINTR) throw std::system_error(errno, std::generic_category(), "recv");
    }
  }
};

}  // namespace grape::detail
