// A step whose logits are whole numbers that depend on everything a session must keep right: every token, its position,
// its RoPE row, every cache row, the context length, and on every byte of every weight. Any mistake in the bookkeeping
// changes them. Layer 0 has a state, layer 1 caches of rows, as the two mixers of the model have.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace sala::test {

constexpr int64_t kVocabSize = 50;
constexpr int64_t kHeads = 2;
constexpr int64_t kWidth = 3;
constexpr int64_t kKernelSize = 4;
constexpr int64_t kKernelStride = 2;
constexpr int64_t kDenseLength = 40;  // contexts from here on are sparse
constexpr int64_t kModulus = 8191;    // products of two residues are exact in fp32 pairs of int64

/// The values of a cache are whole numbers, but those of a state file are anything.
inline int64_t mock_whole(float value) {
  return std::abs(value) < 0x1p40f ? static_cast<int64_t>(value) % kModulus : 0;
}

/// What `weights` become with the bytes of one more weight; 0 stands for none.
inline int64_t mock_weight(int64_t weights, const void* data, int64_t bytes) {
  uint64_t hash = static_cast<uint64_t>(weights) ^ 0xcbf29ce484222325;
  for (int64_t at = 0; at < bytes; at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, static_cast<const char*>(data) + at, static_cast<size_t>(bytes - at < 8 ? bytes - at : 8));
    hash = (hash ^ word) * 0x100000001b3;
    hash ^= hash >> 29;
  }
  return static_cast<int64_t>(hash % (kModulus - 1)) + 1;
}

/// A cache [kHeads, rows, kWidth].
struct MockRows {
  float* data;
  int64_t rows;

  float* row(int64_t head, int64_t index) const { return data + (head * rows + index) * kWidth; }
};

struct MockCaches {
  MockRows key, value, k1, k2;
};

/// Layer 0 on one token; `sine` of its RoPE row tells positions apart. state [kHeads].
inline void mock_state(float* state, int64_t id, float sine, int64_t context_length) {
  const int64_t mode = context_length >= kDenseLength ? 7 : 3;
  const int64_t angle = std::llround(1000 * sine);
  for (int64_t h = 0; h < kHeads; ++h) {
    state[h] = static_cast<float>((mock_whole(state[h]) * 31 + id * mode + angle + h + 2 * kModulus) % kModulus);
  }
}

inline void mock_append(const MockRows& cache, int64_t position, int64_t value) {
  for (int64_t h = 0; h < kHeads; ++h) {
    for (int64_t c = 0; c < kWidth; ++c) cache.row(h, position)[c] = static_cast<float>(value + h + c);
  }
}

inline void mock_compress(const MockRows& cache, const MockRows& key, int64_t end, int64_t size, int64_t stride) {
  if (end < size || (end - size) % stride != 0) return;
  for (int64_t h = 0; h < kHeads; ++h) {
    for (int64_t c = 0; c < kWidth; ++c) {
      float sum = 0;
      for (int64_t i = end - size; i < end; ++i) sum += key.row(h, i)[c];
      cache.row(h, (end - size) / stride)[c] = sum;
    }
  }
}

/// Layer 1 on one token.
inline void mock_caches(const MockCaches& caches, int64_t position, int64_t id) {
  mock_append(caches.key, position, id + 1);
  mock_append(caches.value, position, 2 * id + 1);
  mock_compress(caches.k1, caches.key, position + 1, kKernelSize, kKernelStride);
  mock_compress(caches.k2, caches.key, position + 1, 4 * kKernelSize, 4 * kKernelStride);
}

/// logits [kVocabSize] of a context of `tokens`; `weights` of `mock_weight`.
inline void mock_logits(const float* state, const MockCaches& caches, int64_t tokens, int64_t weights, float* logits) {
  int64_t hash = 1;
  const auto mix = [&hash](float value) { hash = (hash * 131 + mock_whole(value)) % kModulus; };
  const auto windows = [tokens](int64_t size, int64_t stride) {
    return tokens < size ? 0 : (tokens - size) / stride + 1;
  };
  for (int64_t h = 0; h < kHeads; ++h) mix(state[h]);
  const auto mix_rows = [&](const MockRows& cache, int64_t rows) {
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t i = 0; i < rows; ++i) mix(cache.row(h, i)[i % kWidth]);
    }
  };
  mix_rows(caches.key, tokens);
  mix_rows(caches.value, tokens);
  mix_rows(caches.k1, windows(kKernelSize, kKernelStride));
  mix_rows(caches.k2, windows(4 * kKernelSize, 4 * kKernelStride));
  for (int64_t v = 0; v < kVocabSize; ++v) {
    logits[v] = static_cast<float>((hash * (v + 1) + v * v + weights) % kModulus);
  }
}

}  // namespace sala::test
