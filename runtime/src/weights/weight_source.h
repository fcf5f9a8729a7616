// Where the weights of a model are read from: the files of its bundle, or another checkpoint of the same form.

#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/sha256.h"
#include "bundle/bundle.h"
#include "sala/status.h"

namespace sala {

/// Tensors by the names of `Manifest::tensors`, every one of them checked against it but for its bytes. Safe to use
/// from several threads.
class WeightSource {
 public:
  /// The bundle's own. kWeightsMissing if it was built without.
  static Expected<std::unique_ptr<WeightSource>> of_bundle(const Bundle& bundle);
  /// Those of a checkpoint directory in Hugging Face layout. kWeightsUnsuitable, naming the field or the tensor, if its
  /// configuration, or the name, type or shape of a tensor, or the bytes of a fixed one, are not what the bundle was
  /// built for. Fixed tensors are read for that, with the threads and the progress of `options`.
  static Expected<std::unique_ptr<WeightSource>> of_checkpoint(const std::filesystem::path& directory,
                                                               const Manifest& manifest,
                                                               const LoadOptions& options = {});

  /// A tensor that `manifest.tensors` has; where it is and its shape are those of this source.
  const StoredTensor& tensor(std::string_view name) const;

  /// The file that such a tensor lies in, open since it was checked.
  std::shared_ptr<const File> file(const StoredTensor& tensor) const { return files_.at(tensor.file); }

  /// The folder of its files.
  const std::filesystem::path& folder() const { return folder_; }
  /// Whether the tensors are the bundle's own.
  bool is_of_bundle() const { return is_of_bundle_; }

  /// Reads a tensor from its beginning to its end and hashes it on the way.
  class Reader {
   public:
    const StoredTensor& tensor() const { return *tensor_; }
    /// The next `bytes` of it.
    Status read(void* to, int64_t bytes);
    /// After the last byte. kBundleDamaged or kWeightsUnsuitable, naming the tensor, if its hash is not what it must
    /// be.
    Status finish();

   private:
    friend class WeightSource;
    Reader(const WeightSource& source, std::string_view name, const StoredTensor& tensor, const File& file)
        : source_(&source), name_(name), tensor_(&tensor), file_(&file) {}

    const WeightSource* source_;
    std::string name_;
    const StoredTensor* tensor_;
    const File* file_;
    int64_t done_ = 0;
    Sha256 hash_;
  };
  /// From the beginning of a tensor that `manifest.tensors` has.
  Reader open(std::string_view name) const;

  /// The whole of a small tensor, such as scales; hashed too.
  Expected<std::string> read_all(std::string_view name) const;

  /// The fingerprint of the model with these weights. Reads those that nobody has read to their end yet, with the
  /// threads and the progress of `options`.
  Expected<std::string> fingerprint(const LoadOptions& options = {}) const;

 private:
  WeightSource(std::filesystem::path folder, const Manifest& manifest, bool is_of_bundle)
      : folder_(std::move(folder)), is_of_bundle_(is_of_bundle), config_sha256_(manifest.config_sha256) {}

  /// Reads tensors for their hashes alone, on several threads.
  Status hash(const std::vector<std::string>& names, const LoadOptions& options) const;
  /// Compares the hash of a tensor with what it must be, and remembers it.
  Status take_hash(const std::string& name, std::string digest) const;

  std::filesystem::path folder_;
  bool is_of_bundle_;
  std::string config_sha256_;
  StoredTensors tensors_;
  OpenedFiles files_;  // by StoredTensor::file
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::string> hashes_;  // of the tensors that were read to their end
};

}  // namespace sala
