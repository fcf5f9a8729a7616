// Parallel loops on threads that belong to the caller.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>
#include <type_traits>

#include "common/result.h"

namespace sala::cpu {

/// How a runtime runs `task(data, i)` for i in [0, count) on its threads; returns when all are done.
struct ParallelFor {
  using Task = void (*)(void* data, size_t index);
  void (*run)(void* context, Task task, size_t count, void* data);
  void* context;
};

/// Calls `body(i)` for i in [0, count), concurrently; `body` must not throw.
template <class Body>
void parallel_for(const ParallelFor& parallel, int64_t count, Body&& body) {
  const auto task = [](void* data, size_t index) {
    (*static_cast<std::remove_reference_t<Body>*>(data))(static_cast<int64_t>(index));
  };
  parallel.run(parallel.context, task, static_cast<size_t>(count), static_cast<void*>(&body));
}

/// Calls `body(row)` for row in [0, rows), concurrently, a few rows at a time: one alone is too little work for a
/// thread to fetch.
template <class Body>
void parallel_for_rows(const ParallelFor& parallel, int64_t rows, Body&& body) {
  constexpr int64_t kRowsOfItem = 16;
  parallel_for(parallel, (rows + kRowsOfItem - 1) / kRowsOfItem, [&](int64_t item) {
    const int64_t last = std::min(rows, (item + 1) * kRowsOfItem);
    for (int64_t row = item * kRowsOfItem; row < last; ++row) body(row);
  });
}

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};
using FloatBuffer = std::unique_ptr<float[], Free>;

/// Uninitialised floats at an address that is a multiple of 64; null if there is no memory.
inline FloatBuffer allocate_floats(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64;
  return FloatBuffer(static_cast<float*>(std::aligned_alloc(64, bytes)));
}

/// Calls `body(i, scratch)` for i in [0, count), concurrently. A call has `scratch_floats` uninitialised floats for
/// itself; memory for them is taken once per thread, not per call. Items are begun in rising order, by whichever thread
/// is free: a result must not depend on more than i, and an item may wait for earlier ones.
template <class Body>
Status parallel_for_with_scratch(const ParallelFor& parallel, int64_t count, int64_t scratch_floats, Body&& body) {
  if (count == 0) return success();
  const int64_t threads = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t workers = std::min(count, threads);
  const int64_t stride = (scratch_floats + 15) / 16 * 16;
  const FloatBuffer scratch = allocate_floats(workers * stride);
  if (scratch == nullptr) {
    return error("out of memory: ", workers * stride * static_cast<int64_t>(sizeof(float)), " bytes of scratch for ",
                 workers, " threads");
  }
  std::atomic<int64_t> next{0};
  parallel_for(parallel, workers, [&](int64_t worker) {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) body(i, scratch.get() + worker * stride);
  });
  return success();
}

}  // namespace sala::cpu
