// Some query rows of one sequence and key head over all the keys that they may see: online softmax,
// a tile of keys after the other.
// Does not cover: which items a call consists of and who does them (paged_attention.cpp).
#pragma once

#include <utility>

#include "attention_tile.h"
#include "scratch.h"

namespace crossdock {

// Less than every score, and still a number: what is subtracted from -inf.
constexpr float LOWEST = -1e38f;

struct AttentionCall {
  const char *q, *pool;
  char* out;
  const int32_t *tables, *lengths, *first_rows;
  int64_t sequences, table_width;
  int64_t layers, layer, heads, kv_heads, block_size, dim;
  int64_t window;  // of recent positions; 0: all
};

// Tokens `first` to `last - 1` of a sequence's new ones, for one key head.
struct Item {
  int64_t sequence, kv_head, first, last;
};

// e^x to 2e-5, for weights that are rounded to bfloat16: 2^n times a polynomial in the rest.
static inline f32v exp_of(f32v x, bf16) {
  f32v y = x * 1.44269504f;
  i32v vanishes = y < -126.0f;
  y = max(splat(-126.0f), y);
  f32v shifted = y + 12582912.0f;
  f32v r = y - (shifted - 12582912.0f);
  f32v p = splat(9.61812910e-3f);
  p = p * r + 5.55041087e-2f;
  p = p * r + 2.40226507e-1f;
  p = p * r + 6.93147182e-1f;
  p = p * r + 1.0f;
  f32v result = p * as_floats(((u32v)shifted + 127) << 23);
  return vanishes ? f32v{} : result;
}
static inline f32v exp_of(f32v x, float) { return exp(x); }

// Of a row: the largest score so far and the sum of weights relative to it.
struct Sum {
  float largest, weights;
};

template <typename T>
class ItemWork {
 public:
  typedef typename Operand<T>::Word Word;
  static constexpr int DEPTH = Operand<T>::DEPTH;

  ItemWork(const AttentionCall& call, const Item& item) : call_(call), item_(item) {
    group_ = call.heads / call.kv_heads;
    rows_ = (item.last - item.first) * group_;
    width_ = round_up(call.dim, TILE_COLUMNS);
    int64_t new_tokens = call.first_rows[item.sequence + 1] - call.first_rows[item.sequence];
    first_position_ = call.lengths[item.sequence] - new_tokens + item.first;
    scale_ = 1.0f / __builtin_sqrtf((float)call.dim);
  }

  // `now` is what `find_first` found; in the end that is what `next` begins with.
  void run(Scratch& scratch, Tile<T>*& now, Tile<T>*& ahead, const ItemWork& next) {
    begin(scratch);
    for (int64_t key = first_key(); key <= last_position(); key += KEYS) {
      if (key + KEYS <= last_position()) find(key + KEYS, *ahead);
      else next.find_first(*ahead);
      attend(key, *now, *ahead);
      std::swap(now, ahead);
    }
    end();
  }

  void find_first(Tile<T>& tile) const { find(first_key(), tile); }

 private:
  int64_t last_position() const { return first_position_ + (item_.last - item_.first) - 1; }
  int64_t first_key() const { return first_seen(first_position_) / KEYS * KEYS; }
  int64_t position(int64_t row) const { return first_position_ + row / group_; }
  int64_t first_seen(int64_t position) const {
    return call_.window && position >= call_.window ? position - call_.window + 1 : 0;
  }
  // Where the row's query is, in q and in out.
  int64_t offset(int64_t row) const {
    int64_t token = call_.first_rows[item_.sequence] + item_.first + row / group_;
    return (token * call_.heads + item_.kv_head * group_ + row % group_) * call_.dim;
  }

