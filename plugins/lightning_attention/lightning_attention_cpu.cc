#include "lightning_attention/lightning_attention_cpu.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "lightning_attention/lightning_attention_simd.h"

namespace sala::ops {
namespace {

// Tokens of a pass over all heads: few enough for o to be still in the cache when norm and gate follow.
constexpr int64_t kPassTokens = 4 * kLightningChunkTokens;
// Norm and gate of one token alone are too little work for a thread to fetch.
constexpr int64_t kFinishTokens = 8;

const LightningKernels& kernels_of(cpu::SimdLevel level) {
#define SALA_COMPILED(constant, name) {cpu::SimdLevel::constant, &name::kLightningKernels},
  return cpu::highest<LightningKernels>({SALA_FOR_EACH_SIMD_LEVEL(SALA_COMPILED)}, level);
#undef SALA_COMPILED
}

/// All passes of a call as one list of tasks without a barrier: threads never stand idle between two passes. A task may
/// wait for earlier ones only; tasks are taken in order, so that those are done or being done.
class Schedule {
 public:
  Schedule(const LightningAttentionSizes& sizes, const LightningAttentionTensors& tensors,
           const LightningKernels& kernels)
      : sizes_(sizes),
        tensors_(tensors),
        kernels_(kernels),
        passes_((sizes.T + kPassTokens - 1) / kPassTokens),
        heads_(sizes.B * sizes.num_heads),
        finishes_(std::min(sizes.T, kPassTokens) / kFinishTokens + 1),
        passes_of_head_(static_cast<size_t>(heads_)),
        heads_of_pass_(static_cast<size_t>(passes_)) {}

  /// Tasks p * tasks_of_pass() + i: the heads of pass p, then norm and gate of the pass before.
  int64_t tasks() const { return (passes_ + 1) * tasks_of_pass(); }

  void run(int64_t task, float* scratch) {
    const int64_t pass = task / tasks_of_pass();
    const int64_t i = task % tasks_of_pass();
    if (i < heads_) {
      if (pass < passes_) run_head(pass, i, scratch);
    } else if (pass > 0) {
      finish(pass - 1, (i - heads_) / finishes_, (i - heads_) % finishes_);
    }
  }

 private:
  using Counter = std::atomic<int64_t>;

  static void wait_for(const Counter& counter, int64_t value) {
    while (counter.load(std::memory_order_acquire) < value) std::this_thread::yield();
  }

  int64_t tasks_of_pass() const { return heads_ + sizes_.B * finishes_; }

  void run_head(int64_t pass, int64_t head, float* scratch) {
    Counter& passes_done = passes_of_head_[static_cast<size_t>(head)];
    wait_for(passes_done, pass);
    const float* state = pass == 0 ? tensors_.state : tensors_.state_out;
    kernels_.run_head(sizes_, tensors_, state, head / sizes_.num_heads, head % sizes_.num_heads, pass * kPassTokens,
                      std::min((pass + 1) * kPassTokens, sizes_.T), scratch);
    passes_done.store(pass + 1, std::memory_order_release);
    heads_of_pass_[static_cast<size_t>(pass)].fetch_add(1, std::memory_order_acq_rel);
  }

  void finish(int64_t pass, int64_t batch, int64_t part) {
    wait_for(heads_of_pass_[static_cast<size_t>(pass)], heads_);
    const int64_t first = pass * kPassTokens + part * kFinishTokens;
    const int64_t last = std::min({first + kFinishTokens, (pass + 1) * kPassTokens, sizes_.T});
    for (int64_t token = first; token < last; ++token) kernels_.finish_token(sizes_, tensors_, batch, token);
  }

  const LightningAttentionSizes& sizes_;
  const LightningAttentionTensors& tensors_;
  const LightningKernels& kernels_;
  int64_t passes_;
  int64_t heads_;     // of all batch entries
  int64_t finishes_;  // tasks of norm and gate per pass and batch entry
  std::vector<Counter> passes_of_head_;
  std::vector<Counter> heads_of_pass_;
};

}  // namespace

int64_t lightning_scratch_floats(const LightningAttentionSizes& sizes) {
  return kLightningChunkTokens * (5 * sizes.head_dim + kLightningChunkTokens + 3);
}

Status lightning_attention_cpu(const LightningAttentionSizes& sizes, const LightningAttentionTensors& tensors,
                               const cpu::ParallelFor& parallel, cpu::SimdLevel level) {
  if (sizes.head_dim % 32 != 0) {
    return error("LightningAttention: head_dim = ", sizes.head_dim, "; the CPU kernels need a multiple of 32");
  }
  Schedule schedule(sizes, tensors, kernels_of(level));
  return cpu::parallel_for_with_scratch(parallel, schedule.tasks(), lightning_scratch_floats(sizes),
                                        [&](int64_t task, float* scratch) { schedule.run(task, scratch); });
}

}  // namespace sala::ops
