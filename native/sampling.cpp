// Draws tokens from rows of logits; the definition is in kernels/sampling.py.
//
// A row is read once for the maxima of its stripes, unless the head has told them. With these the
// likeliest tokens are found without looking at the others. Their exact weights are summed up in
// bins along the order, and only the bin that the answer lies in is sorted. The mass of the whole
// row is summed up in float, with a bound of its error. Where that leaves two answers, or the
// candidates do not reach far enough, the same is done with more candidates, at last with all.
// A bin's sum does not depend on how many bins there are candidates for, so neither does a token;
// rows share nothing, and each has one thread.
#include <algorithm>
#include <cmath>
#include <vector>

#include "logit_row.h"
#include "threads.h"

namespace crossdock {
namespace {

constexpr int BINS = 2048;
// Candidates are at first those with at least this share of the likeliest one's weight, as logarithms.
constexpr double SHARES[] = {-6.9, -11.5, -1e300};
// Of a mass summed up in float: exponents up to 72 with 3 roundings, the power and the sum.
constexpr double FLOAT_ERROR = 1.0 / (1 << 14);
// Below it the float path would overflow.
constexpr double SMALLEST_TEMPERATURE = 1e-6;
constexpr int64_t NO_TOKEN = -1;

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
  std::vector<float> maxima, sorted_maxima;
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
  each_from(row, least, [&](float x, int64_t id) {
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
    list_candidates(row, scratch, std::max(bound_of_top(row, scratch.sorted_maxima, settings.top_k), kept));
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

// The largest logit, or NaN if one is; finds the maxima of a row of which they are not known.
float begin_row(Row& row, Scratch& scratch) {
  if (!row.maxima) {
    scratch.maxima.resize(row.groups() * STRIPES);
    if (!find_maxima(row, scratch.maxima.data())) return std::numeric_limits<float>::quiet_NaN();
    row.maxima = scratch.maxima.data();
  }
  return largest_of(row);
}

// Draws first ... end - 1, which share a row.
void sample_row(Row row, const Draws& draws, int64_t first, int64_t end, int64_t* tokens) {
  Scratch& scratch = thread_scratch;
  float largest = begin_row(row, scratch);
  if (!std::isfinite(largest)) {
    std::fill(tokens + first, tokens + end, NO_TOKEN);
    return;
  }
  if (draws.temperatures[first] == 0) {
    std::fill(tokens + first, tokens + end, first_equal(row, largest));
    return;
  }
  Sampler sampler(row, scratch, largest, draws.settings(first));
  for (int64_t i = first; i < end; i++)
    tokens[i] = sampler.draw(uniform(draws.seeds[i], draws.sequence_indices[i], draws.positions[i]));
}

}  // namespace
}  // namespace crossdock

// logits: float rows `row_stride` apart, of `vocabulary` <= 2^31 each. maxima: of their stripes, as
// crossdock_linear gives them, or null. values: SamplingArrays.values, int64 [8, count]. tokens: int64
// [count].
extern "C" void crossdock_sample(const float* logits, int64_t row_stride, int64_t vocabulary,
                                 const float* maxima, const int64_t* values, int64_t count,
                                 int64_t* tokens) {
  using namespace crossdock;
  Draws draws(values, count);
  std::vector<int64_t> edges;
  for (int64_t i = 0; i < count; i++)
    if (i == 0 || !draws.share_a_row(i - 1, i)) edges.push_back(i);
  edges.push_back(count);
  parallel_for((int64_t)edges.size() - 1, [&](int64_t i) {
    int64_t number = draws.rows[edges[i]];
    Row row = {logits + number * row_stride, vocabulary, nullptr};
    if (maxima) row.maxima = maxima + number * row.groups() * STRIPES;
    sample_row(row, draws, edges[i], edges[i + 1], tokens);
  });
}
