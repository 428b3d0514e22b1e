// Attention over keys and values that lie in the paged pool, read in place block by block.
//
// One algorithm for prefill and decode: online softmax (Milakov and Gimelshein, 2018) over tiles of
// 64 keys, as in FlashAttention (Dao et al., 2022). Tiles begin at multiples of 64 positions, and a
// row's arithmetic does not depend on what other rows are computed with it: chunks of a prompt, a
// whole prompt and a decode give the same bits.
//
// A tile of keys is turned into columns once for all rows of an item, which are the query heads
// of one key head for some tokens of one sequence. Cells that no row of the item may see are never
// loaded: they may be NaN.
#include <stdlib.h>

#include "threads.h"
#include "tile.h"

namespace crossdock {
namespace {

constexpr int KEYS = 64;
// Rows of an item at least, where a sequence has as many: enough to pay for turning the keys.
constexpr int ITEM_ROWS = 96;
// Less than every score, and still a number: what is subtracted from -inf.
constexpr float LOWEST = -1e38f;

struct Call {
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

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Memory of a thread, kept from call to call.
class Scratch {
 public:
  ~Scratch() { free(memory_); }
  void reserve(int64_t bytes) {
    used_ = 0;
    if (bytes <= size_) return;
    free(memory_);
    memory_ = (char*)aligned_alloc(64, round_up(bytes, 64));
    if (!memory_) abort();
    size_ = bytes;
  }
  template <typename T>
  T* take(int64_t count) {
    T* taken = (T*)(memory_ + used_);
    used_ += round_up(count * (int64_t)sizeof(T), 64);
    return taken;
  }

 private:
  char* memory_ = nullptr;
  int64_t size_ = 0, used_ = 0;
};

static inline u32x16 load_words(const void* from) { return *(const u32x16_memory*)from; }
static inline void store_words(void* to, u32x16 words) { *(u32x16_memory*)to = words; }

#if defined(__AVX512F__)
// 16 rows of 16 words to 16 columns: pairs of rows, then of pairs, then of quarters.
static inline void transpose(u32x16 rows[LANES]) {
  u32x16 next[LANES];
  for (int i = 0; i < 16; i += 2) {
    next[i] = (u32x16)_mm512_unpacklo_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
    next[i + 1] = (u32x16)_mm512_unpackhi_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) {
      rows[i + 2 * j] = (u32x16)_mm512_unpacklo_epi64((__m512i)next[i + j], (__m512i)next[i + j + 2]);
      rows[i + 2 * j + 1] =
          (u32x16)_mm512_unpackhi_epi64((__m512i)next[i + j], (__m512i)next[i + j + 2]);
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; j++) {
      __m512i a = (__m512i)rows[i + j], b = (__m512i)rows[i + j + 4];
      next[i + j] = (u32x16)_mm512_shuffle_i32x4(a, b, 0x88);
      next[i + j + 4] = (u32x16)_mm512_shuffle_i32x4(a, b, 0xdd);
    }
  for (int j = 0; j < 8; j++) {
    __m512i a = (__m512i)next[j], b = (__m512i)next[j + 8];
    rows[j] = (u32x16)_mm512_shuffle_i32x4(a, b, 0x88);
    rows[j + 8] = (u32x16)_mm512_shuffle_i32x4(a, b, 0xdd);
  }
}
#endif

// Keys and values of a tile, a row of the pool each.
template <typename T>
struct Tile {
  const T *keys[KEYS], *values[KEYS];
};

static inline void prefetch_row(const void* row, int64_t size) {
  for (int64_t at = 0; at < size; at += 64) prefetch_line((const char*)row + at);
}

// keys[KEYS] rows of `words` each to columns [words][KEYS]. Asks for the rows of `next` meanwhile.
static void turn(const uint32_t* const* keys, const uint32_t* const* next, int64_t words,
                 uint32_t* columns) {
  int64_t whole = 0;
#if defined(__AVX512F__)
  whole = words / LANES * LANES;
  for (int first = 0; first < KEYS; first += LANES)
    for (int64_t w = 0; w < whole; w += LANES) {
      u32x16 square[LANES];
      for (int i = 0; i < LANES; i++) square[i] = load_words(keys[first + i] + w);
      for (int i = 0; i < LANES; i++) prefetch_line(next[first + i] + w);
      transpose(square);
      for (int i = 0; i < LANES; i++) store_words(columns + (w + i) * KEYS + first, square[i]);
    }
#endif
  for (int64_t w = whole; w < words; w++)
    for (int i = 0; i < KEYS; i++) columns[w * KEYS + i] = keys[i][w];
}

// values[KEYS] rows of `dim` floats as they are, [KEYS][width]; what is beyond dim stays.
static void lay(const float* const* values, int64_t dim, int64_t width, float* laid) {
  for (int i = 0; i < KEYS; i++) std::memcpy(laid + i * width, values[i], dim * sizeof(float));
}

// The same in pairs of rows, [KEYS / 2][width][2].
static void lay(const bf16* const* values, int64_t dim, int64_t width, uint32_t* laid) {
  for (int i = 0; i < KEYS; i += 2, laid += width) {
    const bf16 *even = values[i], *odd = values[i + 1];
    int64_t d = 0;
    for (; d + LANES <= dim; d += LANES)
      store_words(laid + d, load_halves(even + d) | load_halves(odd + d) << 16);
    for (; d < dim; d++) laid[d] = even[d].bits | (uint32_t)odd[d].bits << 16;
  }
}

// e^x to 2e-5, for weights that are rounded to bfloat16: 2^n times a polynomial in the rest.
static inline f32x16 exp_of(f32x16 x, bf16) {
  f32x16 y = x * 1.44269504f;
  i32x16 vanishes = y < -126.0f;
  y = max(splat(-126.0f), y);
  f32x16 shifted = y + 12582912.0f;
  f32x16 r = y - (shifted - 12582912.0f);
  f32x16 p = splat(9.61812910e-3f);
  p = p * r + 5.55041087e-2f;
  p = p * r + 2.40226507e-1f;
  p = p * r + 6.93147182e-1f;
  p = p * r + 1.0f;
  f32x16 result = p * as_floats(((u32x16)shifted + 127) << 23);
  return vanishes ? f32x16{} : result;
}
static inline f32x16 exp_of(f32x16 x, float) { return exp(x); }

// Of a row: the largest score so far and the sum of weights relative to it.
struct Sum {
  float largest, weights;
};

template <typename T>
class ItemWork {
 public:
  typedef typename Operand<T>::Word Word;
  static constexpr int DEPTH = Operand<T>::DEPTH;

