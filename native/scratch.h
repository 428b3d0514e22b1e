// Memory of a thread, kept from call to call.
#pragma once

#include <stdlib.h>

#include <cstdint>

namespace crossdock {

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

class Scratch {
 public:
  ~Scratch() { free(memory_); }
  void reserve(int64_t bytes) {
    used_ = 0;
    if (bytes <= size_) return;
    free(memory_);
    memory_ = (char*)aligned_alloc(64, round_up(bytes, 64));
    if (!memory_) abort();
    size_ = bytes;
  }
  template <typename T>
  T* take(int64_t count) {
    T* taken = (T*)(memory_ + used_);
    used_ += round_up(count * (int64_t)sizeof(T), 64);
    return taken;
  }

 private:
  char* memory_ = nullptr;
  int64_t size_ = 0, used_ = 0;
};

}  // namespace crossdock
