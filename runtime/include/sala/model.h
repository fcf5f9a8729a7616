// A loaded model: immutable, safe to share between threads, the maker of sessions.

#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sala/engine.h"
#include "sala/session.h"
#include "sala/status.h"

namespace sala {

/// What sessions need to know of a model.
struct ModelConfig {
  std::string source;       // where the weights came from
  std::string fingerprint;  // equal for equal models
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;  // tokens that the model was made for; sessions may be longer
  std::vector<int32_t> eos_token_ids;
  std::vector<float> inv_freq;  // RoPE, [head_dim / 2]
  int64_t kernel_size = 0;      // tokens of a compressed key k1; k2 takes four times as many
  int64_t kernel_stride = 0;    // tokens between neighbouring k1
  int64_t dense_len = 0;        // contexts of fewer tokens are attended densely; -1: none is
};

/// Device memory of the caller's. Called with the engine's GPU current, from any thread that uses the model.
struct DeviceAllocator {
  std::function<void*(int64_t bytes)> allocate;  // at a multiple of 256, on the engine's GPU; null if there is no room
  std::function<void(void* data, int64_t bytes)> release;
};

struct TensorRtOptions {
  /// libtensorrt_rtx or libnvinfer; empty: looked for as `onnxruntime_library` is, in the Python package's folder too.
  std::filesystem::path library;
  /// Where TensorRT for RTX keeps what it compiled for this GPU; empty: beside the bundle, with `.runtime-cache` added
  /// to its name. Written anew when something was added. It holds code: as trustworthy as whoever can write it.
  std::filesystem::path runtime_cache;
  /// Capture a decode step as a CUDA graph and replay it; false: enqueue every step.
  bool decode_graph = true;
  /// A CUstream of the engine's GPU that all sessions use, one after the other; null: each session has its own.
  void* stream = nullptr;
  /// For everything on the GPU, weights included; by default the driver's.
  std::optional<DeviceAllocator> allocator;
};

struct LoadOptions {
  /// A name of docs/runtimes.md, or `auto`: the first that this machine can run. kInvalidArgument for another name.
  std::string runtime = "auto";
  /// libonnxruntime; empty: looked for beside this code, in ../lib from there, in a Python installation of the same
  /// prefix, and where the system looks.
  std::filesystem::path onnxruntime_library;
  /// libsala_ort.so, the operators; empty: looked for likewise, but not where the system looks.
  std::filesystem::path operators_library;
  TensorRtOptions tensorrt;
  /// A checkpoint directory whose weights take the place of the bundle's: of the same configuration, names, types and
  /// shapes, a fine-tune for example. Empty: the bundle's own.
  std::filesystem::path weights;
  /// Told of the weights' bytes while they are loaded, from 0 to all, in the thread that called; false stops the load
  /// (kStopped). Other weights for constants of the engine (int4, nvfp4) are compared before, and told of likewise.
  std::function<bool(int64_t done, int64_t total)> on_progress;
  /// Threads that load weights and, on the CPU, compute; 0: as many as the machine has cores.
  int32_t threads = 0;
  /// Hash every file of the bundle but the weights first. Weights, graph and plan are hashed anyhow, when they are
  /// loaded.
  bool verify_hashes = false;
};

struct ModelData;

class Model {
 public:
  /// Opens a bundle directory and loads its engine and weights. `auto` takes TensorRT if a GPU of the bundle's and its
  /// library are here, else ONNX Runtime; what is wrong with an engine that could run here is an error.
  static Expected<Model> load(const std::filesystem::path& bundle, const LoadOptions& options = {});

  /// A model on an engine of the caller's. kInvalidArgument if the engine's tensors are not those of a SALA step.
  static Expected<Model> create(ModelConfig config, std::shared_ptr<const Engine> engine);

  const ModelConfig& config() const;
  const Engine& engine() const;
  /// Why `auto` did not take TensorRT; empty if it did, or was not asked.
  const std::string& runtime_reason() const;
  /// Tokens of a session that does not choose: what the model was made for, as far as the engine goes.
  int64_t default_max_context() const;

  /// A session of its own position and caches; the model may be destroyed before it.
  Expected<Session> create_session(const SessionOptions& options = {}) const;

  /// A session as `Session::save` left it; its `max_context` may differ. Nothing is allocated for a file that is
  /// refused.
  Expected<Session> restore(const std::filesystem::path& state_file, const SessionOptions& options = {}) const;

 private:
  static Expected<Model> create(ModelConfig config, std::shared_ptr<const Engine> engine, std::string runtime_reason);
  explicit Model(std::shared_ptr<const ModelData> data) : data_(std::move(data)) {}
  std::shared_ptr<const ModelData> data_;
};

}  // namespace sala
