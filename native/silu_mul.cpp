// silu(gate) * up, computed in float32 and rounded once at the end.
#include "simd.h"
#include "threads.h"

namespace crossdock {
namespace {

// Elements that are worth another thread's start: some 50 µs of work.
constexpr int64_t ELEMENTS_PER_THREAD = 1 << 16;

static inline f32v silu_mul(f32v gate, f32v up) { return gate / (1.0f + exp(-gate)) * up; }

template <typename T>
void silu_mul_row(const T* gate, const T* up, T* out, int64_t width) {
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) store(out + i, silu_mul(load(gate + i), load(up + i)));
  if (i == width) return;
  int count = (int)(width - i);
  store_some(out + i, silu_mul(load_some(gate + i, count), load_some(up + i, count)), count);
}

template <typename T>
void silu_mul_rows(const T* gate_up, T* out, int64_t rows, int64_t width) {
  parallel_rows(rows, ELEMENTS_PER_THREAD / width, [&](int64_t row) {
    const T* gate = gate_up + row * 2 * width;
    silu_mul_row(gate, gate + width, out + row * width, width);
  });
}

}  // namespace
}  // namespace crossdock

using namespace crossdock;

extern "C" {

// gate_up [rows, 2 * width], the gate first, to out [rows, width].
void crossdock_silu_mul_bf16(const void* gate_up, void* out, int64_t rows, int64_t width) {
  silu_mul_rows((const bf16*)gate_up, (bf16*)out, rows, width);
}
void crossdock_silu_mul_f32(const void* gate_up, void* out, int64_t rows, int64_t width) {
  silu_mul_rows((const float*)gate_up, (float*)out, rows, width);
}
}
