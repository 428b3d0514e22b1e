// Chained hashes of a prompt's blocks: each is seeded by the one before. A loop around another
// library's hash function, so that Python makes one call for a prompt instead of one for each block.
#include <cstddef>
#include <cstdint>

using Hash = uint64_t (*)(const void* input, size_t bytes, uint64_t seed);

extern "C" void crossdock_hash_chain(Hash hash, const char* blocks, int64_t block_bytes,
                                     int64_t count, uint64_t seed, uint64_t* hashes) {
    for (int64_t i = 0; i < count; ++i)
        hashes[i] = seed = hash(blocks + i * block_bytes, block_bytes, seed);
}
