// The only exported symbols of libsala_plugins.so: how TensorRT finds the plugins, and tools the kernels.

#include <deque>
#include <vector>

#include "common/kernel_index.h"
#include "trt/creator.h"
#include "trt/log.h"

namespace {

/// One creator for each operator of the generated tables; lives as long as the library.
class Registry {
 public:
  Registry() {
    for (const sala::OperatorTable* table : sala::kOperators) {
      pointers_.push_back(&creators_.emplace_back(*table));
    }
  }

  const std::vector<nvinfer1::IPluginCreatorInterface*>& creators() const { return pointers_; }

 private:
  std::deque<sala::trt::Creator> creators_;  // addresses stay
  std::vector<nvinfer1::IPluginCreatorInterface*> pointers_;
};

}  // namespace

extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(
    int32_t& num_creators) {
  num_creators = 0;
  return sala::trt::guarded<nvinfer1::IPluginCreatorInterface* const*>(nullptr, [&] {
    static const Registry registry;
    num_creators = static_cast<int32_t>(registry.creators().size());
    return registry.creators().data();
  });
}

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  sala::trt::set_logger_finder(finder);
}

/// JSON of every embedded cubin: {"triton": version, "images": [..]}.
extern "C" __attribute__((visibility("default"))) const char* salaKernelIndex() { return sala::kKernelIndex.json; }

/// The cubin of the index's `i`-th image and its size; null and 0 beyond the last.
extern "C" __attribute__((visibility("default"))) const unsigned char* salaKernelImage(size_t i, size_t* bytes) {
  const auto images = sala::kKernelIndex.images;
  *bytes = i < images.size() ? images[i].bytes : 0;
  return i < images.size() ? images[i].data : nullptr;
}
