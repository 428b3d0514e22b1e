// One row of logits: its largest ones found by the maxima of many small stripes, and its mass.
//
// A row is cut into groups of STRIPE_GROUP logits; every STRIPES-th logit of a group is a stripe. Who
// knows the stripes' maxima finds the likeliest tokens without looking at the others.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "sampling_math.h"
#include "stripes.h"

namespace crossdock {
namespace {

constexpr float LOWEST = -std::numeric_limits<float>::infinity();
// Vectors that hold one logit of each stripe.
constexpr int PARTS = STRIPES / WIDTH;

// `maxima`: of each stripe, group by group.
struct Row {
  const float* logits;
  int64_t size;
  const float* maxima;

  int64_t groups() const { return stripe_groups(size); }
};

// The least logit that the cutoff leaves.
float lowest_kept(float largest, double cutoff) {
  int64_t dropped = ordered(LOWEST), kept = ordered(largest);
  while (kept - dropped > 1) {
    int64_t middle = (kept + dropped) >> 1;
    bool keep = (double)unordered((int32_t)middle) - largest >= cutoff;
    (keep ? kept : dropped) = middle;
  }
  return unordered((int32_t)kept);
}

// What lies beyond the end is -inf.
inline floats logits_at(const Row& row, int64_t i) {
  if (i + WIDTH <= row.size) return *(const floats_memory*)(row.logits + i);
  floats padded;
  for (int lane = 0; lane < WIDTH; lane++)
    padded[lane] = i + lane < row.size ? row.logits[i + lane] : LOWEST;
  return padded;
}

// The maxima of all stripes; false if a logit is NaN.
bool find_maxima(const Row& row, float* maxima) {
  words numbers = ~words{};
  for (int64_t group = 0; group < row.groups(); group++) {
    floats stripes[PARTS];
    for (floats& part : stripes) part = splat(LOWEST);
    int64_t start = group * STRIPE_GROUP, end = std::min(start + STRIPE_GROUP, row.size);
    for (int64_t i = start; i < end; i += STRIPES) {
      for (int part = 0; part < PARTS; part++) {
        floats x = logits_at(row, i + part * WIDTH);
        stripes[part] = larger(x, stripes[part]);
        numbers &= (words)(x == x);
      }
    }
    std::memcpy(maxima + group * STRIPES, stripes, sizeof stripes);
  }
  for (int lane = 0; lane < WIDTH; lane++)
    if (!numbers[lane]) return false;
  return true;
}

// NaN if one of the maxima is.
float largest_of(const Row& row) {
  floats largest = splat(LOWEST);
  words numbers = ~words{};
  for (int64_t i = 0; i < row.groups() * STRIPES; i += WIDTH) {
    floats x = *(const floats_memory*)(row.maxima + i);
    largest = larger(x, largest);
    numbers &= (words)(x == x);
  }
  float found = LOWEST;
  for (int lane = 0; lane < WIDTH; lane++) {
    if (!numbers[lane]) return std::numeric_limits<float>::quiet_NaN();
    found = std::max(found, largest[lane]);
  }
  return found;
}

// found(logit, id) for all logits >= least, by id, until it says no.
template <typename Found>
void each_from(const Row& row, float least, const Found& found) {
  for (int64_t group = 0; group < row.groups(); group++) {
    words reaching = {};
    for (int part = 0; part < PARTS; part++) {
      const float* maxima = row.maxima + group * STRIPES + part * WIDTH;
      reaching |= (words)(*(const floats_memory*)maxima >= least);
    }
    if (!bits_of(reaching)) continue;
    int64_t start = group * STRIPE_GROUP, end = std::min(start + STRIPE_GROUP, row.size);
    for (int64_t i = start; i < end; i += WIDTH) {
      floats x = logits_at(row, i);
      for (uint32_t bits = bits_of((words)(x >= least)); bits; bits &= bits - 1) {
        int lane = __builtin_ctz(bits);
        if (!found(x[lane], i + lane)) return;
      }
    }
  }
}

int64_t first_equal(const Row& row, float largest) {
  int64_t first = -1;
  each_from(row, largest, [&](float, int64_t id) {
    first = id;
    return false;
  });
  return first;
}

// At least k logits are not below it; LOWEST if that can't be told. `sorted` is overwritten.
float bound_of_top(const Row& row, std::vector<float>& sorted, int64_t k) {
  if (k > row.groups() * STRIPES) return LOWEST;
  sorted.assign(row.maxima, row.maxima + row.groups() * STRIPES);
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<float>());
  return sorted[k - 1];
}

// 2^x for -100 < x <= 0 to 3e-6: the nearest whole power, and a polynomial of degree 4 (the minimax
// one on -0.5 ... 0.5).
inline floats rough_power(floats shifted, floats r) {
  floats p = splat(9.57009941e-3f);
  p = p * r + 5.59178601e-2f;
  p = p * r + 2.40247449e-1f;
  p = p * r + 6.93121815e-1f;
  p = p * r + 9.99999261e-1f;
  return (floats)((words)p + ((words)shifted << 23));
}

// The mass of all logits >= least, from floats.
double mass_in_float(const Row& row, float largest, double temperature, float least) {
  constexpr float SHIFT = 12582912.0f;  // 1.5 * 2^23: rounds to a whole number
  float scale = (float)(1.4426950408889634 / temperature);
  doubles total = {};
  for (int64_t start = 0; start < row.size; start += STRIPE_GROUP) {
    floats part = {};
    int64_t end = std::min(start + STRIPE_GROUP, row.size);
    for (int64_t i = start; i < end; i += WIDTH) {
      floats x = logits_at(row, i);
      floats difference = x - largest;
      floats shifted = difference * scale + SHIFT;
      floats weight = rough_power(shifted, difference * scale - (shifted - SHIFT));
      part += (floats)((words)weight & (words)(x >= least));
    }
    total += widen(part, 0) + widen(part, 1);
  }
  double mass = 0;
  for (int lane = 0; lane < HALF; lane++) mass += total[lane];
  return mass;
}

}  // namespace
}  // namespace crossdock
