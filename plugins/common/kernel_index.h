// What the library says of its own kernels to tools (`sala-export kernels`). plugins/aot writes it; launches need none.

#pragma once

#include <cstddef>
#include <span>

namespace sala {

/// A cubin as it is embedded.
struct IndexedImage {
  const unsigned char* data;
  size_t bytes;
};

struct KernelIndex {
  const char* json;  // {"triton": version, "images": [..]}, in the order of `images`
  std::span<const IndexedImage> images;
};

extern const KernelIndex kKernelIndex;

}  // namespace sala
