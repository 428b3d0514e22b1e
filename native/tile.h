// The product that everything here is made of: a few rows of one matrix by two or four vectors of
// columns of another, summed in registers.
//
// The second matrix lies with its columns side by side, [depth][columns]; bfloat16 in pairs along
// the depth, [depth / 2][columns][2], which is what dot-product instructions read. Every element is
// one chain of additions over the depth in order, whatever the number of rows.
#pragma once

#include "simd.h"

namespace crossdock {

#if defined(__AVX512F__)
constexpr int TILE_VECTORS = 2, TILE_ROWS = 14;  // 28 sums in 32 registers
#elif defined(__AVX2__)
constexpr int TILE_VECTORS = 2, TILE_ROWS = 6;  // 12 in 16
#else
constexpr int TILE_VECTORS = 4, TILE_ROWS = 6;  // 24 in 32
#endif
constexpr int TILE_COLUMNS = TILE_VECTORS * LANES;

// Few rows take twice the columns, so that no sum waits for its last addition.
template <int ROWS>
constexpr int VECTORS_OF = ROWS * 2 <= TILE_ROWS ? 2 * TILE_VECTORS : TILE_VECTORS;

template <typename T>
struct Operand;
template <>
struct Operand<float> {
  static constexpr int DEPTH = 1;  // elements along the depth in one step
  typedef float Word;              // those of one column
};
template <>
struct Operand<bf16> {
  static constexpr int DEPTH = 2;
  typedef uint32_t Word;
};

static inline u32v load_words(const void* from) { return *(const u32v_memory*)from; }
static inline void store_words(void* to, u32v words) { *(u32v_memory*)to = words; }

// `a`: DEPTH elements of a row; b: the words of LANES columns.
static inline void multiply_add(f32v& sum, const float* a, u32v b) { sum += *a * as_floats(b); }

static inline void multiply_add(f32v& sum, const bf16* a, u32v b) {
  uint32_t pair;
  std::memcpy(&pair, a, sizeof pair);
#if defined(__AVX512BF16__)
  sum = (f32v)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)pair), (__m512bh)b);
#else
  sum += as_floats(u32v{} + (pair << 16)) * as_floats(b << 16);
  sum += as_floats(u32v{} + (pair & 0xffff0000u)) * as_floats(b & 0xffff0000u);
#endif
}

// `a` has `stride` elements between rows, `b` `width` words between steps. start(i, j) gives what
// is added to, finish(i, j, sum) takes the result: row i, LANES columns from LANES j on. each(k) is
// called before step k, to ask for memory that is needed later.
template <typename T, int ROWS, int VECTORS, typename Start, typename Finish, typename Each>
static inline void tile(const T* a, int64_t stride, const typename Operand<T>::Word* b,
                        int64_t width, int64_t steps, const Start& start, const Finish& finish,
                        const Each& each) {
  f32v sums[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) sums[i][j] = start(i, j);
  for (int64_t k = 0; k < steps; k++, b += width) {
    each(k);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; j++)
        multiply_add(sums[i][j], a + i * stride + k * Operand<T>::DEPTH,
                     load_words(b + j * LANES));
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) finish(i, j, sums[i][j]);
}

// Calls f(Rows<n>{}) for n = rows, which is 1 to TILE_ROWS.
template <int N>
struct Rows {
  static constexpr int COUNT = N;
};
template <int N = TILE_ROWS, typename F>
static inline void with_rows(int rows, const F& f) {
  if constexpr (N > 0) {
    if (rows == N) return f(Rows<N>{});
    with_rows<N - 1>(rows, f);
  }
}

}  // namespace crossdock
