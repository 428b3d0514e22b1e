// y = x Wᵀ + b with W packed in panels of 32 columns, for one row as for thousands.
//
// Every element of y is summed over k in order by one chain of additions, whatever the number of
// rows: a row's result does not depend on its company.
//
// Packed: a panel after the other, each as tile.h has it. Columns beyond the last are 0.
#include <limits>

#include "scratch.h"
#include "stripes.h"
#include "threads.h"
#include "tile.h"

namespace crossdock {
namespace {

constexpr int PANEL = 32;
static_assert(STRIPES % LANES == 0 && STRIPE_GROUP % PANEL == 0, "stripes are whole vectors");
// What a thread's rows of x may take of the second-level cache while it goes over all panels.
constexpr int64_t ROWS_BYTES = 384 << 10;
// Up to so many rows a panel is used faster than memory gives it; from so many on more slowly. With
// narrow vectors it takes a panel's columns in parts, and what is asked for serves all of them.
constexpr int FEW_ROWS = LANES == 16 ? 4 : TILE_ROWS, MANY_ROWS = 7;

// A panel's columns that are multiplied at once.
template <int ROWS>
constexpr int VECTORS_IN_PANEL = VECTORS_OF<ROWS> * LANES <= PANEL ? VECTORS_OF<ROWS> : TILE_VECTORS;

struct Call {
  const char* x;
  const char* packed;
  const char* bias;
  char* y;
  int64_t rows, columns, depth;
  float* maxima;
  int64_t stride;  // elements between rows of x
};

template <typename T, typename Out>
void finish(const Call& call, int64_t row, int64_t column, f32v sum) {
  Out* y = (Out*)call.y + row * call.columns + column;
  int64_t left = call.columns - column;
  if (left <= 0) return;
  int count = left < LANES ? (int)left : LANES;
  const T* bias = call.bias ? (const T*)call.bias + column : nullptr;
  if (count < LANES) {
    if (bias) sum += load_some(bias, count);
    store_some(y, sum, count);
  } else {
    if (bias) sum += load(bias);
    store(y, sum);
  }
}

// Asks for what follows `at` in a panel that comes from memory. ONCE: no other tile reads it.
// Distances and cache levels are the best of those that were measured; with 5 and 6 rows none is.
template <int ROWS, bool ONCE>
void ask_ahead(const char* at) {
  if constexpr (ROWS <= FEW_ROWS) {
    __builtin_prefetch(at + 4096);
    __builtin_prefetch(at + 4096 + 64);
  } else if constexpr (ROWS >= MANY_ROWS && ONCE) {
    prefetch_line(at + 8192);
    prefetch_line(at + 8192 + 64);
  }
}

template <typename T, typename Out, int ROWS, bool ONCE>
void tile_of(const Call& call, int64_t row, int64_t column) {
  int64_t steps = call.depth / Operand<T>::DEPTH;
  const T* x = (const T*)call.x + row * call.stride;
  auto panel = (const typename Operand<T>::Word*)call.packed + column / PANEL * (steps * PANEL);
  const auto* w = panel + column % PANEL;
  tile<T, ROWS, VECTORS_IN_PANEL<ROWS>>(
      x, call.stride, w, PANEL, steps, [](int, int) { return f32v{}; },
      [&](int i, int j, f32v sum) { finish<T, Out>(call, row + i, column + j * LANES, sum); },
      [&](int64_t k) { ask_ahead<ROWS, ONCE>((const char*)(w + k * PANEL)); });
}

// One panel for the rows from `first` to `last - 1`, in tiles of nearly equal height.
template <typename T, typename Out>
void panel(const Call& call, int64_t column, int64_t first, int64_t last) {
  int64_t tiles = (last - first + TILE_ROWS - 1) / TILE_ROWS;
  for (int64_t i = 0; i < tiles; i++) {
    int64_t row = first + (last - first) * i / tiles;
    int64_t end = first + (last - first) * (i + 1) / tiles;
    with_rows((int)(end - row), [&](auto count) {
      constexpr int ROWS = decltype(count)::COUNT;
      for (int part = 0; part < PANEL; part += VECTORS_IN_PANEL<ROWS> * LANES) {
        if (tiles == 1) tile_of<T, Out, ROWS, true>(call, row, column + part);
        else tile_of<T, Out, ROWS, false>(call, row, column + part);
      }
    });
  }
}

// The first `count` of a vector, and those of `others` after them.
f32v load_or(const float* from, int64_t count, f32v others) {
  float copied[LANES];
  store(copied, others);
  if (count > 0) std::memcpy(copied, from, count * sizeof(float));
  return load(copied);
}

// Of LANES stripes in `count` results from `y`, the first of which is in the first of the stripes.
f32v maxima_of(const float* y, int64_t count) {
  const f32v lowest = splat(-std::numeric_limits<float>::infinity());
  f32v largest = lowest;
  u32v bad = {};
  for (int64_t i = 0; i < count; i += STRIPES) {
    f32v values = i + LANES <= count ? load(y + i) : load_or(y + i, count - i, lowest);
    largest = max(values, largest);
    bad |= (u32v)(values != values);
  }
  return as_floats((u32v)largest | bad);  // all bits set: a NaN
}

// Of the stripes in one group of float results, while these are in the cache. A NaN stays.
void find_maxima(const Call& call, int64_t group, int64_t first, int64_t last) {
  int64_t start = group * STRIPE_GROUP, left = call.columns - start;
  int64_t count = left < STRIPE_GROUP ? left : STRIPE_GROUP;
  for (int64_t row = first; row < last; row++) {
    const float* y = (const float*)call.y + row * call.columns + start;
    float* maxima = call.maxima + (row * stripe_groups(call.columns) + group) * STRIPES;
    for (int64_t part = 0; part < STRIPES; part += LANES)
      store(maxima + part, maxima_of(y + part, count - part));
  }
}

// Rows of x that lie a multiple of this apart share few places of the first-level cache.
constexpr int64_t CROWDED_BYTES = 1024;

// x with rows a cache line further apart, if a tile's rows would push each other out.
template <typename T>
void spread(Call& call) {
  int64_t bytes = call.depth * (int64_t)sizeof(T);
  if (call.rows <= TILE_ROWS || bytes % CROWDED_BYTES) return;
  static thread_local Scratch scratch;
  scratch.reserve(call.rows * (bytes + 64) + 64);
  char* rows = scratch.take<char>(call.rows * (bytes + 64));
  for (int64_t row = 0; row < call.rows; row++)
    std::memcpy(rows + row * (bytes + 64), call.x + row * bytes, bytes);
  call.x = rows;
  call.stride = call.depth + 64 / (int64_t)sizeof(T);
}

template <typename T, typename Out>
void multiply_all(Call call) {
  call.stride = call.depth;
  spread<T>(call);
  int64_t panels = (call.columns + PANEL - 1) / PANEL;
  int64_t chunk = ROWS_BYTES / (call.depth * (int64_t)sizeof(T));
  chunk = chunk < 4 * TILE_ROWS ? 4 * TILE_ROWS : chunk;
  int64_t chunks = (call.rows + chunk - 1) / chunk;
  // Several items for each thread, so that one that was held up leaves its share to others; a few
  // neighbouring panels each, so that one row's output is written in whole cache lines.
  int64_t unit = call.maxima ? STRIPE_GROUP / PANEL : 1, units = (panels + unit - 1) / unit;
  int64_t items = chunks > 1 ? units : units < 8 * threads() ? units : 8 * threads();
  for (int64_t c = 0; c < chunks; c++) {
    int64_t first = call.rows * c / chunks, last = call.rows * (c + 1) / chunks;
    parallel_for(items, [&](int64_t item) {
      for (int64_t u = units * item / items; u < units * (item + 1) / items; u++) {
        for (int64_t p = unit * u; p < unit * (u + 1) && p < panels; p++)
          panel<T, Out>(call, p * PANEL, first, last);
        if (call.maxima) find_maxima(call, u, first, last);
      }
    });
  }
}

template <typename T>
void pack(const T* weight, T* packed, int64_t columns, int64_t depth) {
  constexpr int DEPTH = Operand<T>::DEPTH;
  int64_t panels = (columns + PANEL - 1) / PANEL;
  for (int64_t p = 0; p < panels; p++)
    for (int64_t k = 0; k < depth; k += DEPTH)
      for (int64_t n = p * PANEL; n < (p + 1) * PANEL; n++)
        for (int d = 0; d < DEPTH; d++)
          *packed++ = n < columns ? weight[n * depth + k + d] : T{};
}

}  // namespace
}  // namespace crossdock

