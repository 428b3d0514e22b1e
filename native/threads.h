// Threads of this library: a loop's iterations shared among the caller and its helpers.
//
// A helper spins only for some microseconds after its last work and then sleeps, so that a process
// beside this one keeps its core. One that does not wake in time is not waited for.
#pragma once

#include <atomic>
#include <cstdint>

namespace crossdock {

typedef void (*Body)(int64_t index, void* context);

// How many threads share the work, the caller's included. Of several callers at a time one has the
// helpers, and the others work alone.
void set_threads(int count);
int threads();

// body(0, context) … body(count - 1, context), in any order; returns when all have ended.
void run_parallel(int64_t count, Body body, void* context);

template <typename F>
void parallel_for(int64_t count, const F& work) {
  if (count == 1 || threads() == 1) {
    for (int64_t i = 0; i < count; i++) work(i);
    return;
  }
  run_parallel(count, [](int64_t i, void* context) { (*(const F*)context)(i); }, (void*)&work);
}

// work(0) … work(rows - 1) in pieces of at least `least` neighbouring rows; several pieces a thread,
// so that one that was held up leaves its share to others.
template <typename F>
void parallel_rows(int64_t rows, int64_t least, const F& work) {
  int64_t pieces = rows / (least < 1 ? 1 : least), most = 4 * (int64_t)threads();
  pieces = pieces < 1 ? 1 : pieces > most ? most : pieces;
  parallel_for(pieces, [&](int64_t piece) {
    int64_t last = rows * (piece + 1) / pieces;
    for (int64_t row = rows * piece / pieces; row < last; row++) work(row);
  });
}

}  // namespace crossdock
