// From block hashes to sets of workers, 12 bytes a slot. Blocks that nobody holds any more are
// dropped when their table is full.
#pragma once

#include <cstdint>
#include <vector>

#include "worker_sets.h"

namespace crossdock {

using Block = uint64_t;

constexpr int64_t FEWEST_SLOTS = 16;
// Each grows by itself: all blocks in one table would stop a router for tens of milliseconds.
constexpr int TABLE_BITS = 8;

#pragma pack(push, 4)
struct Slot {
  Block block = 0;
  Set set = NO_SET;
};
#pragma pack(pop)

// A part of all blocks: open addressing, linear probing, nothing left behind by what is removed.
class Table {
 public:
  Table() : slots_(FEWEST_SLOTS) {}

  // The block's own slot, or the free one where it would be.
  const Slot& at(Block block) const { return slots_[place(block)]; }
  Slot& at(Block block) { return slots_[place(block)]; }

  bool is_full() const { return (used_ + 1) * 3 > size() * 2; }
  void taken() { ++used_; }

  // What was put behind this slot because it was taken moves up.
  void empty(const Slot& slot) {
    int64_t at = &slot - slots_.data();
    for (int64_t from = next(at); slots_[from].set; from = next(from)) {
      const int64_t moved = (from - home(slots_[from].block)) & (size() - 1);
      if (moved >= ((from - at) & (size() - 1))) slots_[at] = slots_[from], at = from;
    }
    slots_[at].set = NO_SET;
    --used_;
  }

  // Drops what nobody holds; twice the slots if that is not enough.
  void make_room(WorkerSets& sets) {
    for (Slot& slot : slots_)
      if (slot.set && sets.is_empty(slot.set)) sets.give(slot.set), slot.set = NO_SET, --used_;
    std::vector<Slot> old(size() * (used_ * 3 > size() ? 2 : 1));
    old.swap(slots_);
    for (const Slot& slot : old)
      if (slot.set) slots_[place(slot.block)] = slot;
  }

 private:
  int64_t size() const { return slots_.size(); }
  int64_t home(Block block) const { return mixed(block) & (size() - 1); }
  int64_t next(int64_t at) const { return (at + 1) & (size() - 1); }

  int64_t place(Block block) const {
    int64_t at = home(block);
    while (slots_[at].set && slots_[at].block != block) at = next(at);
    return at;
  }

  std::vector<Slot> slots_;
  int64_t used_ = 0;
};

// From blocks to sets.
class Holders {
 public:
  // Blocks that somebody holds.
  int64_t size() const { return held_; }
  WorkerSets& sets() { return sets_; }

  const Word* of(Block block) const {
    const Slot& slot = tables_[table(block)].at(block);
    return slot.set ? sets_.members(slot.set) : nullptr;
  }

  // Returns how many of the blocks the worker did not hold.
  int64_t add(int64_t worker, const Block* blocks, int64_t count) {
    int64_t added = 0;
    Set before = NO_SET, after = NO_SET;
    for (int64_t i = 0; i < count; ++i) {
      Table& table = tables_[this->table(blocks[i])];
      if (table.is_full()) table.make_room(sets_);
      Slot& slot = table.at(blocks[i]);
      const Set set = slot.set;
      if (set && sets_.has(set, worker)) continue;
      if (set == NO_SET) slot.block = blocks[i], table.taken();
      if (set == NO_SET || sets_.is_empty(set)) ++held_;
      // Neighbours mostly have the same set.
      if (after == NO_SET || set != before) before = set, after = sets_.changed(set, worker);
      slot.set = after;
      sets_.take(after);
      sets_.give(set);
      ++added;
    }
    return added;
  }

  // Returns how many of the blocks the worker did hold.
  int64_t remove(int64_t worker, const Block* blocks, int64_t count) {
    int64_t removed = 0;
    Set before = NO_SET, after = NO_SET;
    for (int64_t i = 0; i < count; ++i) {
      Table& table = tables_[this->table(blocks[i])];
      Slot& slot = table.at(blocks[i]);
      const Set set = slot.set;
      if (set == NO_SET || !sets_.has(set, worker)) continue;
      if (set != before) before = set, after = sets_.changed(set, worker);
      if (after != NO_SET) {
        slot.set = after;
        sets_.take(after);
      } else {
        table.empty(slot);
        --held_;
      }
      sets_.give(set);
      ++removed;
    }
    return removed;
  }

  void remove_all(int64_t worker) { held_ -= sets_.remove(worker); }

 private:
  // Not by the bits that find the slot.
  static int64_t table(Block block) { return mixed(block) >> (64 - TABLE_BITS); }

  Table tables_[1 << TABLE_BITS];
  WorkerSets sets_;
  int64_t held_ = 0;
};

}  // namespace crossdock
