#include "weights/weight_source.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "bundle/checkpoint.h"
#include "weights/parallel_load.h"

namespace sala {

namespace {

constexpr int64_t kBlockBytes = int64_t{1} << 20;

}  // namespace

Expected<std::unique_ptr<WeightSource>> WeightSource::of_bundle(const Bundle& bundle) {
  if (!bundle.manifest.weights_included) {
    return error(ErrorCode::kWeightsMissing, bundle.path.string(),
                 " was built with --no-weights: give the checkpoint's directory as weights (--weights DIR)");
  }
  std::unique_ptr<WeightSource> source(new WeightSource(bundle.path, bundle.manifest, /*is_of_bundle=*/true));
  source->tensors_ = bundle.manifest.tensors;
  source->files_ = bundle.files;
  return source;
}

Expected<std::unique_ptr<WeightSource>> WeightSource::of_checkpoint(const std::filesystem::path& directory,
                                                                    const Manifest& manifest,
                                                                    const LoadOptions& options) {
  std::unique_ptr<WeightSource> source(new WeightSource(directory, manifest, /*is_of_bundle=*/false));
  auto contents = open_checkpoint(directory, manifest);
  if (!contents) return contents.error();
  source->tensors_ = std::move(contents->tensors);
  source->files_ = std::move(contents->files);
  std::vector<std::string> fixed;
  for (const auto& [name, tensor] : source->tensors_) {
    if (tensor.fixed) fixed.push_back(name);
  }
  SALA_RETURN_IF_ERROR(source->hash(fixed, options));
  return source;
}

const StoredTensor& WeightSource::tensor(std::string_view name) const { return tensors_.find(name)->second; }

WeightSource::Reader WeightSource::open(std::string_view name) const {
  const StoredTensor& stored = tensor(name);
  return Reader(*this, name, stored, *files_.at(stored.file));
}

Status WeightSource::Reader::read(void* to, int64_t bytes) {
  if (const auto read = file_->read(tensor_->offset + done_, to, bytes); !read) {
    return error(read.error().code, "tensor ", name_, ": ", read.error().message);
  }
  hash_.update({static_cast<const char*>(to), static_cast<size_t>(bytes)});
  done_ += bytes;
  return success();
}

Status WeightSource::Reader::finish() { return source_->take_hash(name_, hash_.finish()); }

Expected<std::string> WeightSource::read_all(std::string_view name) const {
  Reader reader = open(name);
  std::string bytes(static_cast<size_t>(reader.tensor().bytes), '\0');
  SALA_RETURN_IF_ERROR(reader.read(bytes.data(), reader.tensor().bytes));
  SALA_RETURN_IF_ERROR(reader.finish());
  return bytes;
}

Status WeightSource::hash(const std::vector<std::string>& names, const LoadOptions& options) const {
  if (names.empty()) return success();
  int64_t total = 0;
  for (const std::string& name : names) total += tensor(name).bytes;
  const ParallelLoadOptions parallel{names.size(), total, options.threads, options.on_progress};
  return load_in_parallel(parallel, [&](ParallelLoad& load) -> Status {
    std::vector<char> block(static_cast<size_t>(kBlockBytes));
    while (const auto item = load.next()) {
      Reader reader = open(names[*item]);
      for (int64_t left = reader.tensor().bytes; left > 0;) {
        const int64_t bytes = std::min(left, kBlockBytes);
        SALA_RETURN_IF_ERROR(reader.read(block.data(), bytes));
        SALA_RETURN_IF_ERROR(load.advance(bytes));
        left -= bytes;
      }
      SALA_RETURN_IF_ERROR(reader.finish());
    }
    return success();
  });
}

Status WeightSource::take_hash(const std::string& name, std::string digest) const {
  const StoredTensor& stored = tensor(name);
  const std::string path = (folder_ / stored.file).string();
  if (is_of_bundle_ && digest != stored.sha256) {
    return error(ErrorCode::kBundleDamaged, "tensor ", name, " in ", path, " has another SHA-256 than ", kManifestFile,
                 " says: it was changed or damaged, copy the bundle again");
  }
  if (stored.fixed && digest != stored.sha256) {
    return error(ErrorCode::kWeightsUnsuitable, "tensor ", name, " in ", path,
                 " has other values than this bundle's engine, which holds them as constants: build a bundle of these "
                 "weights");
  }
  const std::lock_guard lock(mutex_);
  const auto [known, is_first] = hashes_.try_emplace(name, digest);
  if (!is_first && known->second != digest) {
    return error(ErrorCode::kWeightsUnsuitable, "tensor ", name, " in ", path,
                 " changed while it was loaded: load it again when nothing writes to it");
  }
  return success();
}

Expected<std::string> WeightSource::fingerprint(const LoadOptions& options) const {
  std::vector<std::string> unread;
  for (const auto& [name, tensor] : tensors_) {
    if (!hashes_.contains(name)) unread.push_back(name);
  }
  SALA_RETURN_IF_ERROR(hash(unread, options));
  Sha256 digest;
  digest.update("config " + config_sha256_ + "\n");
  for (const auto& [name, hash] : hashes_) digest.update(name + " " + hash + "\n");
  return digest.finish();
}

}  // namespace sala
