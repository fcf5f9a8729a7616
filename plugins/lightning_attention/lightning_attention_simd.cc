#include "lightning_attention/lightning_attention_simd.h"

#include <math.h>

#include "cpu/matmul.h"
#include "cpu/simd.h"

// L tokens of an internal chunk, D head_dim; matrices are row-major.

namespace sala::ops::SALA_SIMD_LEVEL {
namespace {

using namespace cpu::SALA_SIMD_LEVEL;

constexpr int64_t kChunk = kLightningChunkTokens;
constexpr int64_t kPrefetchTokens = 8;
constexpr int64_t kLineFloats = 16;

/// The scratch of one head, in the order in which `lightning_scratch_floats` counts it.
struct HeadScratch {
  explicit HeadScratch(float* memory, int64_t dim)
      : q(memory),
        k(q + kChunk * dim),
        k_transposed(k + kChunk * dim),
        v(k_transposed + kChunk * dim),
        o(v + kChunk * dim),
        scores(o + kChunk * dim),
        decay_to_row(scores + kChunk * kChunk),
        decay_between(decay_to_row + kChunk) {}

  float* q;              // [L, D], normed, rotated and scaled
  float* k;              // [L, D], normed, rotated, decayed to the end of the chunk
  float* k_transposed;   // [D, kChunk], normed and rotated
  float* v;              // [L, D]
  float* o;              // [L, D]
  float* scores;         // [L, kChunk]
  float* decay_to_row;   // [kChunk]: e^{-s(i+1)}
  float* decay_between;  // [2 kChunk]: at kChunk - 1 - n, e^{-s n} for n >= 0 and 0 for n < 0
};

void fill_decays(HeadScratch& scratch, double slope) {
  for (int64_t n = 0; n < kChunk; ++n) {
    scratch.decay_to_row[n] = static_cast<float>(exp(-slope * static_cast<double>(n + 1)));
    scratch.decay_between[kChunk - 1 - n] = static_cast<float>(exp(-slope * static_cast<double>(n)));
    scratch.decay_between[kChunk + n] = 0.0f;
  }
}

float mean_square(const float* x, int64_t count) {
  Vec total{};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec value = load(x + i);
    total += value * value;
  }
  return sum(total) / static_cast<float>(count);
}

/// RMSNorm of one head's row, then RoPE, times `factor`.
void norm_and_rotate(const float* x, const float* weight, const float* cos_sin, float eps, float factor, int64_t dim,
                     float* out) {
  const int64_t half = dim / 2;
  const float norm = 1.0f / sqrtf(mean_square(x, dim) + eps);
  for (int64_t i = 0; i < half; i += kLanes) {
    const Vec first = load(x + i) * norm * load(weight + i);
    const Vec second = load(x + half + i) * norm * load(weight + half + i);
    const Vec cos = load(cos_sin + i) * factor;
    const Vec sin = load(cos_sin + half + i) * factor;
    store(out + i, first * cos - second * sin);
    store(out + half + i, second * cos + first * sin);
  }
}

/// Where one head's rows of one batch entry are in the packed tensors.
struct HeadView {
  HeadView(const LightningAttentionSizes& sizes, const LightningAttentionTensors& tensors, int64_t batch, int64_t head)
      : dim(sizes.head_dim),
        width(sizes.num_heads * sizes.head_dim),
        qkvz(tensors.qkvz + batch * sizes.T * 4 * width + head * dim),
        cos_sin(tensors.rope_cos_sin + batch * sizes.T * dim),
        y(tensors.y + batch * sizes.T * width + head * dim),
        state(tensors.state_out + (batch * sizes.num_heads + head) * dim * dim) {}

  const float* q(int64_t token) const { return qkvz + token * 4 * width; }
  const float* k(int64_t token) const { return q(token) + width; }
  const float* v(int64_t token) const { return q(token) + 2 * width; }

