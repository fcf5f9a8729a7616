#include "weights/weight_input.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/number_formats.h"

namespace sala {

namespace {

constexpr int64_t kStagingBytes = int64_t{1} << 20;

// More than any machine has, and so far below int64 that what is added to it, such as alignment, does not overflow.
constexpr int64_t kMostBytes = int64_t{1} << 48;

// All scales of a part are read at once. Those of the largest published weight would take 18 MiB in nvfp4.
constexpr int64_t kMostScaleBytes = int64_t{128} << 20;
constexpr int64_t kWordBytes = 4;

/// Whether inputs of this type take stored bytes as they are.
bool is_code(DType dtype) {
  return dtype == DType::kFloat8E4M3FN || dtype == DType::kInt8 || dtype == DType::kFloat4E2M1FN;
}

bool is_taken_as_it_is(DType stored, DType target) { return is_code(target) || stored == target; }

/// Several parts of an input of one number each tell it.
bool is_told_by_each(const WeightInput& input) { return input.parts.size() > 1 && input.spec.bound({}) == Shape{1}; }

template <class... Parts>
Error damaged(const WeightInput& input, const Parts&... parts) {
  return error(ErrorCode::kBundleDamaged, kManifestFile, ": weight ", input.spec.name, " ", parts...,
               " (build the bundle again)");
}

Expected<int64_t> scale_elements(const WeightInput& input, const WeightPart& part, const WeightSource& source) {
  const int64_t count = elements_of(source.tensor(part.tensor).shape);
  if (input.spec.dtype != DType::kFloat32) return damaged(input, "has scales and is ", name_of(input.spec.dtype));
  for (const std::string& name : part.tensors()) {
    const StoredTensor& scales = source.tensor(name);
    if (is_convertible(scales.dtype) && scales.bytes <= kMostScaleBytes) continue;
    return damaged(input, "has scales of ", name_of(scales.dtype), " in ", scales.bytes, " bytes in ", name);
  }
  if (count != 1 && count != part.rows) {
    return damaged(input, "has ", count, " scales in ", part.tensor, " for ", part.rows, " rows");
  }
  if (!part.factor.empty() && elements_of(source.tensor(part.factor).shape) != 1) {
    return damaged(input, "has the factor ", part.factor, ", which is not one number");
  }
  return part.rows;
}

/// Elements that a part gives.
Expected<int64_t> part_elements(const WeightInput& input, const WeightPart& part, const WeightSource& source) {
  const DType target = input.spec.dtype;
  const StoredTensor& stored = source.tensor(part.tensor);
  if (part.rows > 0) return scale_elements(input, part, source);
  if (is_code(target)) {
    const int64_t count = elements_of({target == DType::kFloat4E2M1FN ? 2 : 1, stored.bytes});
    if (count < 0) return damaged(input, "is larger than memory");
    return count;
  }
  if (stored.dtype != target && !(is_convertible(stored.dtype) && is_convertible(target))) {
    return damaged(input, "is ", name_of(target), " and cannot be made from ", part.tensor, ", which is ",
                   name_of(stored.dtype));
  }
  return elements_of(stored.shape);
}

Expected<int64_t> check_word_columns(const WeightInput& input, const WeightSource& source) {
  const auto stored = [&](const std::string& name) -> const StoredTensor& { return source.tensor(name); };
  const std::string problem = word_columns_problem(input, stored);
  if (!problem.empty()) return damaged(input, problem);
  if (input.bytes() > kMostScaleBytes) return damaged(input, "has word columns in ", input.bytes(), " bytes");
  return input.bytes();
}

}  // namespace

Expected<int64_t> check_input(const WeightInput& input, const WeightSource& source) {
  const Shape shape = input.spec.bound({});
  const int64_t bytes = input.bytes();
  if (bytes < 0) return damaged(input, "has no usable shape ", to_string(shape));
  if (input.is_word_columns) return check_word_columns(input, source);
  int64_t given = 0;
  for (const WeightPart& part : input.parts) {
    const auto count = part_elements(input, part, source);
    if (!count) return count.error();
    if (is_told_by_each(input) && *count != 1) return damaged(input, "is one number, ", part.tensor, " gives ", *count);
    if (__builtin_add_overflow(given, *count, &given)) return damaged(input, "is larger than memory");
  }
  if (is_told_by_each(input)) given = 1;
  if (given != elements_of(shape)) {
    return damaged(input, "has ", given, " stored elements for the shape ", to_string(shape));
  }
  return bytes;
}

Expected<int64_t> check_inputs(std::span<const WeightInput> inputs, const WeightSource& source) {
  int64_t total = 0;
  for (const WeightInput& input : inputs) {
    const auto bytes = check_input(input, source);
    if (!bytes) return bytes.error();
    if (*bytes > kMostBytes - total) return damaged(input, "is larger than memory");
    total += *bytes;
  }
  return total;
}

const StoredTensor* tensor_as_it_is(const WeightInput& input, const WeightSource& source) {
  const WeightPart& part = input.parts[0];
  const StoredTensor& stored = source.tensor(part.tensor);
  const bool is_whole = input.parts.size() == 1 && part.rows == 0;
  return is_whole && is_taken_as_it_is(stored.dtype, input.spec.dtype) ? &stored : nullptr;
}

/// What a part of an input gives, from its first byte to its last.
class InputReader::Part {
 public:
  virtual ~Part() = default;
  /// As `InputReader::next`.
  virtual Expected<int64_t> next(char* to, int64_t room) = 0;
};

namespace {

/// A part that is made from the bytes of its tensor one after the other.
class Streamed : public InputReader::Part {
 public:
  explicit Streamed(WeightSource::Reader reader) : reader_(std::move(reader)), left_(reader_.tensor().bytes) {}

