// ByteQueue: bytes in the order they came, in one piece, so that a frame can be parsed and a batch
// of frames be sent without copying. Grows when asked to; never beyond what its owner asks for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>

namespace terrace {

class ByteQueue {
 public:
  std::span<const uint8_t> bytes() const { return {data_.get() + begin_, end_ - begin_}; }
  size_t size() const { return end_ - begin_; }
  bool empty() const { return begin_ == end_; }
  size_t capacity() const { return capacity_; }

  // Room for `bytes` more behind the last one, uninitialised; Append says how many became content.
  std::span<uint8_t> Room(size_t bytes) {
    if (capacity_ - end_ < bytes) MakeRoom(bytes);
    return {data_.get() + end_, capacity_ - end_};
  }
  void Append(size_t bytes) { end_ += bytes; }
  void Consume(size_t bytes) {
    begin_ += bytes;
    if (begin_ == end_) begin_ = end_ = 0;
  }
  // Gives memory beyond `capacity` back, if the content fits into that.
  void ShrinkTo(size_t capacity) {
    if (capacity_ <= capacity || size() > capacity) return;
    const size_t content = size();
    std::unique_ptr<uint8_t[]> data(new uint8_t[capacity]);
    if (content > 0) std::memcpy(data.get(), data_.get() + begin_, content);
    data_ = std::move(data);
    capacity_ = capacity;
    begin_ = 0;
    end_ = content;
  }
  // Gives the memory back if there is no content.
  void ReleaseIfEmpty() {
    if (!empty()) return;
    data_.reset();
    capacity_ = 0;
  }

 private:
  void MakeRoom(size_t bytes) {
    const size_t content = size();
    if (content + bytes > capacity_) {
      // A caller that appends piece by piece must not copy everything at each piece.
      const size_t grown = capacity_ + capacity_ / 2;
      capacity_ = content + bytes > grown ? content + bytes : grown;
      std::unique_ptr<uint8_t[]> data(new uint8_t[capacity_]);  // Not zeroed.
      if (content > 0) std::memcpy(data.get(), data_.get() + begin_, content);
      data_ = std::move(data);
    } else {
      std::memmove(data_.get(), data_.get() + begin_, content);
    }
    begin_ = 0;
    end_ = content;
  }

  std::unique_ptr<uint8_t[]> data_;
  size_t capacity_ = 0;
  size_t begin_ = 0;
  size_t end_ = 0;
};

}  // namespace terrace
