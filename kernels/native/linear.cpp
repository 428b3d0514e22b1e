// y = x Wᵀ + b with W packed in panels of 32 columns, for one row as for thousands.
//
// Every element of y is summed over k in order by one chain of additions, whatever the number of
// rows: a row's result does not depend on its company.
//
// Packed: [panels][k][32] floats; bfloat16 in pairs along k, [panels][k / 2][32][2], which is what
// the dot-product instructions read. Columns beyond the last are 0.
#include <sys/mman.h>

#include "simd.h"
#include "threads.h"

namespace crossdock {
namespace {

constexpr int PANEL = 32;
#if defined(__AVX512F__)
constexpr int COLUMNS = 32, MAX_ROWS = 14;  // 28 accumulators of 32 registers
#else
constexpr int COLUMNS = 16, MAX_ROWS = 6;
#endif
constexpr int VECTORS = COLUMNS / LANES;
// What a thread's rows of x may take of the second-level cache while it goes over all panels.
constexpr int64_t ROWS_BYTES = 384 << 10;
// How far ahead of its use a panel is asked for.
constexpr int AHEAD = 4096;

template <typename T>
struct Packed;
template <>
struct Packed<float> {
  static constexpr int DEPTH = 1;  // elements of k in a step
  typedef float Word;
};
template <>
struct Packed<bf16> {
  static constexpr int DEPTH = 2;
  typedef uint32_t Word;
};

static inline void multiply(f32x16& sum, const float* x, const float* w) {
  sum += *x * load(w);
}

static inline void multiply(f32x16& sum, const bf16* x, const uint32_t* w) {
  uint32_t pair;
  std::memcpy(&pair, x, sizeof pair);
#if defined(__AVX512BF16__)
  sum = (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)pair),
                                 (__m512bh)_mm512_loadu_si512(w));
#else
  u32x16 weights = *(const u32x16_memory*)w;
  sum += as_floats(u32x16{} + (pair << 16)) * as_floats(weights << 16);
  sum += as_floats(u32x16{} + (pair & 0xffff0000u)) * as_floats(weights & 0xffff0000u);
#endif
}

struct Call {
  const char* x;
  const char* packed;
  const char* bias;
  char* y;
  int64_t rows, columns, depth;
};

template <typename T, typename Out>
void finish(const Call& call, int64_t row, int64_t column, f32x16 sum) {
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

template <typename T, typename Out, int ROWS>
void tile(const Call& call, int64_t row, int64_t column) {
  typedef typename Packed<T>::Word Word;
  constexpr int DEPTH = Packed<T>::DEPTH;
  int64_t steps = call.depth / DEPTH;
  const T* x = (const T*)call.x + row * call.depth;
  const Word* w = (const Word*)call.packed + column / PANEL * (steps * PANEL) + column % PANEL;
  f32x16 sums[ROWS][VECTORS] = {};
  for (int64_t k = 0; k < steps; k++) {
    if (ROWS <= 4) __builtin_prefetch((const char*)(w + k * PANEL) + AHEAD);
    if (ROWS <= 4) __builtin_prefetch((const char*)(w + k * PANEL) + AHEAD + 64);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
      for (int j = 0; j < VECTORS; j++)
        multiply(sums[i][j], x + i * call.depth + k * DEPTH, w + k * PANEL + j * LANES);
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
    for (int j = 0; j < VECTORS; j++)
      finish<T, Out>(call, row + i, column + j * LANES, sums[i][j]);
}

template <typename T, typename Out, int ROWS = MAX_ROWS>
void tile_of(int rows, const Call& call, int64_t row, int64_t column) {
  if constexpr (ROWS > 0) {
    if (rows == ROWS) return tile<T, Out, ROWS>(call, row, column);
    tile_of<T, Out, ROWS - 1>(rows, call, row, column);
  }
}

// One panel for the rows from `first` to `last - 1`, in tiles of nearly equal height.
template <typename T, typename Out>
void panel(const Call& call, int64_t column, int64_t first, int64_t last) {
  int64_t tiles = (last - first + MAX_ROWS - 1) / MAX_ROWS;
  for (int64_t i = 0; i < tiles; i++) {
    int64_t row = first + (last - first) * i / tiles;
    int64_t end = first + (last - first) * (i + 1) / tiles;
    for (int64_t part = 0; part < PANEL; part += COLUMNS)
      tile_of<T, Out>((int)(end - row), call, row, column + part);
  }
}

template <typename T, typename Out>
void multiply_all(const Call& call) {
  int64_t panels = (call.columns + PANEL - 1) / PANEL;
  int64_t chunk = ROWS_BYTES / (call.depth * (int64_t)sizeof(T));
  chunk = chunk < 4 * MAX_ROWS ? 4 * MAX_ROWS : chunk;
  int64_t chunks = (call.rows + chunk - 1) / chunk;
  // Several items for each thread, so that one that was held up leaves its share to others; a few
  // neighbouring panels each, so that one row's output is written in whole cache lines.
  int64_t items = chunks > 1 ? panels : panels < 8 * threads() ? panels : 8 * threads();
  for (int64_t c = 0; c < chunks; c++) {
    int64_t first = call.rows * c / chunks, last = call.rows * (c + 1) / chunks;
    parallel_for(items, [&](int64_t item) {
      for (int64_t p = panels * item / items; p < panels * (item + 1) / items; p++)
        panel<T, Out>(call, p * PANEL, first, last);
    });
  }
}

template <typename T>
void pack(const T* weight, T* packed, int64_t columns, int64_t depth) {
  constexpr int DEPTH = Packed<T>::DEPTH;
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
void crossdock_linear_bf16(const void* x, const void* packed, const void* bias, void* y,
                           int64_t rows, int64_t columns, int64_t depth, int wide) {
  Call call{(const char*)x, (const char*)packed, (const char*)bias, (char*)y, rows, columns, depth};
  if (wide) multiply_all<bf16, float>(call);
  else multiply_all<bf16, bf16>(call);
}
void crossdock_linear_f32(const void* x, const void* packed, const void* bias, void* y,
                          int64_t rows, int64_t columns, int64_t depth, int) {
  Call call{(const char*)x, (const char*)packed, (const char*)bias, (char*)y, rows, columns, depth};
  multiply_all<float, float>(call);
}
}