  int64_t dim;
  int64_t width;
  const float* qkvz;
  const float* cos_sin;
  float* y;
  float* state;
};

/// Rows of a head lie 4 H D floats apart, too far for the hardware to foresee.
void prefetch_token(const HeadView& view, int64_t token) {
  for (int64_t d = 0; d < view.dim; d += kLineFloats) {
    __builtin_prefetch(view.q(token) + d);
    __builtin_prefetch(view.k(token) + d);
    __builtin_prefetch(view.v(token) + d);
  }
}

void pack_chunk(const LightningAttentionSizes& sizes, const LightningAttentionTensors& tensors, const HeadView& view,
                int64_t first, int64_t length, HeadScratch& scratch) {
  const int64_t dim = view.dim;
  for (int64_t i = 0; i < length; ++i) {
    const int64_t token = first + i;
    const float* cos_sin = view.cos_sin + token * dim;
    if (i + kPrefetchTokens < length) prefetch_token(view, token + kPrefetchTokens);
    norm_and_rotate(view.q(token), tensors.q_norm, cos_sin, sizes.eps, sizes.scale, dim, scratch.q + i * dim);
    norm_and_rotate(view.k(token), tensors.k_norm, cos_sin, sizes.eps, 1.0f, dim, scratch.k + i * dim);
    __builtin_memcpy(scratch.v + i * dim, view.v(token), static_cast<size_t>(dim) * sizeof(float));
  }
  transpose(scratch.k, dim, length, dim, scratch.k_transposed, kChunk);
  for (int64_t i = 0; i < length; ++i) {
    const float decay = scratch.decay_between[kChunk - length + i];
    for (int64_t d = 0; d < dim; d += kLanes) store(scratch.k + i * dim + d, load(scratch.k + i * dim + d) * decay);
  }
}

/// scores = (Q K^T) * [i >= j] e^{-s(i-j)}, in tiles of rows; columns beyond a tile's last row are left undefined.
void score_chunk(int64_t length, int64_t dim, HeadScratch& scratch) {
  for (int64_t i = 0; i < length; i += kTileRows) {
    const int64_t rows = length - i < kTileRows ? length - i : kTileRows;
    const int64_t columns = (i + rows + kLanes - 1) / kLanes * kLanes;
    float* scores = scratch.scores + i * kChunk;
    matmul({scratch.q + i * dim, dim, 1}, {scratch.k_transposed, kChunk}, scores, kChunk, rows, columns, dim);
    for (int64_t row = 0; row < rows; ++row) {
      const float* decay = scratch.decay_between + kChunk - 1 - i - row;
      for (int64_t j = 0; j < columns; j += kLanes) {
        store(scores + row * kChunk + j, load(scores + row * kChunk + j) * load(decay + j));
      }
    }
  }
}

void run_chunk(const HeadView& view, int64_t first, int64_t length, HeadScratch& scratch) {
  const int64_t dim = view.dim;
  score_chunk(length, dim, scratch);
  matmul({scratch.q, dim, 1}, {view.state, dim}, scratch.o, dim, length, dim, dim);
  for (int64_t i = 0; i < length; i += kTileRows) {
    const int64_t rows = length - i < kTileRows ? length - i : kTileRows;
    matmul({scratch.scores + i * kChunk, kChunk, 1}, {scratch.v, dim}, scratch.o + i * dim, dim, rows, dim, i + rows,
           {scratch.decay_to_row + i, 1});
  }
  for (int64_t i = 0; i < length; ++i) {
    __builtin_memcpy(view.y + (first + i) * view.width, scratch.o + i * dim, static_cast<size_t>(dim) * sizeof(float));
  }
  matmul({scratch.k, 1, dim}, {scratch.v, dim}, view.state, dim, dim, dim, length,
         {scratch.decay_to_row + length - 1, 0});
}

/// One token without matrices: reads and writes the state once.
void run_token(const HeadView& view, int64_t token, HeadScratch& scratch) {
  const int64_t dim = view.dim;
  const float* v = view.v(token);
  const float decay = scratch.decay_to_row[0];
  for (int64_t d = 0; d < dim; d += kLanes) store(scratch.o + d, Vec{});
  for (int64_t row = 0; row < dim; ++row) {
    float* state = view.state + row * dim;
    const float k = scratch.k[row];
    const float q = scratch.q[row];
    for (int64_t d = 0; d < dim; d += kLanes) {
      const Vec updated = load(state + d) * decay + k * load(v + d);
      store(state + d, updated);
      store(scratch.o + d, load(scratch.o + d) + q * updated);
    }
  }
  __builtin_memcpy(view.y + token * view.width, scratch.o, static_cast<size_t>(dim) * sizeof(float));
}

void run_head(const LightningAttentionSizes& sizes, const LightningAttentionTensors& tensors, const float* state,
              int64_t batch, int64_t head, int64_t first, int64_t last, float* memory) {
  const HeadView view(sizes, tensors, batch, head);
  HeadScratch scratch(memory, view.dim);
  const float* before = state + (view.state - tensors.state_out);
  if (before != view.state) {
    __builtin_memcpy(view.state, before, static_cast<size_t>(view.dim * view.dim) * sizeof(float));
  }
  fill_decays(scratch, ::exp2(-8.0 * static_cast<double>(head + 1) / static_cast<double>(sizes.num_heads)));
  for (int64_t start = first; start < last; start += kChunk) {
    const int64_t length = last - start < kChunk ? last - start : kChunk;
    pack_chunk(sizes, tensors, view, start, length, scratch);
    if (length == 1) {
      run_token(view, start, scratch);
    } else {
      run_chunk(view, start, length, scratch);
    }
  }
}

void finish_token(const LightningAttentionSizes& sizes, const LightningAttentionTensors& tensors, int64_t batch,
                  int64_t token) {
  const int64_t width = sizes.num_heads * sizes.head_dim;
  const int64_t row = batch * sizes.T + token;
  const float* z = tensors.qkvz + row * 4 * width + 3 * width;
  float* y = tensors.y + row * width;
  const float norm = 1.0f / sqrtf(mean_square(y, width) + sizes.eps);
  for (int64_t i = 0; i < width; i += kLanes) {
    store(y + i, load(y + i) * norm * load(tensors.o_norm + i) * sigmoid(load(z + i)));
  }
}

}  // namespace

extern const LightningKernels kLightningKernels{run_head, finish_token};

}  // namespace sala::ops::SALA_SIMD_LEVEL
