#include "engines/tensorrt/runtime_cache.h"

#include <string_view>

#include "base/file.h"
#include "base/replaced_file.h"
#include "base/sha256.h"

namespace sala::tensorrt {

namespace {

constexpr int64_t kFileLimitBytes = int64_t{4} << 30;

std::string_view bytes_of(void* host_memory) {
  return {static_cast<const char*>(kHostMemoryData(host_memory)), kHostMemorySize(host_memory)};
}

/// Whether it wrote the file: not while another process does.
Expected<bool> write_whole(const std::filesystem::path& path, std::string_view bytes) {
  auto file = ReplacedFile::try_open(path, ErrorCode::kEngineFailed);
  if (!file) return file.error();
  if (!*file) return false;
  SALA_RETURN_IF_ERROR((*file)->write(bytes.data(), static_cast<int64_t>(bytes.size())));
  SALA_RETURN_IF_ERROR((*file)->commit());
  return true;
}

}  // namespace

Status RuntimeCache::attach(void* config) {
  const std::lock_guard lock(mutex_);
  if (!cache_) {
    cache_.reset(interface_.create_runtime_cache(config));
    if (!cache_) return error(ErrorCode::kEngineFailed, "TensorRT cannot make a runtime cache");
    std::error_code failed;
    if (std::filesystem::exists(file_, failed)) {
      const auto bytes = read_file(file_, kFileLimitBytes, ErrorCode::kEngineFailed);
      if (!bytes) return bytes.error();
      if (interface_.cache_deserialize(cache_.get(), bytes->data(), bytes->size())) {
        saved_digest_ = sha256(*bytes);
      }
    }
  }
  if (!interface_.set_runtime_cache(config, cache_.get())) {
    return error(ErrorCode::kEngineFailed, "TensorRT does not take its runtime cache ", file_.string(),
                 ": remove that file");
  }
  return success();
}

Status RuntimeCache::save() {
  const std::lock_guard lock(mutex_);
  if (!cache_) return success();
  const Object serialized(interface_.cache_serialize(cache_.get()));
  if (!serialized) return error(ErrorCode::kEngineFailed, "TensorRT cannot serialise its runtime cache");
  const std::string_view bytes = bytes_of(serialized.get());
  std::string digest = sha256(bytes);
  if (digest == saved_digest_) return success();
  const auto is_written = write_whole(file_, bytes);
  if (!is_written) return is_written.error();
  if (*is_written) saved_digest_ = std::move(digest);
  return success();
}

}  // namespace sala::tensorrt
