// Arithmetic of sampling: random numbers, exact powers, the order of tokens.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace crossdock {
namespace {

// As wide as a register, so that comparisons too are single instructions.
#if defined(__AVX512F__)
constexpr int REGISTER = 64;
#elif defined(__AVX2__)
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif
typedef float floats __attribute__((vector_size(REGISTER)));
typedef uint32_t words __attribute__((vector_size(REGISTER)));
typedef double doubles __attribute__((vector_size(REGISTER)));
typedef int64_t long_words __attribute__((vector_size(REGISTER)));
typedef float half_floats __attribute__((vector_size(REGISTER / 2)));
typedef int32_t half_ints __attribute__((vector_size(REGISTER / 2)));
typedef floats floats_memory __attribute__((aligned(4), may_alias));
typedef words words_memory __attribute__((aligned(4), may_alias));
typedef doubles doubles_memory __attribute__((aligned(8), may_alias));
typedef half_floats half_floats_memory __attribute__((aligned(4), may_alias));
typedef half_ints half_ints_memory __attribute__((aligned(4), may_alias));

constexpr int WIDTH = REGISTER / sizeof(float), HALF = WIDTH / 2;

// ---- vectors ------------------------------------------------------------------------------------

inline floats splat(float value) { return floats{} + value; }

inline floats larger(floats a, floats b) { return a > b ? a : b; }

// One bit for each lane, of which all bits are set or none.
inline uint32_t bits_of(words condition) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)condition);
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)condition);
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < WIDTH; lane++) bits |= (condition[lane] & 1) << lane;
  return bits;
#endif
}

inline doubles widen(floats values, int half) {
  half_floats part;
  std::memcpy(&part, (const char*)&values + half * sizeof part, sizeof part);
  return __builtin_convertvector(part, doubles);
}

// e^x for -700 < x <= 0, to about 1 unit in the last place: Cody and Waite's reduction by ln 2, then
// the Taylor polynomial, whose first term left out is below 2^-52 for |r| <= ln 2 / 2.
inline doubles exp64(doubles x) {
  constexpr double SHIFT = 6755399441055744.0;  // 1.5 * 2^52: rounds to a whole number
  doubles shifted = x * 1.4426950408889634 + SHIFT;
  doubles n = shifted - SHIFT;
  doubles r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  doubles p = doubles{} + 1.0 / 6227020800.0;
  constexpr double factorials[] = {479001600, 39916800, 3628800, 362880, 40320, 5040, 720,
                                   120,       24,       6,       2,      1,     1};
  for (double factorial : factorials) p = p * r + 1.0 / factorial;
  long_words power = (long_words)shifted << 52;
  return (doubles)((long_words)p + power);
}

// ---- the order ----------------------------------------------------------------------------------

inline int32_t ordered(float x) {
  x += 0.0f;  // -0 is 0
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

inline float unordered(int32_t bits) {
  bits ^= (bits >> 31) & 0x7fffffff;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Ascending by (-logit, token id).
inline uint64_t key_of(float x, int64_t id) {
  return (uint64_t)(0x7fffffffu - (uint32_t)ordered(x)) << 32 | (uint64_t)id;
}
inline int64_t id_of(uint64_t key) { return (int64_t)(key & 0xffffffff); }

// ---- random numbers: core/random.py -------------------------------------------------------------

inline double uniform(int64_t seed, int64_t sequence_index, int64_t position) {
  uint32_t c0 = (uint32_t)position, c1 = (uint32_t)((uint64_t)position >> 32);
  uint32_t c2 = (uint32_t)sequence_index, c3 = 0;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)((uint64_t)seed >> 32);
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return (double)(((uint64_t)c0 << 21) | (c1 >> 11)) * 0x1p-53;
}

}  // namespace
}  // namespace crossdock
