// Draws tokens from rows of logits; the definition is in kernels/sampling.py.
//
// A row is read once for its largest logit and the maxima of many small stripes. With these the
// likeliest tokens are found without looking at the others. Their exact weights are summed up in
// bins along the order, and only the bin that the answer lies in is sorted. The mass of the whole
// row is summed up in float, with a bound of its error. Where that leaves two answers, or the
// candidates do not reach far enough, the same is done with more candidates, at last with all.
// A bin's sum does not depend on how many bins there are candidates for, so neither does a token;
// rows share nothing, and each has one thread.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "threads.h"

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
constexpr float LOWEST = -std::numeric_limits<float>::infinity();
// Vectors in a group; the same lane of all of them is a stripe.
constexpr int64_t GROUP = 32 * WIDTH;
constexpr int BINS = 2048;
// Candidates are at first those with at least this share of the likeliest one's weight, as logarithms.
constexpr double SHARES[] = {-6.9, -11.5, -1e300};
// Of a mass summed up in float: exponents up to 72 with 3 roundings, the power and the sum.
constexpr double FLOAT_ERROR = 1.0 / (1 << 14);
// Below it the float path would overflow.
constexpr double SMALLEST_TEMPERATURE = 1e-6;
constexpr int64_t NO_TOKEN = -1;

struct Row {
  const float* logits;
  int64_t size;
};

struct Settings {
  int64_t top_k;
  double temperature, top_p, cutoff;
};

// Lines of SamplingArrays.values.
struct Draws {
  const int64_t *rows, *top_ks, *seeds, *sequence_indices, *positions;
  const double *temperatures, *top_ps, *cutoffs;

  Draws(const int64_t* values, int64_t count)
      : rows(values),
        top_ks(values + count),
        seeds(values + 2 * count),
        sequence_indices(values + 3 * count),
        positions(values + 4 * count),
        temperatures((const double*)(values + 5 * count)),
        top_ps((const double*)(values + 6 * count)),
        cutoffs((const double*)(values + 7 * count)) {}

  Settings settings(int64_t i) const {
    return {top_ks[i], temperatures[i], top_ps[i], cutoffs[i]};
  }
  bool share_a_row(int64_t i, int64_t j) const {
    return rows[i] == rows[j] && top_ks[i] == top_ks[j] && temperatures[i] == temperatures[j] &&
           top_ps[i] == top_ps[j] && cutoffs[i] == cutoffs[j];
  }
};

// Of one thread, kept from call to call.
struct Scratch {
  std::vector<float> maxima, sorted_maxima;  // of each stripe, group by group
  std::vector<float> logits;                 // of the candidates, which are in the order of ids
  std::vector<int32_t> ids;
  std::vector<double> weights;
  std::vector<int32_t> bins;
  int64_t count;               // of these
  std::vector<uint64_t> keys;  // of one bin, in order
  double bin_mass[BINS];
  int64_t bin_count[BINS];
};

thread_local Scratch thread_scratch;

// ---- random numbers: core/random.py -------------------------------------------------------------

