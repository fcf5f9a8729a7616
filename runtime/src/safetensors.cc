#include "safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <string_view>
#include <utility>

#include "json_fields.h"

namespace sala {

namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data and header length are little endian");

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kAlignmentBytes = 8;
// A header of a thousand layers takes less than 1 MiB; a larger number is the start of some other kind of file.
constexpr int64_t kMaxHeaderBytes = int64_t{16} << 20;
constexpr const char* kMetadata = "__metadata__";

constexpr std::pair<DType, std::string_view> kTypes[] = {{DType::kFloat32, "F32"},
                                                         {DType::kFloat16, "F16"},
                                                         {DType::kBFloat16, "BF16"},
                                                         {DType::kInt32, "I32"},
                                                         {DType::kInt64, "I64"}};

std::string_view spelling(DType dtype) {
  return std::find_if(std::begin(kTypes), std::end(kTypes), [&](const auto& type) { return type.first == dtype; })
      ->second;
}

StoredTensor tensor_of(const std::string& name, const Field& entry, int64_t data_start) {
  entry.allow_only({"dtype", "shape", "data_offsets"});
  StoredTensor tensor;
  tensor.name = name;
  const std::string dtype = entry["dtype"].string();
  const auto type =
      std::find_if(std::begin(kTypes), std::end(kTypes), [&](const auto& known) { return known.second == dtype; });
  entry["dtype"].expect(type != std::end(kTypes), "is not an element type of a state");
  if (type != std::end(kTypes)) tensor.dtype = type->first;
  for (const Field& extent : entry["shape"].elements()) tensor.shape.push_back(extent.integer(0));
  const std::vector<Field> offsets = entry["data_offsets"].elements();
  entry["data_offsets"].expect(offsets.size() == 2, "expected two numbers");
  if (offsets.size() != 2) return tensor;
  const int64_t begin = offsets[0].integer(0);
  const int64_t end = offsets[1].integer(begin);
  const int64_t elements = elements_of(tensor.shape);
  tensor.bytes = end - begin;
  entry.expect(
      elements >= 0 && tensor.bytes / bytes_of(tensor.dtype) == elements && tensor.bytes % bytes_of(tensor.dtype) == 0,
      "shape and data_offsets disagree");
  entry.expect(begin <= INT64_MAX - data_start, "lies beyond every file");
  tensor.offset = begin <= INT64_MAX - data_start ? data_start + begin : 0;
  return tensor;
}

Error damaged(const File& file, const std::string& what) {
  return error(ErrorCode::kStateDamaged, file.path().string(), " is damaged: ", what, "; save the session again");
}

}  // namespace

std::string write_safetensors_header(SafetensorsHeader& header) {
  Json json = Json::object();
  json[kMetadata] = header.metadata;
  int64_t end = 0;
  for (const StoredTensor& tensor : header.tensors) {
    const int64_t begin = end;
    end += tensor.bytes;
    json[tensor.name] = {{"dtype", spelling(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = json.dump();
  text.append(static_cast<size_t>(-static_cast<int64_t>(text.size()) & (kAlignmentBytes - 1)), ' ');
  int64_t offset = kLengthBytes + static_cast<int64_t>(text.size());
  for (StoredTensor& tensor : header.tensors) {
    tensor.offset = offset;
    offset += tensor.bytes;
  }
  const auto length = std::bit_cast<std::array<char, kLengthBytes>>(static_cast<uint64_t>(text.size()));
  return std::string(length.begin(), length.end()) + text;
}

Expected<SafetensorsHeader> read_safetensors_header(const File& file) {
  const auto foreign = [&] {
    return error(ErrorCode::kStateForeign, file.path().string(),
                 " is not a safetensors file: give a file that Session::save wrote");
  };
  uint64_t header_bytes = 0;
  if (file.bytes() < kLengthBytes) return foreign();
  SALA_RETURN_IF_ERROR(file.read(0, &header_bytes, kLengthBytes));
  if (header_bytes > static_cast<uint64_t>(kMaxHeaderBytes)) return foreign();
  const int64_t data_start = kLengthBytes + static_cast<int64_t>(header_bytes);
  if (file.bytes() < data_start) {
    return damaged(
        file, "it has " + std::to_string(file.bytes()) + " bytes, its header ends at " + std::to_string(data_start));
  }
  std::string text(static_cast<size_t>(header_bytes), '\0');
  SALA_RETURN_IF_ERROR(file.read(kLengthBytes, text.data(), static_cast<int64_t>(header_bytes)));
  const auto json = parse_json(text);
  if (!json || !json->is_object()) return foreign();

  std::string problem;
  SafetensorsHeader header;
  for (const auto& [name, entry] : Field(*json, "", problem).members()) {
    if (name == kMetadata) {
      for (const auto& [key, value] : entry.members()) header.metadata[key] = value.string();
    } else {
      header.tensors.push_back(tensor_of(name, entry, data_start));
    }
  }
  if (!problem.empty()) return damaged(file, "in its header, " + problem);
  std::stable_sort(header.tensors.begin(), header.tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  int64_t end = data_start;
  for (const StoredTensor& tensor : header.tensors) {
    if (tensor.offset != end) return damaged(file, "the data of " + tensor.name + " leaves a gap or overlaps");
    if (tensor.bytes > file.bytes() - end) {
      return damaged(file,
                     "it is truncated, " + tensor.name + " ends behind its " + std::to_string(file.bytes()) + " bytes");
    }
    end += tensor.bytes;
  }
  if (end != file.bytes()) return damaged(file, std::to_string(file.bytes() - end) + " bytes follow its last tensor");
  return header;
}

}  // namespace sala