  void begin(Scratch& scratch) {
    scratch.reserve((rows_ * (call_.dim + 32)) * sizeof(T) + rows_ * (width_ + 32) * sizeof(float) +
                    KEYS * (call_.dim + width_ + 32) * sizeof(Word));
    queries_ = scratch.take<T>(rows_ * call_.dim);
    out_ = scratch.take<float>(rows_ * width_);
    sums_ = scratch.take<Sum>(rows_);
    keys_ = scratch.take<Word>(KEYS * call_.dim);
    values_ = scratch.take<Word>(KEYS * width_);
    for (int64_t row = 0; row < rows_; row++) {
      std::memcpy(queries_ + row * call_.dim, (const T*)call_.q + offset(row), call_.dim * sizeof(T));
      sums_[row] = {LOWEST, 0};
    }
    std::memset(out_, 0, rows_ * width_ * sizeof(float));
    // Columns beyond the last are multiplied too, though their sums are never read.
    if (width_ > call_.dim) std::memset(values_, 0, KEYS * width_ * sizeof(Word));
  }

  // Where keys and values from position `key` on lie; zeros for those that no row may see.
  void find(int64_t key, Tile<T>& tile) const {
    static const char zeros[1024] = {};
    int64_t first = first_seen(first_position_), last = last_position();
    if (key < first || key + KEYS - 1 > last)
      for (int i = 0; i < KEYS; i++) tile.keys[i] = tile.values[i] = (const T*)zeros;
    int64_t side = call_.kv_heads * call_.block_size * call_.dim;
    const int32_t* table = call_.tables + item_.sequence * call_.table_width;
    int64_t end = last + 1 - key < KEYS ? last + 1 - key : KEYS;
    for (int64_t i = key < first ? first - key : 0; i < end;) {
      int64_t block = (key + i) / call_.block_size, offset = (key + i) % call_.block_size;
      const T* at = (const T*)call_.pool + (table[block] * call_.layers + call_.layer) * 2 * side +
                    (item_.kv_head * call_.block_size + offset) * call_.dim;
      for (; i < end && offset < call_.block_size; i++, offset++, at += call_.dim) {
        tile.keys[i] = at;
        tile.values[i] = at + side;
      }
    }
  }

  void load_tile(const Tile<T>& tile, const Tile<T>& ahead) {
    turn((const uint32_t* const*)tile.keys, (const uint32_t* const*)ahead.keys, call_.dim / DEPTH,
         (uint32_t*)keys_);
    lay(tile.values, call_.dim, width_, values_);
  }

  void attend(int64_t key, const Tile<T>& now, const Tile<T>& ahead) {
#if defined(__AVX2__)
    if (rows_ <= FEW_QUERIES && call_.dim % 32 == 0)
      return with_rows<FEW_QUERIES>(
          (int)rows_, [&](auto count) { attend_few<decltype(count)::COUNT>(key, now, ahead); });
#endif
    attend_many(key, now, ahead);
  }

#if defined(__AVX2__)
  template <int ROWS>
  void attend_few(int64_t key, const Tile<T>& now, const Tile<T>& ahead) {
    alignas(64) float scores[ROWS * KEYS];
    alignas(64) T weights[ROWS * KEYS];
    float shrink[ROWS];
    score_few<ROWS>(queries_, call_.dim, now.keys, ahead.keys, scale_, scores);
    for (int i = 0; i < ROWS; i++)
      shrink[i] = weigh(key, i, scores + i * KEYS, weights + i * KEYS);
    int64_t column = 0;
    for (; column + FEW_VECTORS * LANES <= call_.dim; column += FEW_VECTORS * LANES)
      add_few<ROWS, FEW_VECTORS>(weights, now.values, ahead.values, column, shrink, width_, out_);
    if (column < call_.dim)
      add_few<ROWS, 2>(weights, now.values, ahead.values, column, shrink, width_, out_);
  }
#endif

  void attend_many(int64_t key, const Tile<T>& now, const Tile<T>& ahead) {
    load_tile(now, ahead);
    int64_t tiles = (rows_ + TILE_ROWS - 1) / TILE_ROWS;
    for (int64_t i = 0; i < tiles; i++) {
      int64_t row = rows_ * i / tiles, end = rows_ * (i + 1) / tiles;
      if (key > position(end - 1) || key + KEYS <= first_seen(position(row))) continue;
      with_rows((int)(end - row),
                [&](auto count) { attend_rows<decltype(count)::COUNT>(key, row, ahead.values); });
    }
  }

