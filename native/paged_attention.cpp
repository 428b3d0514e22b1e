// Attention over keys and values that lie in the paged pool, read in place block by block.
//
// One algorithm for prefill and decode: online softmax (Milakov and Gimelshein, 2018) over tiles of
// 64 keys, as in FlashAttention (Dao et al., 2022). Tiles begin at multiples of 64 positions, and a
// row's arithmetic does not depend on what other rows are computed with it: chunks of a prompt, a
// whole prompt and a decode give the same bits.
//
// An item is the query heads of one key head for some tokens of one sequence: its rows share what is
// done to a tile of keys. Cells that no row of the item may see are never loaded: they may be NaN.
#include "attention_item.h"
#include "threads.h"

namespace crossdock {
namespace {

// Rows of an item at least, where a sequence has as many: enough to pay for turning the keys.
constexpr int ITEM_ROWS = 96;

template <typename T>
void attend_all(const AttentionCall& call) {
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
