// Where the weights of a model are read from: the files of its bundle, or another checkpoint of the same form.

#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "file.h"
#include "manifest.h"
#include "sha256.h"
#include "sala/status.h"

namespace sala {

/// Tensors by the names of `Manifest::tensors`, every one of them checked against it but for its bytes. Safe to use from
/// several threads.
class WeightSource {
 public:
  /// The bundle's own. kWeightsMissing if it was built without.
  static Expected<std::unique_ptr<WeightSource>> of_bundle(const std::filesystem::path& bundle,
                                                           const Manifest& manifest);
  /// Those of a checkpoint directory in Hugging Face layout. kWeightsUnsuitable, naming the field or the tensor, if its
  /// configuration, or the name, type or shape of a tensor, is not what the bundle was built for.
  static Expected<std::unique_ptr<WeightSource>> of_checkpoint(const std::filesystem::path& directory,
                                                               const Manifest& manifest);

  /// A tensor that `manifest.tensors` has; `file` and `sha256` are those of this source, and the hash of a tensor that
  /// was not read yet may be empty.
  const StoredTensor& tensor(std::string_view name) const;

  /// Reads a tensor from its beginning to its end and hashes it on the way.
  class Reader {
   public:
    const StoredTensor& tensor() const { return *tensor_; }
    /// The next `bytes` of it.
    Status read(void* to, int64_t bytes);
    /// After the last byte. kBundleDamaged or kWeightsUnsuitable, naming the tensor, if its hash is not what it must be.
    Status finish();

   private:
    friend class WeightSource;
    const WeightSource* source_ = nullptr;
    std::string name_;
    const StoredTensor* tensor_ = nullptr;
    const File* file_ = nullptr;
    int64_t done_ = 0;
    Sha256 hash_;
  };
  Expected<Reader> open(std::string_view name) const;

  /// The whole of a small tensor, such as scales; hashed too.
  Expected<std::string> read_all(std::string_view name) const;

  /// The fingerprint of the model with these weights. Every tensor must have been read to its end.
  std::string fingerprint() const;

 private:
  // Yours to define.
};

}  // namespace sala
