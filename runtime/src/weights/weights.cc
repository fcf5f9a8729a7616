#include "weights/weights.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "weights/parallel_load.h"
#include "weights/required_memory.h"
#include "weights/weight_input.h"

namespace sala {

namespace {

constexpr int64_t kBlockBytes = int64_t{4} << 20;
constexpr int64_t kLeastMappedBytes = int64_t{1} << 20;

/// The mappings of a load, one for each file.
class Mappings {
 public:
  explicit Mappings(const WeightSource& source) : source_(source) {}

  /// Null if the file cannot be mapped.
  std::shared_ptr<const MappedFile> of(const StoredTensor& tensor) {
    const auto [at, is_new] = files_.try_emplace(tensor.file);
    if (is_new) at->second = MappedFile::map(source_.file(tensor));
    return at->second;
  }

  std::vector<std::shared_ptr<const MappedFile>> files() const {
    std::vector<std::shared_ptr<const MappedFile>> result;
    for (const auto& [name, file] : files_) {
      if (file != nullptr) result.push_back(file);
    }
    return result;
  }

 private:
  const WeightSource& source_;
  std::map<std::string, std::shared_ptr<const MappedFile>> files_;
};

/// A weight whose bytes are still to come: they are read into its buffer, or hashed where they are mapped.
struct Place {
  Weight weight;
  std::shared_ptr<const MappedFile> file{};  // null: the buffer
};

Expected<Place> place_of(const WeightInput& input, const WeightSource& source, Mappings& mappings) {
  Place place{{input.spec, input.spec.bound({})}};
  const StoredTensor* stored = tensor_as_it_is(input, source);
  if (stored != nullptr && stored->bytes >= kLeastMappedBytes) place.file = mappings.of(*stored);
  if (place.file != nullptr) {
    place.weight.data = place.file->data() + stored->offset;
    return place;
  }
  auto buffer = host_memory().allocate(input.bytes());
  if (!buffer) return buffer.error();
  place.weight.buffer = *std::move(buffer);
  place.weight.data = place.weight.buffer.data();
  return place;
}

/// Reads an input to its end. The bytes of one that is mapped are only hashed, by way of `block`.
Status fill(const Place& place, const WeightInput& input, const WeightSource& source, std::vector<char>& block,
            ParallelLoad& load) {
  InputReader reader(input, source);
  const int64_t bytes = input.bytes();
  for (int64_t done = 0; done < bytes;) {
    const int64_t room = std::min(kBlockBytes, bytes - done);
    char* const to = place.file ? block.data() : static_cast<char*>(place.weight.buffer.data()) + done;
    const auto read = reader.next(to, room);
    if (!read) return read.error();
    SALA_RETURN_IF_ERROR(load.advance(*read));
    done += *read;
  }
  return success();
}

}  // namespace

Status Weights::check() const {
  for (const auto& file : files_) SALA_RETURN_IF_ERROR(file->check());
  return success();
}

Expected<Weights> load_weights(const Manifest& manifest, const WeightSource& source, const LoadOptions& options,
                               std::optional<int64_t> memory) {
  const auto& inputs = manifest.cpu.weights;
  const auto total = check_inputs(inputs, source);
  if (!total) return total.error();
  if (memory) SALA_RETURN_IF_ERROR(require_memory(manifest, *total, *memory));
  Mappings mappings(source);
  std::vector<Place> places;
  for (const WeightInput& input : inputs) {
    auto place = place_of(input, source, mappings);
    if (!place) return place.error();
    places.push_back(*std::move(place));
  }
  const ParallelLoadOptions parallel{inputs.size(), *total, options.threads, options.on_progress};
  SALA_RETURN_IF_ERROR(load_in_parallel(parallel, [&](ParallelLoad& load) -> Status {
    std::vector<char> block(static_cast<size_t>(kBlockBytes));
    while (const auto item = load.next()) {
      SALA_RETURN_IF_ERROR(fill(places[*item], inputs[*item], source, block, load));
    }
    return success();
  }));
  std::vector<Weight> loaded;
  for (Place& place : places) loaded.push_back(std::move(place.weight));
  Weights weights(std::move(loaded), mappings.files());
  SALA_RETURN_IF_ERROR(weights.check());
  return weights;
}

}  // namespace sala
