#include "engines/tensorrt/runtime_cache.h"

#include <unistd.h>

#include <string_view>

#include "base/file.h"
#include "base/sha256.h"

namespace sala::tensorrt {

namespace {

constexpr int64_t kFileLimitBytes = int64_t{4} << 30;

std::string_view bytes_of(void* host_memory) {
  return {static_cast<const char*>(kHostMemoryData(host_memory)), kHostMemorySize(host_memory)};
}

Status write_whole(const std::filesystem::path& path, std::string_view bytes) {
  const std::filesystem::path part = path.string() + "." + std::to_string(getpid()) + ".part";
  std::error_code failed;
  std::filesystem::remove(part, failed);  // of a process of the same number that was killed
  const Status written = [&]() -> Status {
    auto file = File::create(part, ErrorCode::kEngineFailed);
    if (!file) return file.error();
    SALA_RETURN_IF_ERROR(file->write(bytes.data(), static_cast<int64_t>(bytes.size())));
    return file->flush();
  }();
  if (written) std::filesystem::rename(part, path, failed);
  if (!written || failed) {
    std::error_code ignored;  // the first failure is the one to tell
    std::filesystem::remove(part, ignored);
  }
  if (!written) return written;
  if (failed) return error(ErrorCode::kEngineFailed, path.string(), " cannot be written: ", failed.message());
  return success();
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
  SALA_RETURN_IF_ERROR(write_whole(file_, bytes));
  saved_digest_ = std::move(digest);
  return success();
}

}  // namespace sala::tensorrt
