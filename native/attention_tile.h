// 64 keys and values out of the pool, brought into the order in which tile.h multiplies: keys as
// columns, values in pairs of rows.
//
// For many query rows this is done once, in memory. For a few it is done in registers on the way to
// the product, which spares the stores; the additions are the same ones in the same order.
// Does not cover: where the rows lie, and what becomes of the scores (attention_item.h).
#pragma once

#include "tile.h"

namespace crossdock {

constexpr int KEYS = 64;

// Keys and values of a tile, a row of the pool each.
template <typename T>
struct Tile {
  const T *keys[KEYS], *values[KEYS];
};

static inline void prefetch_row(const void* row, int64_t size) {
  for (int64_t at = 0; at < size; at += 64) prefetch_line((const char*)row + at);
}

#if defined(__AVX2__)
// Query rows that are multiplied with a tile on its way through the registers.
constexpr int FEW_QUERIES = 4;
#endif

#if defined(__AVX512F__)
// Vectors of keys, and of a value's columns, that are summed at once.
constexpr int FEW_GROUPS = KEYS / LANES, FEW_VECTORS = 4;

static inline __m512i two_halves(const uint32_t* low, const uint32_t* high) {
  __m512i both = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)low));
  return _mm512_inserti64x4(both, _mm256_loadu_si256((const __m256i*)high), 1);
}

// 8 words of 16 rows to 8 columns. Rows 4 apart share a vector from the start: no shuffle later.
static inline void transpose(const uint32_t* const* rows, int64_t word, u32v columns[8]) {
  __m512i from[8], pairs[8], quads[8];
  for (int i = 0; i < 4; i++) {
    from[i] = two_halves(rows[i] + word, rows[i + 4] + word);
    from[i + 4] = two_halves(rows[i + 8] + word, rows[i + 12] + word);
  }
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(from[i], from[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(from[i], from[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; j++) {
      quads[i + 2 * j] = _mm512_unpacklo_epi64(pairs[i + j], pairs[i + j + 2]);
      quads[i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[i + j], pairs[i + j + 2]);
    }
  for (int i = 0; i < 4; i++) {
    columns[i] = (u32v)_mm512_shuffle_i32x4(quads[i], quads[i + 4], 0x88);
    columns[i + 4] = (u32v)_mm512_shuffle_i32x4(quads[i], quads[i + 4], 0xdd);
  }
}
#elif defined(__AVX2__)
constexpr int FEW_GROUPS = 1, FEW_VECTORS = 2;

static inline __m256i two_quarters(const uint32_t* low, const uint32_t* high) {
  __m256i both = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)low));
  return _mm256_inserti128_si256(both, _mm_loadu_si128((const __m128i*)high), 1);
}

// 8 words of 8 rows to 8 columns. Rows 4 apart share a vector from the start: no shuffle later.
static inline void transpose(const uint32_t* const* rows, int64_t word, u32v columns[8]) {
  for (int half = 0; half < 8; half += 4) {
    __m256i from[4], pairs[4];
    for (int i = 0; i < 4; i++)
      from[i] = two_quarters(rows[i] + word + half, rows[i + 4] + word + half);
    for (int i = 0; i < 4; i += 2) {
      pairs[i] = _mm256_unpacklo_epi32(from[i], from[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_epi32(from[i], from[i + 1]);
    }
    for (int j = 0; j < 2; j++) {
      columns[half + 2 * j] = (u32v)_mm256_unpacklo_epi64(pairs[j], pairs[j + 2]);
      columns[half + 2 * j + 1] = (u32v)_mm256_unpackhi_epi64(pairs[j], pairs[j + 2]);
    }
  }
}
#endif

#if defined(__AVX2__)
// Asks for half of LANES rows' cache line of 16 words at `word`, for the others with its second half.
static inline void prefetch_half(const uint32_t* const* rows, int64_t word) {
  for (int i = 0; i < LANES / 2; i++)
    prefetch_line(rows[i + (word & 8 ? LANES / 2 : 0)] + (word & -16));
}

// scores[ROWS][KEYS] of queries [ROWS][dim]; dim is a multiple of 32. Asks for the rows of `next`.
template <int ROWS, typename T>
static inline void score_few(const T* queries, int64_t dim, const T* const* keys,
                             const T* const* next, float scale, float* scores) {
  constexpr int DEPTH = Operand<T>::DEPTH;
  for (int first = 0; first < KEYS; first += FEW_GROUPS * LANES) {
    f32v sums[ROWS][FEW_GROUPS] = {};
    for (int64_t w = 0; w < dim / DEPTH; w += 8)
#pragma GCC unroll 4
      for (int g = 0; g < FEW_GROUPS; g++) {
        u32v columns[8];
        transpose((const uint32_t* const*)keys + first + g * LANES, w, columns);
        prefetch_half((const uint32_t* const*)next + first + g * LANES, w);
#pragma GCC unroll 8
        for (int c = 0; c < 8; c++)
#pragma GCC unroll 4
          for (int i = 0; i < ROWS; i++)
            multiply_add(sums[i][g], queries + i * dim + (w + c) * DEPTH, columns[c]);
      }
    for (int i = 0; i < ROWS; i++)
      for (int g = 0; g < FEW_GROUPS; g++)
        store(scores + i * KEYS + first + g * LANES, sums[i][g] * scale);
  }
}

// 2 LANES columns from `column` on of one step: a row of floats, a pair of rows of bfloat16.
static inline void load_step(const float* const* rows, int64_t column, u32v words[2]) {
  for (int j = 0; j < 2; j++) words[j] = load_words(rows[0] + column + j * LANES);
}
static inline void load_step(const bf16* const* rows, int64_t column, u32v words[2]) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(LANES));
  __m512i even = _mm512_loadu_si512(rows[0] + column), odd = _mm512_loadu_si512(rows[1] + column);
  words[0] = (u32v)_mm512_permutex2var_epi16(even, low, odd);
  words[1] = (u32v)_mm512_permutex2var_epi16(even, high, odd);
#else
  for (int j = 0; j < 2; j++) {
    int64_t at = column + j * LANES;
    words[j] = load_halves(rows[0] + at) | load_halves(rows[1] + at) << 16;
  }
#endif
}

