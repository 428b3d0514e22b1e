// Vectors as wide as a register, by the compiler's own vector types, so that one source serves every
// instruction set. (Types wider than a register are kept in memory by GCC, not in several registers.)
// Only what has no such expression, or none that GCC 12 takes well, is an intrinsic, with a plain
// form beside it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace crossdock {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float f32v __attribute__((vector_size(4 * LANES)));
typedef uint32_t u32v __attribute__((vector_size(4 * LANES)));
typedef int32_t i32v __attribute__((vector_size(4 * LANES)));
typedef uint16_t u16v __attribute__((vector_size(2 * LANES)));

typedef f32v f32v_memory __attribute__((aligned(4), may_alias));
typedef u32v u32v_memory __attribute__((aligned(2), may_alias));
typedef u16v u16v_memory __attribute__((aligned(2), may_alias));

static inline f32v splat(float value) { return f32v{} + value; }
static inline f32v as_floats(u32v bits) { return (f32v)bits; }

static inline f32v load(const float* from) { return *(const f32v_memory*)from; }
static inline void store(float* to, f32v values) { *(f32v_memory*)to = values; }

// Asks for the cache line at `address`, into the second-level cache. GCC takes a function that does
// nothing else for one without effect and drops its calls, hence the assembly.
static inline void prefetch_line(const void* address) {
#if defined(__x86_64__)
  __asm__ __volatile__("prefetcht1 %0" : : "m"(*(const char*)address));
#else
  __builtin_prefetch(address, 0, 2);
#endif
}

// bfloat16 is the upper half of a float.
struct bf16 {
  uint16_t bits;
};

static inline u32v load_halves(const bf16* from) {
#if defined(__AVX512F__)  // GCC 12 takes the conversion of a vector apart
  return (u32v)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  return (u32v)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
#else
  return __builtin_convertvector(*(const u16v_memory*)from, u32v);
#endif
}
static inline f32v load(const bf16* from) { return as_floats(load_halves(from) << 16); }

// Round to nearest, ties to even; a NaN stays one.
static inline bf16 narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return {(uint16_t)((bits >> 16) | 0x40)};
  return {(uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

static inline void store(bf16* to, f32v values) {
#if defined(__AVX512BF16__)
  __m256bh halves = _mm512_cvtneps_pbh((__m512)values);
  std::memcpy(to, &halves, sizeof halves);
#else
  u32v bits = (u32v)values;
  u32v rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  u32v nan = (bits >> 16) | 0x40;
  u32v chosen = (u32v)(values != values) ? nan : rounded;
#if defined(__AVX2__) && !defined(__AVX512F__)
  __m256i wide = (__m256i)chosen;
  __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storeu_si128((__m128i*)to, halves);
#else
  *(u16v_memory*)to = __builtin_convertvector(chosen, u16v);
#endif
#endif
}

static inline void put(float* to, float value) { *to = value; }
static inline void put(bf16* to, float value) { *to = narrow(value); }

// As if stored and loaded again.
template <typename T>
static inline f32v rounded(f32v values) {
  T copied[LANES];
  store(copied, values);
  return load(copied);
}
template <>
inline f32v rounded<float>(f32v values) {
  return values;
}

// The first `count` < LANES lanes; the others are 0 when loaded, and are not written when stored.
template <typename T>
static inline f32v load_some(const T* from, int count) {
  T copied[LANES] = {};
  std::memcpy(copied, from, count * sizeof(T));
  return load(copied);
}
template <typename T>
static inline void store_some(T* to, f32v values, int count) {
  T copied[LANES];
  store(copied, values);
  std::memcpy(to, copied, count * sizeof(T));
}

// Where either is NaN, b.
static inline f32v max(f32v a, f32v b) { return a > b ? a : b; }
static inline f32v min(f32v a, f32v b) { return a < b ? a : b; }

// 0, 1, 2, …
static inline i32v lane_numbers() {
  i32v numbers = {};
  for (int i = 0; i < LANES; i++) numbers[i] = i;
  return numbers;
}

static inline float sum(f32v values) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)values);
#else
#pragma GCC unroll 4
  for (int step = LANES / 2; step > 0; step /= 2)
    values += __builtin_shuffle(values, lane_numbers() ^ step);
  return values[0];
#endif
}
static inline float largest(f32v values) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)values);
#else
#pragma GCC unroll 4
  for (int step = LANES / 2; step > 0; step /= 2)
    values = max(values, __builtin_shuffle(values, lane_numbers() ^ step));
  return values[0];
#endif
}

// e^x to about 1 unit in the last place; 0 below -87.3, at most e^88, and NaN of NaN.
// Cody and Waite's reduction by ln 2 in two parts, then the polynomial of Cephes' expf.
static inline f32v exp(f32v x) {
#if defined(__AVX512F__)
  __mmask16 stays = _mm512_cmp_ps_mask((__m512)x, (__m512)splat(-87.3f), _CMP_NLT_UQ);
  x = min(splat(88.0f), x);
  f32v n = (f32v)_mm512_roundscale_ps((__m512)(x * 1.44269504f), _MM_FROUND_TO_NEAREST_INT);
#else
  i32v vanishes = x < -87.3f;
  x = min(splat(88.0f), max(splat(-87.3f), x));
  f32v shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number
  f32v n = shifted - 12582912.0f;
#endif
  f32v r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  f32v p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
#if defined(__AVX512F__)
  return (f32v)_mm512_maskz_scalef_ps(stays, (__m512)p, (__m512)n);
#else
  u32v exponent = ((u32v)__builtin_convertvector(n, i32v) + 127) << 23;
  f32v result = p * as_floats(exponent);
  return vanishes ? f32v{} : result;
#endif
}

}  // namespace crossdock