using namespace crossdock;

extern "C" {

// weight [columns, depth] to panels; `packed` holds columns rounded up to 32, times depth.
void crossdock_linear_pack_bf16(const void* weight, void* packed, int64_t columns, int64_t depth) {
  pack((const bf16*)weight, (bf16*)packed, columns, depth);
}
void crossdock_linear_pack_f32(const void* weight, void* packed, int64_t columns, int64_t depth) {
  pack((const float*)weight, (float*)packed, columns, depth);
}

// x [rows, depth] and bias [columns] or null to y [rows, columns]. bfloat16 needs an even depth.
// maxima: null, or of the stripes of y in float, [rows, stripe_groups(columns), STRIPES].
void crossdock_linear_bf16(const void* x, const void* packed, const void* bias, void* y,
                           int64_t rows, int64_t columns, int64_t depth, int wide, float* maxima) {
  Call call{(const char*)x, (const char*)packed, (const char*)bias, (char*)y,
            rows,           columns,             depth,             maxima, 0};
  if (wide) multiply_all<bf16, float>(call);
  else multiply_all<bf16, bf16>(call);
}
void crossdock_linear_f32(const void* x, const void* packed, const void* bias, void* y,
                          int64_t rows, int64_t columns, int64_t depth, int, float* maxima) {
  Call call{(const char*)x, (const char*)packed, (const char*)bias, (char*)y,
            rows,           columns,             depth,             maxima, 0};
  multiply_all<float, float>(call);
}
}