double uniform(int64_t seed, int64_t sequence_index, int64_t position) {
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

// ---- vectors ------------------------------------------------------------------------------------

inline floats splat(float value) { return floats{} + value; }

// What lies beyond the end is -inf.
inline floats logits_at(const Row& row, int64_t i) {
  if (i + WIDTH <= row.size) return *(const floats_memory*)(row.logits + i);
  floats padded;
  for (int lane = 0; lane < WIDTH; lane++)
    padded[lane] = i + lane < row.size ? row.logits[i + lane] : LOWEST;
  return padded;
}

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

// ---- one row ------------------------------------------------------------------------------------

// Fills scratch.maxima; the largest logit, or NaN if a logit is NaN.
float scan(const Row& row, Scratch& scratch) {
  int64_t groups = (row.size + GROUP - 1) / GROUP;
  scratch.maxima.resize(groups * WIDTH);
  floats largest = splat(LOWEST);
  words numbers = ~words{};
  for (int64_t group = 0; group < groups; group++) {
    floats stripes = splat(LOWEST);
    int64_t start = group * GROUP, end = std::min(start + GROUP, row.size);
    for (int64_t i = start; i < end; i += WIDTH) {
      floats x = logits_at(row, i);
      stripes = larger(x, stripes);
      numbers &= (words)(x == x);
    }
    *(floats_memory*)&scratch.maxima[group * WIDTH] = stripes;
    largest = larger(stripes, largest);
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
void each_from(const Row& row, const std::vector<float>& maxima, float least, const Found& found) {
  int64_t groups = (int64_t)maxima.size() / WIDTH;
  for (int64_t group = 0; group < groups; group++) {
    if (!bits_of((words)(*(const floats_memory*)&maxima[group * WIDTH] >= least))) continue;
    int64_t start = group * GROUP, end = std::min(start + GROUP, row.size);
    for (int64_t i = start; i < end; i += WIDTH) {
      floats x = logits_at(row, i);
      for (uint32_t bits = bits_of((words)(x >= least)); bits; bits &= bits - 1) {
        int lane = __builtin_ctz(bits);
        if (!found(x[lane], i + lane)) return;
      }
    }
  }
}

int64_t first_equal(const Row& row, const Scratch& scratch, float largest) {
  int64_t first = NO_TOKEN;
  each_from(row, scratch.maxima, largest, [&](float, int64_t id) {
    first = id;
    return false;
  });
  return first;
}

// At least k logits are not below it; LOWEST if that can't be told.
float bound_of_top(Scratch& scratch, int64_t k) {
  if (k > (int64_t)scratch.maxima.size()) return LOWEST;
  auto& sorted = scratch.sorted_maxima;
  sorted = scratch.maxima;
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
  for (int64_t start = 0; start < row.size; start += GROUP) {
    floats part = {};
    int64_t end = std::min(start + GROUP, row.size);
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

// ---- candidates ---------------------------------------------------------------------------------

// Which part of the order a token is in, by its logit's difference to the largest one.
struct Bins {
  double scale;

  explicit Bins(double cutoff) : scale(-cutoff > 1e-250 ? (BINS - 1) / cutoff : -1) {}

  half_ints of(doubles differences) const {
    return __builtin_convertvector(differences * scale, half_ints);
  }
};

void list_candidates(const Row& row, Scratch& scratch, float least) {
  size_t room = row.size + WIDTH;
  if (scratch.logits.size() < room) {
    scratch.logits.resize(room);
    scratch.ids.resize(room);
    scratch.weights.resize(room);
    scratch.bins.resize(room);
  }
  float* logits = scratch.logits.data();
  int32_t* ids = scratch.ids.data();
  int64_t count = 0;
  each_from(row, scratch.maxima, least, [&](float x, int64_t id) {
    logits[count] = x;
    ids[count++] = (int32_t)id;
    return true;
  });
  scratch.count = count;
}

// Weights and bins of the candidates.
void weigh(Scratch& scratch, float largest, double temperature, const Bins& bins) {
  std::fill_n(&scratch.logits[scratch.count], HALF, largest);
  for (int64_t i = 0; i < scratch.count; i += HALF) {
    half_floats logits = *(const half_floats_memory*)&scratch.logits[i];
    doubles differences = __builtin_convertvector(logits, doubles) - (double)largest;
    *(doubles_memory*)&scratch.weights[i] = exp64(differences / temperature);
    *(half_ints_memory*)&scratch.bins[i] = bins.of(differences);
  }
  std::fill_n(scratch.bin_mass, BINS, 0.0);
  std::fill_n(scratch.bin_count, BINS, 0);
  for (int64_t i = 0; i < scratch.count; i++) {
    scratch.bin_mass[scratch.bins[i]] += scratch.weights[i];
    scratch.bin_count[scratch.bins[i]]++;
  }
}

// Keys of a bin's candidates up to `last`, in order.
void list_bin(Scratch& scratch, int64_t bin, uint64_t last) {
  auto& keys = scratch.keys;
  keys.clear();
  for (int64_t i = 0; i < scratch.count; i += WIDTH) {
    words hits = (words)(*(const words_memory*)&scratch.bins[i] == (uint32_t)bin);
    for (uint32_t bits = bits_of(hits); bits; bits &= bits - 1) {
      int64_t at = i + __builtin_ctz(bits);
      uint64_t key = key_of(scratch.logits[at], scratch.ids[at]);
      if (at < scratch.count && key <= last) keys.push_back(key);
    }
  }
  if (!std::is_sorted(keys.begin(), keys.end())) std::sort(keys.begin(), keys.end());
}

// The shortest beginning of the order that is enough, or what is left where none is.
struct Beginning {
  bool enough;
  int64_t bin;  // of the last token
  uint64_t last;
  double mass;
};

// ---- draws --------------------------------------------------------------------------------------

// One row with its settings, for any number of draws.
class Sampler {
 public:
  Sampler(const Row& row, Scratch& scratch, float largest, const Settings& settings)
      : row(row), scratch(scratch), largest(largest), settings(settings), bins(settings.cutoff),
        kept(lowest_kept(largest, settings.cutoff)) {
    settings.top_k ? prepare_top() : prepare(0);
  }

  int64_t draw(double u) {
    while (true) {
      int64_t token = draw_with(least_total, u);
      if (left.enough) return token;
      if (token != NO_TOKEN && token == draw_with(largest_total, u)) return token;
      prepare(step + 1);
    }
  }

 private:
  const Row& row;
  Scratch& scratch;
  float largest;
  Settings settings;
  Bins bins;
  float kept;  // the least logit that is not cut off
  int step = 0;
  Beginning left = {};  // what top_k leaves; not `enough` if only some candidates were listed
  double least_total = 0, largest_total = 0;

  void prepare_top() {
    list_candidates(row, scratch, std::max(bound_of_top(scratch, settings.top_k), kept));
    weigh(scratch, largest, settings.temperature, bins);
    left = shortest({true, BINS - 1, UINT64_MAX, 0},
                   [&](int64_t count, double) { return count >= settings.top_k; });
    left.enough = true;
    least_total = largest_total = left.mass;
  }

  // Candidates of SHARES[wanted], or all.
  void prepare(int wanted) {
    step = wanted;
    double difference = settings.temperature * SHARES[step];
    bool complete = difference <= settings.cutoff || settings.temperature < SMALLEST_TEMPERATURE;
    list_candidates(row, scratch, complete ? kept : lowest_kept(largest, difference));
    weigh(scratch, largest, settings.temperature, bins);
    // The bin in which the candidates end has not got all that belong there.
    int64_t last_bin = complete ? BINS - 1 : bins.of(doubles{} + difference)[0] - 1;
    left = {complete, last_bin, UINT64_MAX, 0};
    if (complete) {
      for (double mass : scratch.bin_mass) left.mass += mass;
      least_total = largest_total = left.mass;
    } else if (!least_total) {
      double mass = mass_in_float(row, largest, settings.temperature, kept);
      least_total = mass * (1 - FLOAT_ERROR);
      largest_total = mass * (1 + FLOAT_ERROR);
    }
  }

  double weight(uint64_t key) const {
    double difference = (double)row.logits[id_of(key)] - largest;
    return exp64(doubles{} + difference / settings.temperature)[0];
  }

  // The shortest beginning within `limit` for which reached(its count, its mass).
  template <typename Reached>
  Beginning shortest(const Beginning& limit, const Reached& reached) const {
    int64_t bin = 0, count = 0, filled = 0;
    double mass = 0, before = 0;
    for (; bin <= limit.bin; bin++) {
      if (!scratch.bin_count[bin]) continue;
      filled = bin;
      before = mass;
      mass += scratch.bin_mass[bin];
      count += scratch.bin_count[bin];
      if (bin == limit.bin || reached(count, mass)) break;
    }
    list_bin(scratch, filled, limit.last);
    mass = before;
    count -= scratch.bin_count[filled];
    uint64_t last = limit.last;
    for (uint64_t key : scratch.keys) {
      mass += weight(last = key);
      if (reached(++count, mass)) return {true, filled, key, mass};
    }
    return {false, filled, last, mass};
  }

  // The token if `total` were the mass of all; NO_TOKEN if the candidates do not reach so far.
  int64_t draw_with(double total, double u) const {
    Beginning nucleus = left;
    nucleus.mass = total;
    if (settings.top_p < 1) {
      double wanted = settings.top_p * total;
      nucleus = shortest(left, [=](int64_t, double mass) { return mass >= wanted; });
      if (!nucleus.enough && !left.enough) return NO_TOKEN;
    }
    double wanted = u * nucleus.mass;
    Beginning drawn = shortest(nucleus, [=](int64_t, double mass) { return mass > wanted; });
    if (!drawn.enough && !left.enough && settings.top_p >= 1) return NO_TOKEN;
    return id_of(drawn.last);
  }
};

// Draws first ... end - 1, which share a row.
void sample_row(const Row& row, const Draws& draws, int64_t first, int64_t end, int64_t* tokens) {
  Scratch& scratch = thread_scratch;
  float largest = scan(row, scratch);
  if (!std::isfinite(largest)) {
    std::fill(tokens + first, tokens + end, NO_TOKEN);
    return;
  }
  if (draws.temperatures[first] == 0) {
    std::fill(tokens + first, tokens + end, first_equal(row, scratch, largest));
    return;
  }
  Sampler sampler(row, scratch, largest, draws.settings(first));
  for (int64_t i = first; i < end; i++)
    tokens[i] = sampler.draw(uniform(draws.seeds[i], draws.sequence_indices[i], draws.positions[i]));
}

}  // namespace
}  // namespace crossdock

// logits: float rows `row_stride` apart, of `vocabulary` <= 2^31 each. values: SamplingArrays.values,
// int64 [8, count]. tokens: int64 [count].
extern "C" void crossdock_sample(const float* logits, int64_t row_stride, int64_t vocabulary,
                                 const int64_t* values, int64_t count, int64_t* tokens) {
  using namespace crossdock;
  Draws draws(values, count);
  std::vector<int64_t> edges;
  for (int64_t i = 0; i < count; i++)
    if (i == 0 || !draws.share_a_row(i - 1, i)) edges.push_back(i);
  edges.push_back(count);
  parallel_for((int64_t)edges.size() - 1, [&](int64_t i) {
    Row row = {logits + draws.rows[edges[i]] * row_stride, vocabulary};
    sample_row(row, draws, edges[i], edges[i + 1], tokens);
  });
}
