// Sets of workers, of which there are far fewer than blocks: a worker that starts over is taken out
// of the sets, not out of a million blocks. Two of them may be equal then; one is found by its
// workers, and blocks that have the other one keep it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace crossdock {

using Set = uint32_t;
// One bit for each worker, in words of 64.
using Word = uint64_t;

constexpr Set NO_SET = 0;

inline uint64_t mixed(uint64_t value) {
  value ^= value >> 32;
  value *= 0x9E3779B97F4A7C15;
  return value ^ value >> 29;
}

// Sets of workers by number, each with the number of blocks that have it.
class WorkerSets {
 public:
  WorkerSets() : words_(1), members_(1), blocks_(1) {}

  int64_t words() const { return words_; }
  const Word* members(Set set) const { return &members_[set * words_]; }
  bool has(Set set, int64_t worker) const { return members(set)[worker / 64] >> worker % 64 & 1; }
  bool is_empty(Set set) const {
    return std::all_of(members(set), members(set) + words_, [](Word word) { return !word; });
  }

  void widen(int64_t words) {
    std::vector<Word> wider(blocks_.size() * words);
    for (size_t set = 0; set < blocks_.size(); ++set)
      std::copy_n(members(set), words_, &wider[set * words]);
    members_.swap(wider);
    words_ = words;
    by_members_.clear();
    for (Set set = 1; set < blocks_.size(); ++set)
      if (blocks_[set]) by_members_.emplace(key(set), set);
  }

  // The set with this worker more, or less; NO_SET if it would be empty.
  Set changed(Set set, int64_t worker) {
    const Set made = copy(set);
    members_[made * words_ + worker / 64] ^= Word{1} << worker % 64;
    if (is_empty(made)) {
      free_.push_back(made);
      return NO_SET;
    }
    const auto [found, is_new] = by_members_.try_emplace(key(made), made);
    if (is_new) return made;
    if (!std::equal(members(made), members(made) + words_, members(found->second))) return made;
    free_.push_back(made);
    return found->second;
  }

  void take(Set set) { ++blocks_[set]; }

  void give(Set set) {
    if (set == NO_SET || --blocks_[set]) return;
    forget(set);
    free_.push_back(set);
  }

  // Takes the worker out of every set. Returns how many blocks nobody holds any more.
  int64_t remove(int64_t worker) {
    int64_t left = 0;
    for (Set set = 1; set < blocks_.size(); ++set) {
      if (!blocks_[set] || !has(set, worker)) continue;
      forget(set);
      members_[set * words_ + worker / 64] &= ~(Word{1} << worker % 64);
      if (is_empty(set))
        left += blocks_[set];
      else
        by_members_.try_emplace(key(set), set);
    }
    return left;
  }

 private:
  Set copy(Set set) {
    Set made;
    if (free_.empty()) {
      made = blocks_.size();
      blocks_.push_back(0);
      members_.resize(members_.size() + words_);
    } else {
      made = free_.back();
      free_.pop_back();
    }
    std::copy_n(members(set), words_, &members_[made * words_]);
    return made;
  }

  void forget(Set set) {
    const auto found = by_members_.find(key(set));
    if (found != by_members_.end() && found->second == set) by_members_.erase(found);
  }

  uint64_t key(Set set) const {
    uint64_t key = 0;
    for (int64_t i = 0; i < words_; ++i) key = mixed(key + members(set)[i]);
    return key;
  }

  int64_t words_;
  std::vector<Word> members_;
  std::vector<int64_t> blocks_;
  std::vector<Set> free_;
  std::unordered_map<uint64_t, Set> by_members_;
};

}  // namespace crossdock
