// Rotation of Q and K and the write of K and V to the paged cache, in one pass over a token.
//
// Computed in float32, rounded once at the end.
#include "simd.h"
#include "threads.h"

namespace crossdock {
namespace {

// Elements that are worth another thread's start: some 50 µs of work.
constexpr int64_t ELEMENTS_PER_THREAD = 1 << 17;

// The pairs (i, i + half) of a head turned; may be in place.
template <typename T>
void rotate(const T* x, const T* cos, const T* sin, T* out, int64_t half) {
  int64_t i = 0;
  for (; i + LANES <= half; i += LANES) {
    f32v a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
    store(out + i, a * c - b * s);
    store(out + half + i, b * c + a * s);
  }
  if (i == half) return;
  int count = (int)(half - i);
  f32v a = load_some(x + i, count), b = load_some(x + half + i, count);
  f32v c = load_some(cos + i, count), s = load_some(sin + i, count);
  store_some(out + i, a * c - b * s, count);
  store_some(out + half + i, b * c + a * s, count);
}

template <typename T>
void rotate_and_store(const T* qkv, const T* cos, const T* sin, T* pool, const int64_t* slots, T* q,
                      int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim, int64_t layers,
                      int64_t layer, int64_t block_size) {
  int64_t row_size = (heads + 2 * kv_heads) * dim, half = dim / 2;
  int64_t head_size = block_size * dim, side_size = kv_heads * head_size;
  parallel_rows(tokens, ELEMENTS_PER_THREAD / row_size, [&](int64_t t) {
    const T* from = qkv + t * row_size;
    const T *c = cos + t * half, *s = sin + t * half;
    for (int64_t head = 0; head < heads; head++, from += dim)
      rotate(from, c, s, q + (t * heads + head) * dim, half);
    int64_t block = slots[t] / block_size, offset = slots[t] % block_size;
    T* keys = pool + (block * layers + layer) * 2 * side_size + offset * dim;
    T* values = keys + side_size;
    for (int64_t head = 0; head < kv_heads; head++, from += dim)
      rotate(from, c, s, keys + head * head_size, half);
    for (int64_t head = 0; head < kv_heads; head++, from += dim)
      std::memcpy(values + head * head_size, from, dim * sizeof(T));
  });
}

}  // namespace
}  // namespace crossdock

using namespace crossdock;

extern "C" {

// qkv [tokens, heads + 2 * kv_heads, dim]; cos, sin [tokens, dim / 2]; pool [blocks, layers, 2,
// kv_heads, block_size, dim]; slots [tokens] = block id * block_size + offset; q [tokens, heads,
// dim].
void crossdock_rotate_and_store_bf16(const void* qkv, const void* cos, const void* sin, void* pool,
                                     const void* slots, void* q, int64_t tokens, int64_t heads,
                                     int64_t kv_heads, int64_t dim, int64_t layers, int64_t layer,
                                     int64_t block_size) {
  rotate_and_store((const bf16*)qkv, (const bf16*)cos, (const bf16*)sin, (bf16*)pool,
                   (const int64_t*)slots, (bf16*)q, tokens, heads, kv_heads, dim, layers, layer,
                   block_size);
}
void crossdock_rotate_and_store_f32(const void* qkv, const void* cos, const void* sin, void* pool,
                                    const void* slots, void* q, int64_t tokens, int64_t heads,
                                    int64_t kv_heads, int64_t dim, int64_t layers, int64_t layer,
                                    int64_t block_size) {
  rotate_and_store((const float*)qkv, (const float*)cos, (const float*)sin, (float*)pool,
                   (const int64_t*)slots, (float*)q, tokens, heads, kv_heads, dim, layers, layer,
                   block_size);
}
}
