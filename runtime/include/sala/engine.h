// The interface of engines, which run steps of the model: ONNX Runtime on the CPU, TensorRT on a GPU, a mock in tests.
//
// An engine is immutable and shared. It makes executions, one for every session, each with the session's caches bound
// for its whole life. The session owns the caches, in memory that the engine provides, and the execution updates them
// in place: past and present of a cache are one buffer. All shapes are known before a step runs.

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "sala/status.h"
#include "sala/tensor.h"

namespace sala {

class Memory;

/// Owns one allocation of a Memory, which must outlive it.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Memory& memory, void* data, int64_t bytes) : memory_(&memory), data_(data), bytes_(bytes) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer();

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  Memory* memory_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

/// The memory of an engine's caches. Several threads may use it.
class Memory {
 public:
  virtual ~Memory() = default;

  /// Allocates zeros. kOutOfMemory if there is no room.
  virtual Expected<Buffer> allocate(int64_t bytes) = 0;
  /// Sets a whole buffer of `allocate` to zero.
  virtual Status clear(Buffer& buffer) = 0;
  /// Copies to the host.
  virtual Status read(void* host, const void* from, int64_t bytes) = 0;
  /// Copies from the host.
  virtual Status write(void* to, const void* host, int64_t bytes) = 0;

 private:
  friend class Buffer;
  virtual void release(void* data, int64_t bytes) noexcept = 0;
};

/// Memory of the host. The system gives pages when they are first written, so an allocation costs what you use of it.
Memory& host_memory();

/// The two forms of a step. Engines are tuned for each.
enum class Profile { kPrefill, kDecode };

/// Limits of an engine's sessions.
struct EngineLimits {
  int64_t max_context = 0;           // largest number of tokens that caches can hold
  int64_t max_chunk_tokens = 0;      // tokens of one step of the prefill profile
  int64_t default_chunk_tokens = 0;  // tokens per prefill step if the caller does not choose
  int64_t least_capacity = 1;        // tokens that caches must have room for, however short the context
};

/// What one step reads besides weights and caches, in host memory that is valid during the call.
struct StepInputs {
  std::span<const int64_t> input_ids;   // [tokens]
  int32_t past_length = 0;              // tokens that the caches hold before this step
  int32_t context_length = 0;           // at least past_length + tokens; the step is sparse from dense_len on
  std::span<const float> rope_cos_sin;  // [tokens, head_dim], row by row

  /// The same as tensors of batch 1 under the names of step_names.h. They refer to this object and are for reading.
  std::array<Tensor, 4> tensors() const;
};

/// Runs steps on the caches of one session. One thread at a time may use it.
class Execution {
 public:
  virtual ~Execution() = default;

  /// Runs one step: reads `step`, updates the caches given at creation, and writes the last token's logits,
  /// [vocab_size] in host memory. After an error the contents of the caches are undefined.
  virtual Status run(Profile profile, const StepInputs& step, std::span<float> logits) = 0;
};

/// One cache of a session, under the names by which it enters and leaves a step.
struct CacheBinding {
  std::string_view past_name;
  std::string_view present_name;
  DType dtype;
  Shape shape;
  void* data;
};

class Engine {
 public:
  virtual ~Engine() = default;

  /// `onnxruntime`, `tensorrt`, ...
  virtual std::string_view name() const = 0;
  /// Type of activations and caches, as in bundle.json: `fp32`, `bf16` or `fp16`. States move between engines of the
  /// same precision.
  virtual std::string_view precision() const = 0;
  virtual std::span<const TensorSpec> inputs() const = 0;
  virtual std::span<const TensorSpec> outputs() const = 0;
  virtual EngineLimits limits() const = 0;
  /// Memory in which the caches must be allocated. It lives at least as long as the engine.
  virtual Memory& memory() const = 0;

  /// Bytes of `memory()` that a new session's caches may take. Nothing if that only shows when they are allocated.
  virtual Expected<std::optional<int64_t>> free_cache_bytes() const { return std::optional<int64_t>(); }

  /// Makes room for the steps of a session, before its caches are allocated. kOutOfMemory, saying by how much, if steps
  /// and caches do not fit. By default it does nothing, and only the allocations show whether there is room.
  virtual Status prepare(int64_t /*max_context*/, int64_t /*chunk_tokens*/) const { return success(); }

  /// Creates an execution for a session. The buffers of `caches` and the engine must outlive it.
  virtual Expected<std::unique_ptr<Execution>> create_execution(std::span<const CacheBinding> caches) const = 0;
};

}  // namespace sala
