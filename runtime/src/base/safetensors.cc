#include "base/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <string_view>
#include <utility>

#include "base/json_fields.h"

namespace sala {

namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data and header length are little endian");

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kAlignmentBytes = 8;
// A header of a thousand layers takes less than 1 MiB; a larger number is the start of some other kind of file.
constexpr int64_t kMaxHeaderBytes = int64_t{16} << 20;
constexpr const char* kMetadata = "__metadata__";

constexpr std::pair<DType, std::string_view> kTypes[] = {
    {DType::kFloat32, "F32"}, {DType::kFloat16, "F16"},          {DType::kBFloat16, "BF16"}, {DType::kInt32, "I32"},
    {DType::kInt64, "I64"},   {DType::kFloat8E4M3FN, "F8_E4M3"}, {DType::kInt8, "I8"},       {DType::kUInt8, "U8"},
};

std::string_view spelling(DType dtype) {
  return std::find_if(std::begin(kTypes), std::end(kTypes), [&](const auto& type) { return type.first == dtype; })
      ->second;
}

SafetensorsTensor tensor_of(const std::string& name, const Field& entry, int64_t data_start) {
  entry.allow_only({"dtype", "shape", "data_offsets"});
  SafetensorsTensor tensor;
  tensor.name = name;
  tensor.type = entry["dtype"].string();
  const auto type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                 [&](const auto& known) { return known.second == tensor.type; });
  if (type != std::end(kTypes)) tensor.dtype = type->first;
  for (const Field& extent : entry["shape"].elements()) tensor.shape.push_back(extent.integer(0));
  const std::vector<Field> offsets = entry["data_offsets"].elements();
  entry["data_offsets"].expect(offsets.size() == 2, "expected two numbers");
  if (offsets.size() != 2) return tensor;
  const int64_t begin = offsets[0].integer(0);
  const int64_t end = offsets[1].integer(begin);
  const int64_t elements = elements_of(tensor.shape);
  tensor.bytes = end - begin;
  entry.expect(elements >= 0 && (!tensor.dtype || tensor.bytes == bytes_of(*tensor.dtype, elements)),
               "shape and data_offsets disagree");
  entry.expect(begin <= INT64_MAX - data_start, "lies beyond every file");
  tensor.offset = begin <= INT64_MAX - data_start ? data_start + begin : 0;
  return tensor;
}

}  // namespace

std::string write_safetensors_header(SafetensorsHeader& header) {
  Json json = Json::object();
  json[kMetadata] = header.metadata;
  int64_t end = 0;
  for (const SafetensorsTensor& tensor : header.tensors) {
    const int64_t begin = end;
    end += tensor.bytes;
    json[tensor.name] = {{"dtype", spelling(*tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = json.dump();
  text.append(static_cast<size_t>(-static_cast<int64_t>(text.size()) & (kAlignmentBytes - 1)), ' ');
  header.data_start = kLengthBytes + static_cast<int64_t>(text.size());
  int64_t offset = header.data_start;
  for (SafetensorsTensor& tensor : header.tensors) {
    tensor.offset = offset;
    offset += tensor.bytes;
  }
  const auto length = std::bit_cast<std::array<char, kLengthBytes>>(static_cast<uint64_t>(text.size()));
  return std::string(length.begin(), length.end()) + text;
}

namespace {

/// The text of a header, and where the data begin.
Expected<std::pair<std::string, int64_t>> read_text(const File& file, const SafetensorsUse& use) {
  const auto foreign = [&] {
    return error(use.foreign, file.path().string(), " is not a safetensors file: ", use.if_foreign);
  };
  uint64_t header_bytes = 0;
  if (file.bytes() < kLengthBytes) return foreign();
  SALA_RETURN_IF_ERROR(file.read(0, &header_bytes, kLengthBytes));
  if (header_bytes > static_cast<uint64_t>(kMaxHeaderBytes)) return foreign();
  const int64_t data_start = kLengthBytes + static_cast<int64_t>(header_bytes);
  if (file.bytes() < data_start) {
    return error(use.damaged, file.path().string(), " is damaged: it has ", file.bytes(), " bytes, its header ends at ",
                 data_start, "; ", use.if_damaged);
  }
  std::string text(static_cast<size_t>(header_bytes), '\0');
  SALA_RETURN_IF_ERROR(file.read(kLengthBytes, text.data(), static_cast<int64_t>(header_bytes)));
  return std::pair(std::move(text), data_start);
}

/// What is wrong with the places of the tensors, which it sorts; empty if nothing is.
std::string check_places(std::vector<SafetensorsTensor>& tensors, int64_t data_start, int64_t file_bytes) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const SafetensorsTensor& a, const SafetensorsTensor& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  int64_t end = data_start;
  for (const SafetensorsTensor& tensor : tensors) {
    if (tensor.offset != end) return "the data of " + tensor.name + " leaves a gap or overlaps";
    if (tensor.bytes > file_bytes - end) {
      return "it is truncated, " + tensor.name + " ends behind its " + std::to_string(file_bytes) + " bytes";
    }
    end += tensor.bytes;
  }
  return end == file_bytes ? "" : std::to_string(file_bytes - end) + " bytes follow its last tensor";
}

}  // namespace

Expected<SafetensorsHeader> read_safetensors_header(const File& file, const SafetensorsUse& use) {
  const auto text = read_text(file, use);
  if (!text) return text.error();
  const auto json = parse_json(text->first);
  if (!json || !json->is_object()) {
    return error(use.foreign, file.path().string(), " is not a safetensors file: ", use.if_foreign);
  }
  std::string problem;
  SafetensorsHeader header;
  header.data_start = text->second;
  for (const auto& [name, entry] : Field(*json, "", problem).members()) {
    if (name == kMetadata) {
      for (const auto& [key, value] : entry.members()) header.metadata[key] = value.string();
    } else {
      header.tensors.push_back(tensor_of(name, entry, text->second));
    }
  }
  problem = problem.empty() ? check_places(header.tensors, text->second, file.bytes()) : "in its header, " + problem;
  if (!problem.empty()) {
    return error(use.damaged, file.path().string(), " is damaged: ", problem, "; ", use.if_damaged);
  }
  return header;
}

}  // namespace sala
