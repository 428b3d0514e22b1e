// Root-mean-square layer norm, alone and with the sum before it.
//
// Squares are added in one order whatever the number of rows; computed in float32, rounded at the
// end.
#include <cmath>

#include "simd.h"
#include "threads.h"

namespace crossdock {
namespace {

// Elements that are worth another thread's start: some 50 µs of work.
constexpr int64_t ELEMENTS_PER_THREAD = 1 << 18;
// Sums that do not wait for each other.
constexpr int CHAINS = 4;

struct Squares {
  f32v sums[CHAINS] = {};
  void add(int chain, f32v x) { sums[chain] += x * x; }
  float total() const { return sum((sums[0] + sums[1]) + (sums[2] + sums[3])); }
};

static inline float inverse_root(float squares, int64_t width, float eps) {
  return 1.0f / std::sqrt(squares / (float)width + eps);
}

template <typename T>
float sum_of_squares(const T* x, int64_t width) {
  Squares squares;
  int64_t i = 0;
  for (; i + CHAINS * LANES <= width; i += CHAINS * LANES)
#pragma GCC unroll 4
    for (int c = 0; c < CHAINS; c++) squares.add(c, load(x + i + c * LANES));
  for (; i + LANES <= width; i += LANES) squares.add(0, load(x + i));
  if (i < width) squares.add(0, load_some(x + i, (int)(width - i)));
  return squares.total();
}

// The sum is rounded before it is squared: what follows reads it from `residual`.
template <typename T>
float add_and_sum_squares(const T* x, T* residual, int64_t width) {
  Squares squares;
  auto add = [&](int64_t i, int chain) __attribute__((always_inline)) {
    f32v total = rounded<T>(load(residual + i) + load(x + i));
    store(residual + i, total);
    squares.add(chain, total);
  };
  int64_t i = 0;
  for (; i + CHAINS * LANES <= width; i += CHAINS * LANES)
#pragma GCC unroll 4
    for (int c = 0; c < CHAINS; c++) add(i + c * LANES, c);
  for (; i + LANES <= width; i += LANES) add(i, 0);
  if (i < width) {
    int count = (int)(width - i);
    f32v total = rounded<T>(load_some(residual + i, count) + load_some(x + i, count));
    store_some(residual + i, total, count);
    squares.add(0, total);
  }
  return squares.total();
}

template <typename T>
void scale(const T* x, const T* weight, T* out, int64_t width, float by) {
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) store(out + i, load(x + i) * by * load(weight + i));
  if (i == width) return;
  int count = (int)(width - i);
  store_some(out + i, load_some(x + i, count) * by * load_some(weight + i, count), count);
}

// Rounds before the weights come in.
template <typename T>
void scale_head(T* x, const T* weight, int64_t width, float by) {
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES)
    store(x + i, rounded<T>(load(x + i) * by) * load(weight + i));
  if (i == width) return;
  int count = (int)(width - i);
  store_some(x + i, rounded<T>(load_some(x + i, count) * by) * load_some(weight + i, count), count);
}

template <typename T>
void rms_norm(const T* x, const T* weight, T* out, int64_t rows, int64_t width, float eps) {
  parallel_rows(rows, ELEMENTS_PER_THREAD / width, [&](int64_t row) {
    const T* from = x + row * width;
    float by = inverse_root(sum_of_squares(from, width), width, eps);
    scale(from, weight, out + row * width, width, by);
  });
}

template <typename T>
void add_rms_norm(const T* x, T* residual, const T* weight, T* out, int64_t rows, int64_t width,
                  float eps) {
  parallel_rows(rows, ELEMENTS_PER_THREAD / width, [&](int64_t row) {
    T* total = residual + row * width;
    float squares = add_and_sum_squares(x + row * width, total, width);
    scale(total, weight, out + row * width, width, inverse_root(squares, width, eps));
  });
}

template <typename T>
void rms_norm_heads(T* x, const T* weights, int64_t rows, int64_t stride, int64_t heads,
                    int64_t width, float eps) {
  parallel_rows(rows, ELEMENTS_PER_THREAD / (heads * width), [&](int64_t row) {
    for (int64_t head = 0; head < heads; head++) {
      T* at = x + row * stride + head * width;
      float by = inverse_root(sum_of_squares(at, width), width, eps);
      scale_head(at, weights + head * width, width, by);
    }
  });
}

}  // namespace
}  // namespace crossdock

using namespace crossdock;

extern "C" {

// x [rows, width], weight [width] to out [rows, width].
void crossdock_rms_norm_bf16(const void* x, const void* weight, void* out, int64_t rows,
                             int64_t width, float eps) {
  rms_norm((const bf16*)x, (const bf16*)weight, (bf16*)out, rows, width, eps);
}
void crossdock_rms_norm_f32(const void* x, const void* weight, void* out, int64_t rows,
                            int64_t width, float eps) {
  rms_norm((const float*)x, (const float*)weight, (float*)out, rows, width, eps);
}

// residual += x, and the norm of that to out; all [rows, width].
void crossdock_add_rms_norm_bf16(const void* x, void* residual, const void* weight, void* out,
                                 int64_t rows, int64_t width, float eps) {
  add_rms_norm((const bf16*)x, (bf16*)residual, (const bf16*)weight, (bf16*)out, rows, width, eps);
}
void crossdock_add_rms_norm_f32(const void* x, void* residual, const void* weight, void* out,
                                int64_t rows, int64_t width, float eps) {
  add_rms_norm((const float*)x, (float*)residual, (const float*)weight, (float*)out, rows, width,
               eps);
}

// In place, x [rows, heads, width] with `stride` elements from row to row; weights [heads, width].
void crossdock_rms_norm_heads_bf16(void* x, const void* weights, int64_t rows, int64_t stride,
                                   int64_t heads, int64_t width, float eps) {
  rms_norm_heads((bf16*)x, (const bf16*)weights, rows, stride, heads, width, eps);
}
void crossdock_rms_norm_heads_f32(void* x, const void* weights, int64_t rows, int64_t stride,
                                  int64_t heads, int64_t width, float eps) {
  rms_norm_heads((float*)x, (const float*)weights, rows, stride, heads, width, eps);
}
}
