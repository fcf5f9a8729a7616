// A loaded model. It is immutable, safe to share between threads, and makes sessions.

#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sala/batch.h"
#include "sala/engine.h"
#include "sala/session.h"
#include "sala/status.h"

namespace sala {

/// Facts about a model that its sessions need.
struct ModelConfig {
  std::string source;       // hub id or name of the checkpoint that the weights came from
  std::string fingerprint;  // hash that is equal for equal models
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;  // tokens that the model was made for, sessions may be longer
  std::vector<int32_t> eos_token_ids;
  std::vector<float> inv_freq;  // RoPE, [head_dim / 2]
  int64_t kernel_size = 0;      // tokens of a compressed key k1, k2 takes four times as many
  int64_t kernel_stride = 0;    // tokens between neighbouring k1
  int64_t dense_len = 0;        // contexts of fewer tokens are attended densely; -1: none is
};

/// Your own device memory. The functions are called with the engine's GPU current, from any thread that uses the model.
struct DeviceAllocator {
  std::function<void*(int64_t bytes)> allocate;  // at a multiple of 256, on the engine's GPU, null if there is no room
  std::function<void(void* data, int64_t bytes)> release;
};

struct TensorRtOptions {
  /// Path of libtensorrt_rtx or libnvinfer. If empty, it is looked for as `onnxruntime_library` is, and in the folder
  /// of the Python package.
  std::filesystem::path library;
  /// File where TensorRT for RTX keeps what it compiled for this GPU. If empty, it is beside the bundle, with
  /// `.runtime-cache` added to its name. It is written anew when something was added. It holds code, so let only people
  /// you trust write it.
  std::filesystem::path runtime_cache;
  /// True captures a decode step as a CUDA graph and replays it. False enqueues every step.
  bool decode_graph = true;
  /// A CUstream of the engine's GPU that all sessions use, one after the other. If null, each session has its own.
  void* stream = nullptr;
  /// Allocator for everything on the GPU, weights included. By default the driver's.
  std::optional<DeviceAllocator> allocator;
};

/// Arithmetic of onnxruntime on the CPU.
enum class CpuMath {
  kExact,  // products, caches and everything else in fp32
  kFast,   // products of 16-bit inputs, in int4 of 8-bit ones, and 16-bit caches as a GPU has them
};

/// The arithmetic of this name, `exact` or `fast`. kInvalidArgument for another.
Expected<CpuMath> cpu_math_of(std::string_view name);

struct LoadOptions {
  /// An open descriptor of the bundle's directory: loads exactly the one that you have looked at, whatever has taken
  /// its name since. The path is for messages. It stays yours to close. -1 opens the path.
  int bundle_descriptor = -1;
  /// SHA-256 in hexadecimal digits of the bundle.json that you have read: any other is refused (kBundleDamaged), so
  /// that what you took from that one and what is loaded are of one bundle. If empty, nothing is compared.
  std::string manifest_sha256;
  /// A name of docs/runtimes.md, or `auto`: the first that this machine can run. kInvalidArgument for another name.
  std::string runtime = "auto";
  /// Path of libonnxruntime. If empty, it is looked for beside this code, in ../lib from there, in a Python
  /// installation of the same prefix, and where the system looks.
  std::filesystem::path onnxruntime_library;
  /// Path of libsala_ort.so, the operators. If empty, it is looked for likewise, but not where the system looks.
  std::filesystem::path operators_library;
  TensorRtOptions tensorrt;
  /// A checkpoint directory whose weights take the place of the bundle's, for example a fine-tune of the same
  /// configuration, names, types and shapes. If empty, the bundle's own weights are loaded.
  std::filesystem::path weights;
  /// Called with the bytes of weights loaded so far and in all, in the thread that called. Return false to stop the
  /// load (kStopped). Other weights for constants of the engine (int4, nvfp4) are compared before, and reported
  /// likewise.
  std::function<bool(int64_t done, int64_t total)> on_progress;
  /// Arithmetic on the CPU. kFast with the runtime `tensorrt` is refused (kInvalidArgument). With `auto` it holds if
  /// the model runs on the CPU.
  CpuMath cpu_math = CpuMath::kExact;
  /// Threads that load weights and, on the CPU, compute, at most 1,024. 0 means as many as the machine has cores.
  int32_t threads = 0;
  /// Hash every file of the bundle but the weights first. Weights, graph and plan are always hashed when they are
  /// loaded.
  bool verify_hashes = false;
};

struct ModelData;

class Model {
 public:
  /// Opens a bundle directory and loads its engine and weights. `auto` takes TensorRT if its library
  /// and a GPU of the bundle are here, else ONNX Runtime. If an engine could run here but is broken, you get an error.
  static Expected<Model> load(const std::filesystem::path& bundle, const LoadOptions& options = {});

  /// Makes a model on your own engine. kInvalidArgument if the engine's tensors are not those of a SALA step.
  static Expected<Model> create(ModelConfig config, std::shared_ptr<const Engine> engine);

  const ModelConfig& config() const;
  const Engine& engine() const;
  /// The reason why `auto` did not take TensorRT. Empty if it did, or if you chose a runtime yourself.
  const std::string& runtime_reason() const;
  /// Bytes that the caches of all sessions take. What forks share counts once.
  int64_t cache_bytes() const;
  /// Tokens that a session can hold if you do not choose: what the model was made for, at most the engine's limit.
  int64_t default_max_context() const;

  /// Creates a session with its own position and caches. You may destroy the model before it.
  Expected<Session> create_session(const SessionOptions& options = {}) const;

  /// Bytes of the file that a session of so many tokens writes. If the last of them was drawn and has not run, it takes
  /// less. kInvalidArgument for more tokens than a session can hold.
  Expected<int64_t> state_bytes(int64_t tokens) const;

  /// Checks the options of `Session::generate` before there is anything to generate from. kInvalidArgument naming the
  /// first that is out of its range.
  Status check(const GenerateOptions& options) const;

  /// Creates a session from a file of `Session::save`. Its `max_context` may differ. Nothing is allocated for a file
  /// that is refused.
  Expected<Session> restore(const std::filesystem::path& state_file, const SessionOptions& options = {}) const;

  /// Begins answers of several sessions of this model that are drawn together, with the options of each. All have the
  /// same `max_context`. kInvalidArgument for more sessions than a step of the engine serves, where it serves one only,
  /// for a session of another model or one that is there twice; otherwise as `Session::generate`.
  Expected<BatchGeneration> generate_batch(std::span<Session* const> sessions,
                                           std::span<const GenerateOptions> options) const;

  /// Creates a session from files of `Session::save_rows`, which lie one behind the other from token 0 on, and one of
  /// `Session::save_checkpoint`, which begins where they end. It is as one that has prefilled these tokens, and keeps a
  /// checkpoint there. `on_part` is called with the index of a part before it is looked at, so that you know which one
  /// an error is about. The checkpoint is part `rows.size()`, looked at first for the lengths, and last for the rest.
  /// Returning false ends it (kStopped). Other errors are those of `restore`, and kStateDamaged for parts that do not
  /// follow each other.
  Expected<Session> restore_parts(std::span<const std::filesystem::path> rows, const std::filesystem::path& checkpoint,
                                  const SessionOptions& options,
                                  const std::function<bool(size_t part)>& on_part = {}) const;

 private:
  friend class Scheduler;
  static Expected<Model> create(ModelConfig config, std::shared_ptr<const Engine> engine, std::string runtime_reason);
  explicit Model(std::shared_ptr<const ModelData> data) : data_(std::move(data)) {}
  std::shared_ptr<const ModelData> data_;
};

}  // namespace sala