 protected:
  Status read(void* to, int64_t bytes) {
    SALA_RETURN_IF_ERROR(reader_.read(to, bytes));
    left_ -= bytes;
    return left_ == 0 ? reader_.finish() : success();
  }
  int64_t left() const { return left_; }

 private:
  WeightSource::Reader reader_;
  int64_t left_;  // bytes of the tensor
};

class AsItIs final : public Streamed {
 public:
  using Streamed::Streamed;

  Expected<int64_t> next(char* to, int64_t room) override {
    const int64_t bytes = std::min(room, left());
    if (bytes > 0) SALA_RETURN_IF_ERROR(read(to, bytes));
    return bytes;
  }
};

class Converted final : public Streamed {
 public:
  Converted(const WeightSource::Reader& reader, DType target)
      : Streamed(reader), stored_(reader.tensor().dtype), target_(target) {}

  Expected<int64_t> next(char* to, int64_t room) override {
    const int64_t width = bytes_of(stored_, 1);
    const int64_t count = std::min({room / bytes_of(target_, 1), kStagingBytes / width, left() / width});
    if (count == 0) return 0;
    staging_.resize(static_cast<size_t>(kStagingBytes) / sizeof(float));
    SALA_RETURN_IF_ERROR(read(staging_.data(), count * width));
    convert(staging_.data(), stored_, to, target_, count);
    return bytes_of(target_, count);
  }

 private:
  DType stored_;
  DType target_;
  std::vector<float> staging_;
};

/// The numbers of a small tensor in fp32.
Expected<std::vector<float>> read_numbers(const WeightSource& source, const std::string& name) {
  const auto bytes = source.read_all(name);
  if (!bytes) return bytes.error();
  const StoredTensor& stored = source.tensor(name);
  std::vector<float> numbers(static_cast<size_t>(elements_of(stored.shape)));
  convert(bytes->data(), stored.dtype, numbers.data(), DType::kFloat32, static_cast<int64_t>(numbers.size()));
  return numbers;
}

class Scales final : public InputReader::Part {
 public:
  Scales(const WeightPart& part, const WeightSource& source) : part_(part), source_(source) {}

  Expected<int64_t> next(char* to, int64_t room) override {
    if (done_ == part_.rows) return 0;
    if (scales_.empty()) SALA_RETURN_IF_ERROR(load());
    const int64_t count = std::min(room / static_cast<int64_t>(sizeof(float)), part_.rows - done_);
    auto* numbers = reinterpret_cast<float*>(to);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = done_ + i;
      numbers[i] = scales_[scales_.size() == 1 ? 0 : static_cast<size_t>(row)] * factor_;
    }
    done_ += count;
    return bytes_of(DType::kFloat32, count);
  }

 private:
  Status load() {
    auto scales = read_numbers(source_, part_.tensor);
    if (!scales) return scales.error();
    scales_ = *std::move(scales);
    if (part_.factor.empty()) return success();
    const auto factor = read_numbers(source_, part_.factor);
    if (!factor) return factor.error();
    factor_ = factor->front();
    return success();
  }

