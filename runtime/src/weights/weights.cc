#include "weights/weights.h"

#include <algorithm>

#include "weights/parallel_load.h"
#include "weights/weight_input.h"

namespace sala {

namespace {

constexpr int64_t kBlockBytes = int64_t{4} << 20;

Status fill(Weight& weight, const WeightInput& input, const WeightSource& source, ParallelLoad& load) {
  InputReader reader(input, source);
  char* const begin = static_cast<char*>(weight.buffer.data());
  const int64_t bytes = input.bytes();
  for (int64_t done = 0; done < bytes;) {
    const auto read = reader.next(begin + done, std::min(kBlockBytes, bytes - done));
    if (!read) return read.error();
    SALA_RETURN_IF_ERROR(load.advance(*read));
    done += *read;
  }
  return success();
}

}  // namespace

Expected<std::vector<Weight>> load_weights(const Manifest& manifest, const WeightSource& source,
                                           const LoadOptions& options) {
  const auto& inputs = manifest.cpu.weights;
  const auto total = check_inputs(inputs, source);
  if (!total) return total.error();
  std::vector<Weight> result;
  for (const WeightInput& input : inputs) {
    auto buffer = host_memory().allocate(input.bytes());
    if (!buffer) return buffer.error();
    result.push_back({input.spec, input.spec.bound({}), *std::move(buffer)});
  }
  const ParallelLoadOptions parallel{inputs.size(), *total, options.threads, options.on_progress};
  SALA_RETURN_IF_ERROR(load_in_parallel(parallel, [&](ParallelLoad& load) -> Status {
    while (const auto item = load.next()) {
      SALA_RETURN_IF_ERROR(fill(result[*item], inputs[*item], source, load));
    }
    return success();
  }));
  return result;
}

}  // namespace sala
