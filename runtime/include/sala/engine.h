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

/// A part of a buffer.
struct ByteRange {
  int64_t offset = 0;  // from the buffer's beginning
  int64_t bytes = 0;
};

/// The memory of an engine's caches. Several threads may use it, each on buffers of its own.
///
/// A session claims what a step will write before the step runs. Memory that grows page by page backs it then, and
/// copies what other buffers share. Memory that does not grow is complete from `allocate` on.
class Memory {
 public:
  virtual ~Memory() = default;

  /// Allocates zeros, or only their addresses if the memory grows. kOutOfMemory if there is no room.
  virtual Expected<Buffer> allocate(int64_t bytes) = 0;
  /// Makes a part of a buffer its own to read and write. What it never had is zeros. After kOutOfMemory every byte
  /// reads as before, and you can go on. After another error the buffer is lost.
  virtual Status claim(Buffer& buffer, ByteRange part);
  /// Bytes that a claim of the part would take. By default none.
  virtual int64_t unclaimed_bytes(const Buffer& /*buffer*/, ByteRange /*part*/) const { return 0; }
  /// Takes back what lies in the part, where whole pages do. Nobody may read it before the next claim, and then it may
  /// hold anything.
  virtual Status drop(Buffer& buffer, ByteRange part);
  /// Gives `to`, a buffer of the same size of which nothing is claimed, the contents of `from`, so that a claim of one
  /// changes nothing in the other. Memory that shares pages takes all of them, other memory copies the `parts`.
  virtual Status share(Buffer& to, const Buffer& from, std::span<const ByteRange> parts);
  /// Makes a whole buffer as `allocate` gave it.
  virtual Status clear(Buffer& buffer) = 0;
  /// Copies to the host, from what is claimed.
  virtual Status read(void* host, const void* from, int64_t bytes) = 0;
  /// Copies from the host, to what is claimed.
  virtual Status write(void* to, const void* host, int64_t bytes) = 0;
  /// Copies between parts that are claimed, or shown, and do not overlap.
  virtual Status copy(void* to, const void* from, int64_t bytes);

  /// Shows a buffer a second time, from `offset` on in `at`, a buffer of which nothing is claimed or shown there, until
  /// `hide`. Both places are the same memory: what is claimed, written or dropped in `buffer` is so in `at`. `offset`
  /// is a multiple of page_bytes. `at` must outlive what it shows. After kOutOfMemory the buffer is not shown.
  /// kInvalidArgument where memory does not grow by pages, for a buffer that is shown already, and where there is no
  /// room for all of it.
  virtual Status show(Buffer& buffer, Buffer& at, int64_t offset);
  /// Ends `show`, as the end of the buffer does. Nothing happens to one that is not shown.
  virtual Status hide(Buffer& buffer);

  /// Whether the CPU can read and write it.
  virtual bool is_on_host() const { return false; }
  /// Bytes in which it grows. 1 if it does not.
  virtual int64_t page_bytes() const { return 1; }
  /// Bytes that can still be claimed. Nothing if only a claim tells.
  virtual Expected<std::optional<int64_t>> free_bytes() const { return std::optional<int64_t>(); }
  /// Bytes that all buffers take, shared ones once.
  virtual int64_t used_bytes() const = 0;

 private:
  friend class Buffer;
  virtual void release(void* data, int64_t bytes) noexcept = 0;
};

/// Memory of the host in one piece. The system gives pages when they are first written, so an allocation costs what you
/// use of it.
Memory& host_memory();

/// Memory of the host that grows by pages and shares them between buffers. It belongs to this process: a child that
/// `fork` made may not use it (kEngineFailed).
std::unique_ptr<Memory> paged_host_memory();

/// Memory of the GPU of this ordinal, which grows and shares likewise if the GPU and its driver can map pages, as all
/// but some virtual ones can. kDeviceMissing if there is no such GPU.
Expected<std::unique_ptr<Memory>> cuda_memory(int ordinal);

/// The two forms of a step. Engines are tuned for each.
enum class Profile { kPrefill, kDecode };

/// Limits of an engine's sessions.
struct EngineLimits {
  int64_t max_context = 0;           // largest number of tokens that caches can hold
  int64_t max_chunk_tokens = 0;      // tokens of one step of the prefill profile
  int64_t default_chunk_tokens = 0;  // tokens per prefill step if the caller does not choose
  int64_t least_capacity = 1;        // tokens that caches must have room for, however short the context
  int64_t max_batch = 1;             // sequences of one step of the decode profile
  int64_t max_logit_rows = 1;        // tokens whose logits one step of the prefill profile gives
  std::string_view larger_batch{};   // what a user does for a larger max_batch, for messages; empty if nothing helps
  SymbolSizes largest_caches{};      // by the symbol of a growing dimension; one that is absent has no limit
};

/// What the caches hold when an execution is made on them.
enum class CacheContents {
  kEmpty,  // those of one session, with the rows of one token claimed, which the session clears afterwards
  kInUse,  // those of a batch, where sessions stand side by side
};

/// What one step reads besides weights and caches, in host memory that is valid during the call. A batch is of one
/// sequence, or of several with one token each.
struct StepInputs {
  std::span<const int64_t> input_ids;       // [batch, tokens]
  std::span<const int32_t> past_length;     // [batch], tokens that the caches hold before this step
  std::span<const int32_t> context_length;  // [batch], at least past_length + tokens; sparse from dense_len on
  std::span<const float> rope_cos_sin;      // [batch, tokens, head_dim]
  /// [rows], tokens whose logits are wanted: b * tokens + t is token t of sequence b. At least one, at most
  /// max_logit_rows, and the last of each sequence in a step of the decode profile.
  std::span<const int32_t> logit_rows;

  int64_t batch() const { return static_cast<int64_t>(past_length.size()); }
  int64_t tokens() const { return static_cast<int64_t>(input_ids.size()) / batch(); }
  /// The same as tensors under the names of step_names.h. They refer to this object and are for reading.
  std::array<Tensor, 5> tensors() const;
};

/// Runs steps on the caches of one session, or of a batch. One thread at a time may use it.
class Execution {
 public:
  virtual ~Execution() = default;

  /// Makes room for steps that give the logits of so many tokens. kOutOfMemory if there is none, and then nothing has
  /// changed. By default it does nothing.
  virtual Status reserve_rows(int64_t /*rows*/) { return success(); }

  /// Runs one step: reads `step`, updates the caches given at creation, and writes the logits of `step.logit_rows`,
  /// [rows, vocab_size] in host memory. After an error the contents of the caches are undefined.
  virtual Status run(Profile profile, const StepInputs& step, std::span<float> logits) = 0;
};

/// One cache of a session or batch, [batch, ...], under the names by which it enters and leaves a step.
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

  /// Makes room for steps of so many tokens. kOutOfMemory, saying by how much, if they do not fit. By default it does
  /// nothing, and only `create_execution` shows whether there is room.
  virtual Status prepare(int64_t /*chunk_tokens*/) const { return success(); }

  /// Creates an execution for a session or a batch. The buffers of `caches` and the engine must outlive it. On empty
  /// caches it may run a step of one token to warm up. On those in use nothing may be written before the first step,
  /// and every step is of the decode profile.
  virtual Expected<std::unique_ptr<Execution>> create_execution(std::span<const CacheBinding> caches,
                                                                CacheContents contents) const = 0;
};

}  // namespace sala
