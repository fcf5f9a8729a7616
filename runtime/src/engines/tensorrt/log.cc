#include "engines/tensorrt/log.h"

#include <cstdint>
#include <mutex>
#include <vector>

#include "engines/tensorrt/interface.h"

namespace sala::tensorrt {

namespace {

constexpr int32_t kErrorSeverity = 1;  // and 0, internal error; larger is less
constexpr size_t kMostErrors = 4;

}  // namespace

struct Log::Errors {
  std::mutex mutex;
  std::vector<std::string> lines;

  void add(int32_t severity, const char* message) {
    // Every CUDA error is followed by one about where it was caught.
    if (severity > kErrorSeverity || std::string_view(message).find("catchCudaError") != std::string_view::npos) return;
    const std::lock_guard lock(mutex);
    if (lines.size() < kMostErrors) lines.emplace_back(message);
  }
};

/// ILogger of TensorRT 10.
class Log::Plain {
 public:
  explicit Plain(Errors& errors) : errors_(errors) {}
  virtual void log(int32_t severity, const char* message) noexcept { errors_.add(severity, message); }
  virtual ~Plain() = default;

 private:
  Errors& errors_;
};

/// ILogger of TensorRT 11 and of TensorRT for RTX: an IVersionedInterface.
class Log::Versioned {
 public:
  struct Version {
    const char* kind;
    int32_t major;
    int32_t minor;
  };

  explicit Versioned(Errors& errors) : errors_(errors) {}
  virtual int32_t language() const noexcept { return 0; }  // C++
  virtual Version version() const noexcept { return {"ILogger", 1, 0}; }
  virtual ~Versioned() = default;
  virtual void log(int32_t severity, const char* message) noexcept { errors_.add(severity, message); }

 private:
  Errors& errors_;
};

Log::Log(bool versioned) : errors_(std::make_unique<Errors>()) {
  if (versioned) {
    versioned_ = std::make_unique<Versioned>(*errors_);
  } else {
    plain_ = std::make_unique<Plain>(*errors_);
  }
}

Log::~Log() = default;

void* Log::logger() const {
  if (versioned_) return versioned_.get();
  return plain_.get();
}

std::string Log::take_errors() {
  const std::lock_guard lock(errors_->mutex);
  std::string text;
  for (const std::string& line : errors_->lines) text += (text.empty() ? "" : "; ") + line;
  errors_->lines.clear();
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  return text.empty() ? "TensorRT gave no reason" : text;
}

}  // namespace sala::tensorrt