  ItemWork(const Call& call, const Item& item) : call_(call), item_(item) {
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
      load_tile(*now, *ahead);
      int64_t tiles = (rows_ + TILE_ROWS - 1) / TILE_ROWS;
      for (int64_t i = 0; i < tiles; i++) {
        int64_t row = rows_ * i / tiles, end = rows_ * (i + 1) / tiles;
        if (key > position(end - 1) || key + KEYS <= first_seen(position(row))) continue;
        with_rows((int)(end - row),
                  [&](auto count) { attend<decltype(count)::COUNT>(key, row, ahead->values); });
      }
      Tile<T>* done = now;
      now = ahead;
      ahead = done;
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

  template <int ROWS>
  void attend(int64_t key, int64_t row, const T* const* values_ahead) {
    // Few rows take more columns at once, so that no sum waits for its last addition.
    constexpr int WIDE = ROWS * 2 <= TILE_ROWS ? 2 * TILE_VECTORS : TILE_VECTORS;
    alignas(64) float scores[ROWS * KEYS];
    alignas(64) T weights[ROWS * KEYS];
    float shrink[ROWS];
    for (int column = 0; column < KEYS; column += WIDE * LANES)
      tile<T, ROWS, WIDE>(
          queries_ + row * call_.dim, call_.dim, keys_ + column, KEYS, call_.dim / DEPTH,
          [](int, int) { return f32x16{}; },
          [&](int i, int j, f32x16 sum) {
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
        [&](int i, int j, f32x16 sum) { store(out + i * width_ + j * LANES, sum); }, [](int64_t) {});
  }

  // Scores of a tile to weights; gives the factor by which what was summed before shrinks.
  float weigh(int64_t key, int64_t row, const float* scores, T* weights) {
    constexpr int VECTORS = KEYS / LANES;
    f32x16 s[VECTORS];
    for (int j = 0; j < VECTORS; j++) s[j] = load(scores + j * LANES);
    int64_t last = position(row), first = first_seen(last);
    if (key + KEYS - 1 > last || key < first) hide(s, (int)(first - key), (int)(last - key));
    float before = sums_[row].largest;
    float now = largest(max(max(s[0], s[1]), max(s[2], s[3])));
    now = now > before ? now : before;
    f32x16 total = {};
    for (int j = 0; j < VECTORS; j++) {
      f32x16 w = exp_of(s[j] - now, T{});
      store(weights + j * LANES, w);
      total += w;
    }
    float shrink = exp_of(splat(before - now), T{})[0];
    sums_[row] = {now, sums_[row].weights * shrink + sum(total)};
    return shrink;
  }

  // -inf for the keys of a tile before `first` and after `last`.
  static void hide(f32x16* scores, int first, int last) {
    i32x16 index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
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

  const Call& call_;
  const Item item_;
  int64_t group_, rows_, width_, first_position_;
  float scale_;
  T* queries_;
  float* out_;
  Sum* sums_;
  Word *keys_, *values_;
};

template <typename T>
void attend_all(const Call& call) {
  static thread_local Scratch items_memory;
  int64_t group = call.heads / call.kv_heads;
  int64_t tokens = group < ITEM_ROWS ? ITEM_ROWS / group : 1;
  int64_t count = 0;
  for (int64_t s = 0; s < call.sequences; s++)
    count += (call.first_rows[s + 1] - call.first_rows[s] + tokens - 1) / tokens * call.kv_heads;
  items_memory.reserve(count * sizeof(Item) + 64);
  Item* items = items_memory.take<Item>(count);
  int64_t n = 0;
  for (int64_t s = 0; s < call.sequences; s++) {
    int64_t rows = call.first_rows[s + 1] - call.first_rows[s];
    for (int64_t first = 0; first < rows; first += tokens)
      for (int64_t head = 0; head < call.kv_heads; head++)
        items[n++] = {s, head, first, first + tokens < rows ? first + tokens : rows};
  }
  // A few neighbours at a time: one looks ahead to where the next one's keys lie.
  int64_t parts = count < 8 * threads() ? count : 8 * threads();
  parallel_for(parts, [&](int64_t part) {
    static thread_local Scratch scratch;
    Tile<T> tiles[2], *now = &tiles[0], *ahead = &tiles[1];
    int64_t first = count * part / parts, last = count * (part + 1) / parts;
    ItemWork<T>(call, items[first]).find_first(*now);
    for (int64_t i = first; i < last; i++) {
      ItemWork<T> next(call, items[i + 1 < last ? i + 1 : i]);
      ItemWork<T>(call, items[i]).run(scratch, now, ahead, next);
    }
  });
}

}  // namespace
}  // namespace crossdock

using namespace crossdock;

#define CROSSDOCK_ATTENTION(NAME, T)                                                              \
  void NAME(const void* q, const void* pool, void* out, const void* tables, const void* lengths,  \
            const void* first_rows, int64_t sequences, int64_t table_width, int64_t layers,       \
            int64_t layer, int64_t heads, int64_t kv_heads, int64_t block_size, int64_t dim,      \
            int64_t window) {                                                                     \
    attend_all<T>({(const char*)q, (const char*)pool, (char*)out, (const int32_t*)tables,         \
                   (const int32_t*)lengths, (const int32_t*)first_rows, sequences, table_width,   \
                   layers, layer, heads, kv_heads, block_size, dim, window});                     \
  }

extern "C" {
// q and out [rows, heads, dim]; pool [blocks, layers, 2, kv_heads, block_size, dim], dim even and at
// most 256; tables [sequences, table_width], lengths [sequences], first_rows [sequences + 1].
CROSSDOCK_ATTENTION(crossdock_paged_attention_bf16, bf16)
CROSSDOCK_ATTENTION(crossdock_paged_attention_f32, float)
}