  template <int ROWS>
  void attend_rows(int64_t key, int64_t row, const T* const* values_ahead) {
    constexpr int WIDE = VECTORS_OF<ROWS>;
    alignas(64) float scores[ROWS * KEYS];
    alignas(64) T weights[ROWS * KEYS];
    float shrink[ROWS];
    for (int column = 0; column < KEYS; column += WIDE * LANES)
      tile<T, ROWS, WIDE>(
          queries_ + row * call_.dim, call_.dim, keys_ + column, KEYS, call_.dim / DEPTH,
          [](int, int) { return f32v{}; },
          [&](int i, int j, f32v sum) {
            store(scores + i * KEYS + column + j * LANES, sum * scale_);
          },
          [&](int64_t k) {
            if (row > 0 || column > 0 || k >= KEYS / 2) return;
            prefetch_row(values_ahead[2 * k], call_.dim * sizeof(T));
            prefetch_row(values_ahead[2 * k + 1], call_.dim * sizeof(T));
          });
    for (int i = 0; i < ROWS; i++)
      shrink[i] = weigh(key, row + i, scores + i * KEYS, weights + i * KEYS);
    int64_t column = 0;
    for (; column + WIDE * LANES <= width_; column += WIDE * LANES)
      add_values<ROWS, WIDE>(row, column, weights, shrink);
    for (; column < width_; column += TILE_COLUMNS)
      add_values<ROWS, TILE_VECTORS>(row, column, weights, shrink);
  }

  template <int ROWS, int VECTORS>
  void add_values(int64_t row, int64_t column, const T* weights, const float* shrink) {
    float* out = out_ + row * width_ + column;
    tile<T, ROWS, VECTORS>(
        weights, KEYS, values_ + column, width_, KEYS / DEPTH,
        [&](int i, int j) { return load(out + i * width_ + j * LANES) * shrink[i]; },
        [&](int i, int j, f32v sum) { store(out + i * width_ + j * LANES, sum); }, [](int64_t) {});
  }

  // Scores of a tile to weights; gives the factor by which what was summed before shrinks.
  float weigh(int64_t key, int64_t row, const float* scores, T* weights) {
    constexpr int VECTORS = KEYS / LANES;
    f32v s[VECTORS];
    for (int j = 0; j < VECTORS; j++) s[j] = load(scores + j * LANES);
    int64_t last = position(row), first = first_seen(last);
    if (key + KEYS - 1 > last || key < first) hide(s, (int)(first - key), (int)(last - key));
    float before = sums_[row].largest;
    f32v best = s[0];
    for (int j = 1; j < VECTORS; j++) best = max(best, s[j]);
    float now = largest(best);
    now = now > before ? now : before;
    f32v total = {};
    for (int j = 0; j < VECTORS; j++) {
      f32v w = exp_of(s[j] - now, T{});
      store(weights + j * LANES, w);
      total += w;
    }
    float shrink = exp_of(splat(before - now), T{})[0];
    sums_[row] = {now, sums_[row].weights * shrink + sum(total)};
    return shrink;
  }

  // -inf for the keys of a tile before `first` and after `last`.
  static void hide(f32v* scores, int first, int last) {
    i32v index = lane_numbers();
    for (int j = 0; j < KEYS / LANES; j++, index += LANES)
      scores[j] = (index < first) | (index > last) ? splat(-__builtin_inff()) : scores[j];
  }

  void end() {
    for (int64_t row = 0; row < rows_; row++) {
      T* out = (T*)call_.out + offset(row);
      const float* from = out_ + row * width_;
      float factor = 1.0f / sums_[row].weights;
      int64_t d = 0;
      for (; d + LANES <= call_.dim; d += LANES) store(out + d, load(from + d) * factor);
      for (; d < call_.dim; d++) put(out + d, from[d] * factor);
    }
  }

  const AttentionCall& call_;
  const Item item_;
  int64_t group_, rows_, width_, first_position_;
  float scale_;
  T* queries_;
  float* out_;
  Sum* sums_;
  Word *keys_, *values_;
};

}  // namespace crossdock
