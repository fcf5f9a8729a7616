// A CUDA driver on host memory: device addresses are the host's, and what is put on a stream runs when somebody waits
// for it, so that a missing wait shows. What each call needs is checked as the driver does: a current context, sizes
// within an allocation, no allocation while a stream captures. Safe to use from several threads, except for the fields
// below, which a test reads and writes while nobody else uses the driver.

#pragma once

#include <cuda.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace sala::test {

struct FakeCuda {
  int version = 13000;
  std::vector<std::pair<int, int>> devices = {{12, 0}};  // compute capabilities
  CUresult init = CUDA_SUCCESS;
  CUresult begin_capture = CUDA_SUCCESS;
  CUresult instantiate = CUDA_SUCCESS;
  CUresult synchronize = CUDA_SUCCESS;
  int64_t total_bytes = int64_t{256} << 20;
  int64_t largest_block = INT64_MAX;
  bool maps_pages = true;
  int64_t page_bytes = 64 << 10;

  // Calls that still work; -1: all.
  int copies_before_failure = -1;  // to the device, on a stream
  int pins_before_failure = -1;
  int streams_before_failure = -1;
  int page_calls_before_failure = -1;  // that create, map or open pages, or reserve addresses; one fails
  int copy_milliseconds = 0;           // that putting such a copy on a stream takes

  // What happened.
  std::map<uintptr_t, size_t> device_blocks;
  std::map<uintptr_t, size_t> pinned_blocks;
  struct Physical {
    size_t bytes;
    int holders;  // its creator and mappings
  };
  struct Mapping {
    unsigned long long page;
    size_t bytes;
    bool is_open;  // to be read and written
  };
  std::map<uintptr_t, size_t> reserved;          // addresses
  std::map<uintptr_t, Mapping> mapped;           // by their addresses
  std::map<unsigned long long, Physical> pages;  // of physical memory, by their first number
  int merged_pages = 0;                          // created, of more than one page
  int contexts = 0;                              // retained
  int streams = 0;
  int graphs = 0;  // captured and executable ones
  int graph_launches = 0;
  int64_t peak_pinned_bytes = 0;

  int64_t used_bytes() const {
    int64_t bytes = sum(device_blocks);
    for (const auto& [number, page] : pages) bytes += static_cast<int64_t>(page.bytes);
    return bytes;
  }
  int64_t pinned_bytes() const { return sum(pinned_blocks); }

 private:
  static int64_t sum(const std::map<uintptr_t, size_t>& blocks) {
    int64_t bytes = 0;
    for (const auto& [at, size] : blocks) bytes += static_cast<int64_t>(size);
    return bytes;
  }
};

}  // namespace sala::test

extern "C" {
sala::test::FakeCuda* fake_cuda();
/// Puts work on a stream, or into the graph that it captures; true if it captures.
bool fake_cuda_submit(CUstream stream, const std::function<void()>* work);
}