// out[ROWS][width] in LANES VECTORS columns from `column` on: shrunk, plus the weighed values. Asks for
// the same columns of `next`.
template <int ROWS, int VECTORS, typename T>
static inline void add_few(const T* weights, const T* const* values, const T* const* next,
                           int64_t column, const float* shrink, int64_t width, float* out) {
  constexpr int DEPTH = Operand<T>::DEPTH, LINE = 64 / sizeof(T);
  f32v sums[ROWS][VECTORS];
  out += column;
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < VECTORS; j++)
      sums[i][j] = load(out + i * width + j * LANES) * shrink[i];
  for (int k = 0; k < KEYS; k += DEPTH) {
    u32v words[VECTORS];
    for (int j = 0; j < VECTORS; j += 2) load_step(values + k, column + j * LANES, words + j);
    for (int i = 0; i < DEPTH; i++)
      for (int c = 0; c < VECTORS * LANES; c += LINE) prefetch_line(next[k + i] + column + c);
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; j++) multiply_add(sums[i][j], weights + i * KEYS + k, words[j]);
  }
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < VECTORS; j++) store(out + i * width + j * LANES, sums[i][j]);
}
#endif

// keys[KEYS] rows of `words` each to columns [words][KEYS]. Asks for the rows of `next` meanwhile.
static inline void turn(const uint32_t* const* keys, [[maybe_unused]] const uint32_t* const* next,
                        int64_t words, uint32_t* columns) {
  int64_t whole = 0;
#if defined(__AVX2__)
  whole = words / 8 * 8;
  for (int first = 0; first < KEYS; first += LANES)
    for (int64_t w = 0; w < whole; w += 8) {
      u32v turned[8];
      transpose(keys + first, w, turned);
      prefetch_half(next + first, w);
      for (int i = 0; i < 8; i++) store_words(columns + (w + i) * KEYS + first, turned[i]);
    }
#endif
  for (int64_t w = whole; w < words; w++)
    for (int i = 0; i < KEYS; i++) columns[w * KEYS + i] = keys[i][w];
}

// values[KEYS] rows of `dim` floats as they are, [KEYS][width]; what is beyond dim stays.
static inline void lay(const float* const* values, int64_t dim, int64_t width, float* laid) {
  for (int i = 0; i < KEYS; i++) std::memcpy(laid + i * width, values[i], dim * sizeof(float));
}

// The same in pairs of rows, [KEYS / 2][width][2].
static inline void lay(const bf16* const* values, int64_t dim, int64_t width, uint32_t* laid) {
  for (int i = 0; i < KEYS; i += 2, laid += width) {
    const bf16 *even = values[i], *odd = values[i + 1];
    int64_t d = 0;
    for (; d + LANES <= dim; d += LANES)
      store_words(laid + d, load_halves(even + d) | load_halves(odd + d) << 16);
    for (; d < dim; d++) laid[d] = even[d].bits | (uint32_t)odd[d].bits << 16;
  }
}

}  // namespace crossdock
