// Vectors of 16 floats by the compiler's own vector types, so that one source serves every
// instruction set: what has narrower registers uses several. Only what has no such expression is an
// intrinsic, with a plain form beside it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace crossdock {

typedef float f32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

typedef f32x16 f32x16_memory __attribute__((aligned(4), may_alias));
typedef u32x16 u32x16_memory __attribute__((aligned(2), may_alias));
typedef u16x16 u16x16_memory __attribute__((aligned(2), may_alias));

constexpr int LANES = 16;

static inline f32x16 splat(float value) { return f32x16{} + value; }
static inline f32x16 as_floats(u32x16 bits) { return (f32x16)bits; }

static inline f32x16 load(const float* from) { return *(const f32x16_memory*)from; }
static inline void store(float* to, f32x16 values) { *(f32x16_memory*)to = values; }

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

static inline u32x16 load_halves(const bf16* from) {
#if defined(__AVX512F__)  // GCC 12 takes the conversion of a vector apart
  return (u32x16)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
#else
  return __builtin_convertvector(*(const u16x16_memory*)from, u32x16);
#endif
}
static inline f32x16 load(const bf16* from) { return as_floats(load_halves(from) << 16); }

// Round to nearest, ties to even; a NaN stays one.
static inline bf16 narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return {(uint16_t)((bits >> 16) | 0x40)};
  return {(uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

static inline void store(bf16* to, f32x16 values) {
#if defined(__AVX512BF16__)
  __m256bh halves = _mm512_cvtneps_pbh((__m512)values);
  std::memcpy(to, &halves, sizeof halves);
#else
  u32x16 bits = (u32x16)values;
  u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  u32x16 nan = (bits >> 16) | 0x40;
  u32x16 chosen = (u32x16)(values != values) ? nan : rounded;
  *(u16x16_memory*)to = __builtin_convertvector(chosen, u16x16);
#endif
}

static inline void put(float* to, float value) { *to = value; }
static inline void put(bf16* to, float value) { *to = narrow(value); }

// As if stored and loaded again.
template <typename T>
static inline f32x16 rounded(f32x16 values) {
  T copied[LANES];
  store(copied, values);
  return load(copied);
}
template <>
inline f32x16 rounded<float>(f32x16 values) {
  return values;
}

// The first `count` < 16 lanes; the others are 0 when loaded, and are not written when stored.
template <typename T>
static inline f32x16 load_some(const T* from, int count) {
  T copied[LANES] = {};
  std::memcpy(copied, from, count * sizeof(T));
  return load(copied);
}
template <typename T>
static inline void store_some(T* to, f32x16 values, int count) {
  T copied[LANES];
  store(copied, values);
  std::memcpy(to, copied, count * sizeof(T));
}

static inline float sum(f32x16 values) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)values);
#else
  float parts[LANES];
  store(parts, values);
  for (int step = LANES / 2; step > 0; step /= 2)
    for (int i = 0; i < step; i++) parts[i] += parts[i + step];
  return parts[0];
#endif
}
static inline float largest(f32x16 values) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)values);
#else
  float best = values[0];
  for (int i = 1; i < LANES; i++) best = values[i] > best ? values[i] : best;
  return best;
#endif
}

// Where either is NaN, b.
static inline f32x16 max(f32x16 a, f32x16 b) { return a > b ? a : b; }
static inline f32x16 min(f32x16 a, f32x16 b) { return a < b ? a : b; }

// e^x to about 1 unit in the last place; 0 below -87.3, at most e^88, and NaN of NaN.
// Cody and Waite's reduction by ln 2 in two parts, then the polynomial of Cephes' expf.
static inline f32x16 exp(f32x16 x) {
#if defined(__AVX512F__)
  __mmask16 stays = _mm512_cmp_ps_mask((__m512)x, (__m512)splat(-87.3f), _CMP_NLT_UQ);
  x = min(splat(88.0f), x);
  f32x16 n = (f32x16)_mm512_roundscale_ps((__m512)(x * 1.44269504f), _MM_FROUND_TO_NEAREST_INT);
#else
  i32x16 vanishes = x < -87.3f;
  x = min(splat(88.0f), max(splat(-87.3f), x));
  f32x16 shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number
  f32x16 n = shifted - 12582912.0f;
#endif
  f32x16 r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  f32x16 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
#if defined(__AVX512F__)
  return (f32x16)_mm512_maskz_scalef_ps(stays, (__m512)p, (__m512)n);
#else
  u32x16 exponent = ((u32x16)__builtin_convertvector(n, i32x16) + 127) << 23;
  f32x16 result = p * as_floats(exponent);
  return vanishes ? f32x16{} : result;
#endif
}

}  // namespace crossdock