  const WeightPart& part_;
  const WeightSource& source_;
  std::vector<float> scales_;
  float factor_ = 1.0f;
  int64_t done_ = 0;
};

/// All parts of an input of word columns: four neighbouring bytes of a row are a word, and the words of one place of
/// all rows lie side by side.
class WordColumns final : public InputReader::Part {
 public:
  WordColumns(const WeightInput& input, const WeightSource& source)
      : parts_(input.parts), source_(source), columns_(input.spec.shape[0].value), rows_(input.spec.shape[1].value) {}

  Expected<int64_t> next(char* to, int64_t room) override {
    if (bytes_.empty()) SALA_RETURN_IF_ERROR(load());
    int64_t count = 0;
    for (; place_ < columns_ && count < room / kWordBytes; ++count) {
      const int64_t word = row_ * columns_ + place_;
      std::memcpy(to + count * kWordBytes, bytes_.data() + word * kWordBytes, kWordBytes);
      if (++row_ < rows_) continue;
      row_ = 0;
      ++place_;
    }
    return count * kWordBytes;
  }

 private:
  Status load() {
    bytes_.reserve(static_cast<size_t>(columns_ * rows_ * kWordBytes));
    for (const WeightPart& part : parts_) {
      const auto bytes = source_.read_all(part.tensor);
      if (!bytes) return bytes.error();
      bytes_ += *bytes;
    }
    return success();
  }

  const std::vector<WeightPart>& parts_;
  const WeightSource& source_;
  int64_t columns_;
  int64_t rows_;
  std::string bytes_;  // of all rows
  int64_t place_ = 0;  // of the next word in its row
  int64_t row_ = 0;
};

std::unique_ptr<InputReader::Part> open_part(const WeightPart& part, DType target, const WeightSource& source) {
  if (part.rows > 0) return std::make_unique<Scales>(part, source);
  if (is_taken_as_it_is(source.tensor(part.tensor).dtype, target)) {
    return std::make_unique<AsItIs>(source.open(part.tensor));
  }
  return std::make_unique<Converted>(source.open(part.tensor), target);
}

std::string number_text(const char* bytes, DType dtype) {
  if (!is_convertible(dtype)) return "other bytes";
  float number = 0.0f;
  convert(bytes, dtype, &number, DType::kFloat32, 1);
  std::ostringstream text;
  text << number;
  return text.str();
}

}  // namespace

InputReader::InputReader(const WeightInput& input, const WeightSource& source) : input_(&input), source_(&source) {}
InputReader::InputReader(InputReader&&) noexcept = default;
InputReader::~InputReader() = default;

Expected<int64_t> InputReader::next(void* to, int64_t room) {
  if (is_told_by_each(*input_)) return next_number(static_cast<char*>(to));
  while (true) {
    if (part_) {
      const auto bytes = part_->next(static_cast<char*>(to), room);
      if (!bytes || *bytes > 0) return bytes;
      part_.reset();
    }
    if (next_part_ == input_->parts.size()) return 0;
    if (input_->is_word_columns) {
      part_ = std::make_unique<WordColumns>(*input_, *source_);
      next_part_ = input_->parts.size();
    } else {
      part_ = open_part(input_->parts[next_part_++], input_->spec.dtype, *source_);
    }
  }
}

/// The one number that every part tells.
Expected<int64_t> InputReader::next_number(char* to) {
  if (next_part_ == input_->parts.size()) return 0;
  const DType dtype = input_->spec.dtype;
  const int64_t bytes = bytes_of(dtype, 1);
  for (; next_part_ < input_->parts.size(); ++next_part_) {
    const WeightPart& part = input_->parts[next_part_];
    alignas(8) std::array<char, 16> number{};
    const auto read = open_part(part, dtype, *source_)->next(number.data(), number.size());
    if (!read) return read.error();
    if (next_part_ == 0) std::memcpy(to, number.data(), static_cast<size_t>(bytes));
    if (std::memcmp(to, number.data(), static_cast<size_t>(bytes)) == 0) continue;
    return error(source_->is_of_bundle() ? ErrorCode::kBundleDamaged : ErrorCode::kWeightsUnsuitable,
                 source_->folder().string(), ": ", input_->parts[0].tensor, " gives ", number_text(to, dtype), " and ",
                 part.tensor, " ", number_text(number.data(), dtype), " for ", input_->spec.name,
                 ", which is one number: ",
                 source_->is_of_bundle() ? "build the bundle again" : "give weights that agree there");
  }
  return bytes;
}

}  // namespace sala
