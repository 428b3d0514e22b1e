// Which worker holds how many leading blocks of a prompt (for router/prefix_index/compiled_index.py).
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "block_holders.h"

namespace {

using crossdock::Block;
using crossdock::Holders;
using crossdock::Word;
using Workers = std::vector<Word>;

// So many leading blocks are held by these workers and no more.
struct Run {
  int64_t length;
  Workers workers;
};

// These workers hold the block at ``last`` and not the one at ``probe``.
struct End {
  Workers workers;
  int64_t last, probe;
};

class Index {
 public:
  // ``held`` as workers tell, ``expected`` of what they were sent.
  Holders held, expected;

  // From now on there are workers with numbers up to this one.
  void know(int64_t worker) {
    const int64_t words = worker / 64 + 1;
    if (words <= held.sets().words()) return;
    held.sets().widen(words);
    expected.sets().widen(words);
  }

  // For every worker below ``workers`` which level it has: a run's place in order of length.
  int64_t overlaps(const Block* blocks, int64_t count, int64_t workers, int64_t* level_of,
           int64_t* lengths) {
    Workers asked(held.sets().words());
    for (int64_t worker = 0; worker < std::min<int64_t>(workers, 64 * asked.size()); ++worker)
      asked[worker / 64] |= Word{1} << worker % 64;
    find_runs(blocks, count, asked);
    std::sort(runs_.begin(), runs_.end(),
          [](const Run& one, const Run& other) { return one.length < other.length; });
    std::fill_n(level_of, workers, 0);
    for (size_t i = 0; i < runs_.size(); ++i) {
      lengths[i] = runs_[i].length;
      for (size_t word = 0; word < runs_[i].workers.size(); ++word)
        for (Word rest = runs_[i].workers[word]; rest; rest &= rest - 1)
          level_of[64 * word + __builtin_ctzll(rest)] = i + 1;
    }
    return runs_.size();
  }

 private:
  // By galloping; where some runs end, by bisection. As router/prefix_index/python_index.py, probe by probe.
  void find_runs(const Block* blocks, int64_t count, Workers held_so_far) {
    runs_.clear();
    ends_.clear();
    Workers beyond = held_so_far;
    const int64_t end = count - 1;
    bool is_held = true;
    int64_t last = -1;
    for (int64_t step = 1; is_held && last < end; step *= 2) {
      const int64_t probe = std::min(last + step, end);
      is_held = reach(blocks[probe], held_so_far, beyond);
      if (beyond != held_so_far)
        ends_.push_back({without(held_so_far, beyond), last, probe});
      held_so_far.swap(beyond);
      last = probe;
    }
    if (is_held && last >= 0) runs_.push_back({last + 1, held_so_far});
    while (!ends_.empty()) {
      End one = std::move(ends_.back());
      ends_.pop_back();
      bisect(blocks, one, beyond);
    }
  }

  void bisect(const Block* blocks, End& one, Workers& reached) {
    while (one.probe - one.last > 1) {
      const int64_t middle = (one.last + one.probe) / 2;
      if (!reach(blocks[middle], one.workers, reached)) {
        one.probe = middle;
        continue;
      }
      if (reached != one.workers)
        ends_.push_back({without(one.workers, reached), one.last, middle});
      one.workers = reached;
      one.last = middle;
    }
    if (one.last >= 0) runs_.push_back({one.last + 1, std::move(one.workers)});
  }

  // Who ``of`` these workers holds the block or will soon; whether anybody does.
  bool reach(Block block, const Workers& of, Workers& found) const {
    const Word* holders = held.of(block);
    const Word* soon = expected.size() ? expected.of(block) : nullptr;
    Word any = 0;
    for (size_t i = 0; i < of.size(); ++i) {
      found[i] = ((holders ? holders[i] : 0) | (soon ? soon[i] : 0)) & of[i];
      any |= found[i];
    }
    return any;
  }

  static Workers without(Workers workers, const Workers& others) {
    for (size_t i = 0; i < workers.size(); ++i) workers[i] ^= others[i];
    return workers;
  }

  std::vector<Run> runs_;
  std::vector<End> ends_;
};

}  // namespace

extern "C" {

Index* crossdock_index_new() { return new Index; }

void crossdock_index_delete(Index* index) { delete index; }

void crossdock_index_know(Index* index, int64_t worker) { index->know(worker); }

int64_t crossdock_index_size(Index* index) { return index->held.size(); }

int64_t crossdock_index_holds(Index* index, int64_t worker, Block block) {
  const Word* holders = index->held.of(block);
  return holders && holders[worker / 64] >> worker % 64 & 1;
}

int64_t crossdock_index_knows(Index* index, Block block) {
  const Word* holders = index->held.of(block);
  return holders && std::any_of(holders, holders + index->held.sets().words(),
                  [](Word word) { return word != 0; });
}

int64_t crossdock_index_store(Index* index, int64_t worker, const Block* blocks, int64_t count) {
  return index->held.add(worker, blocks, count);
}

int64_t crossdock_index_remove(Index* index, int64_t worker, const Block* blocks, int64_t count) {
  return index->held.remove(worker, blocks, count);
}

void crossdock_index_expect(Index* index, int64_t worker, const Block* blocks, int64_t count) {
  index->expected.add(worker, blocks, count);
}

void crossdock_index_unexpect(Index* index, int64_t worker, const Block* blocks, int64_t count) {
  index->expected.remove(worker, blocks, count);
}

void crossdock_index_reset(Index* index, int64_t worker) { index->held.remove_all(worker); }

void crossdock_index_unexpect_all(Index* index, int64_t worker) {
  index->expected.remove_all(worker);
}

int64_t crossdock_index_overlaps(Index* index, const Block* blocks, int64_t count, int64_t workers,
                 int64_t* level_of, int64_t* lengths) {
  return index->overlaps(blocks, count, workers, level_of, lengths);
}
}
