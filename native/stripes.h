// How rows of logits are cut into stripes, of which the head (linear.cpp) may give the maxima to
// sampling: logits that differ by a multiple of STRIPES, in groups of STRIPE_GROUP neighbours.
#pragma once

#include <cstdint>

namespace crossdock {

constexpr int64_t STRIPES = 16, STRIPE_GROUP = 512;

// Of a row with so many columns; there are STRIPES maxima for each.
constexpr int64_t stripe_groups(int64_t columns) {
  return (columns + STRIPE_GROUP - 1) / STRIPE_GROUP;
}

}  // namespace crossdock
