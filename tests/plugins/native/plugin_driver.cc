// Plays TensorRT to one plugin: obeys commands of standard input, one a line, and answers each with one line of JSON.
// What cannot be done is answered with {"error": "..."} in one line, and ends the program with exit code 1.
//
//   int NAME VALUE                an attribute as the engine file holds it; `int32` as the ONNX parser hands it over
//   float NAME VALUE
//   create TYPE                   a plugin from the attributes given so far
//   input TYPE ADDRESS EXTENT..   the next input tensor; `output` likewise
//   forget                        there are no tensors any more
//   workspace ADDRESS
//   types | output_shapes | formats | workspace_size | configure | shape_change | enqueue
//   serialize                     the fields to serialize, and a plugin made anew from them in place of the present one
//   clone                         a clone in place of the present plugin
//   destroy
//
// On a fake GPU (fake_device.cc) an ADDRESS is a number, and there are more commands:
//
//   sm N                          architecture of the fake devices
//   context N                     the context of device N is the current one
//   fail NAME                     the next call of that function of the driver fails
//
// On a real one (cuda_device.cc) an ADDRESS is the name of a buffer. Files hold a buffer's bytes, no more and no fewer.
//
//   device                        the GPU's name, architecture, and the CUDA version of its driver
//   buffer NAME BYTES             memory of the GPU; the answer says where
//   fill NAME BYTE                every byte of it
//   write NAME PATH               from a file
//   read NAME PATH                to a file, when all before is done
//   synchronize                   wait for what was enqueued
//   capture                       one enqueue in a CUDA graph, in place of an earlier one; the answer counts its nodes
//   replay                        run that graph and wait for it

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <deque>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "device.h"

namespace {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

class Logger final : public nvinfer1::ILogger, public nvinfer1::ILoggerFinder {
 public:
  void log(Severity /*severity*/, const char* message) noexcept override { lines.emplace_back(message); }
  nvinfer1::ILogger* findLogger() override { return this; }

  std::vector<std::string> lines;
};

struct Tensor {
  nvinfer1::PluginTensorDesc desc{};
  uint64_t address = 0;
};

std::string listed(const std::vector<std::string>& items) {
  std::string result = "[";
  for (const std::string& item : items) result += (result.size() > 1 ? ", " : "") + item;
  return result + "]";
}

DataType parse_type(const std::string& name) {
  static const std::map<std::string, DataType> kTypes = {
      {"float32", DataType::kFLOAT},     {"float16", DataType::kHALF}, {"bfloat16", DataType::kBF16},
      {"float8_e4m3fn", DataType::kFP8}, {"int32", DataType::kINT32},  {"int64", DataType::kINT64}};
  const auto found = kTypes.find(name);
  if (found == kTypes.end()) throw std::runtime_error("there is no type " + name);
  return found->second;
}

/// An extent, known by its value.
class Extent final : public nvinfer1::IDimensionExpr {
 public:
  explicit Extent(int64_t value) : value(value) {}

  int64_t value;
};

/// Makes constants; the plugins ask for nothing else.
class ExtentBuilder final : public nvinfer1::IExprBuilder, nvinfer1::apiv::VExprBuilder {
 public:
  ExtentBuilder() { mImpl = this; }
  const nvinfer1::IDimensionExpr* constant(int64_t value) override { return &extents_.emplace_back(value); }
  const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation, const nvinfer1::IDimensionExpr&,
                                            const nvinfer1::IDimensionExpr&) override {
    return nullptr;
  }
  const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                    const nvinfer1::IDimensionExpr&) override {
    return nullptr;
  }

 private:
  std::deque<Extent> extents_;
};

class Driver {
 public:
  Driver(const char* library_path, Device& device) : device_(device) {
    void* library = dlopen(library_path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw std::runtime_error(dlerror());
    using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);
    using SetLoggerFinder = void (*)(nvinfer1::ILoggerFinder*);
    const auto set_logger_finder = reinterpret_cast<SetLoggerFinder>(dlsym(library, "setLoggerFinder"));
    const auto get_creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
    if (set_logger_finder == nullptr || get_creators == nullptr) {
      throw std::runtime_error(std::string(library_path) + " is no plugin library of TensorRT");
    }
    set_logger_finder(&logger_);
    int32_t count = 0;
    auto* const* creators = get_creators(count);
    for (int32_t i = 0; i < count; ++i) {
      auto* creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
      creators_[creator->getPluginName()] = creator;
    }
    commands_.merge(device.commands([this] { return run(); }));
  }

  /// Obeys one line and returns the members of its answer.
  std::string obey(const std::string& line) {
    std::istringstream words(line);
    std::string command;
    words >> command;
    const auto found = commands_.find(command);
    if (found == commands_.end()) throw std::runtime_error("there is no command " + command);
    return found->second(words);
  }

  std::vector<std::string> take_log() { return std::exchange(logger_.lines, {}); }

 private:
  std::string answer(int64_t result) { return "\"result\": " + std::to_string(result); }

  template <class T>
  std::string add_attribute(std::istream& words, std::deque<T>& values, PluginFieldType type) {
    std::string name;
    words >> name >> values.emplace_back();
    fields_.emplace_back(names_.emplace_back(name).c_str(), &values.back(), type, 1);
    return answer(0);
  }

  std::string create(std::istream& words) {
    words >> type_;
    if (!creators_.contains(type_)) throw std::runtime_error("the library has no plugin " + type_);
    const nvinfer1::PluginFieldCollection collection{static_cast<int32_t>(fields_.size()), fields_.data()};
    return adopt(creators_.at(type_)->createPlugin("node", &collection, nvinfer1::TensorRTPhase::kBUILD));
  }

  std::string adopt(nvinfer1::IPluginV3* plugin) {
    plugin_.reset(plugin);
    return answer(plugin != nullptr);
  }

  std::string serialize(std::istream&) {
    const nvinfer1::PluginFieldCollection* fields = runtime()->getFieldsToSerialize();
    std::vector<std::string> printed;
    for (int32_t i = 0; i < fields->nbFields; ++i) {
      const PluginField& field = fields->fields[i];
      std::ostringstream text;
      text.precision(9);
      text << "[" << quoted(field.name) << ", ";
      if (field.type == PluginFieldType::kINT64) text << *static_cast<const int64_t*>(field.data);
      if (field.type == PluginFieldType::kFLOAT32) text << *static_cast<const float*>(field.data);
      printed.push_back(text.str() + "]");
    }
    const std::string created =
        adopt(creators_.at(type_)->createPlugin("node", fields, nvinfer1::TensorRTPhase::kRUNTIME));
    return created + ", \"fields\": " + listed(printed);
  }

  std::string add_tensor(std::istream& words, std::vector<Tensor>& tensors) {
    std::string type;
    std::string address;
    Tensor tensor;
    words >> type >> address;
    tensor.address = device_.address(address);
    tensor.desc.type = parse_type(type);
    tensor.desc.format = nvinfer1::TensorFormat::kLINEAR;
    for (int64_t extent = 0; words >> extent;) {
      if (tensor.desc.dims.nbDims == nvinfer1::Dims::MAX_DIMS) throw std::runtime_error("too many extents");
      tensor.desc.dims.d[tensor.desc.dims.nbDims++] = extent;
    }
    tensors.push_back(tensor);
    return answer(0);
  }

  std::string forget() {
    inputs_.clear();
    outputs_.clear();
    return answer(0);
  }

  std::vector<nvinfer1::PluginTensorDesc> descs(const std::vector<Tensor>& tensors) {
    std::vector<nvinfer1::PluginTensorDesc> result;
    for (const Tensor& tensor : tensors) result.push_back(tensor.desc);
    return result;
  }

  /// As at build time: unknown extents, with the given ones as the largest of the profile.
  std::vector<nvinfer1::DynamicPluginTensorDesc> dynamic_descs(const std::vector<Tensor>& tensors) {
    std::vector<nvinfer1::DynamicPluginTensorDesc> result;
    for (const Tensor& tensor : tensors) {
      nvinfer1::DynamicPluginTensorDesc desc{tensor.desc, tensor.desc.dims, tensor.desc.dims, tensor.desc.dims};
      for (int32_t i = 0; i < desc.desc.dims.nbDims; ++i) desc.desc.dims.d[i] = -1;
      result.push_back(desc);
    }
    return result;
  }

  std::string types(std::istream&) {
    std::vector<DataType> input_types;
    for (const Tensor& tensor : inputs_) input_types.push_back(tensor.desc.type);
    std::vector<DataType> output_types(static_cast<size_t>(build()->getNbOutputs()));
    const int32_t result = build()->getOutputDataTypes(output_types.data(), build()->getNbOutputs(), input_types.data(),
                                                       static_cast<int32_t>(input_types.size()));
    std::vector<std::string> printed;
    for (const DataType type : output_types) printed.push_back(std::to_string(static_cast<int>(type)));
    std::vector<std::string> given;
    for (const Tensor& tensor : outputs_) given.push_back(std::to_string(static_cast<int>(tensor.desc.type)));
    return answer(result) + ", \"types\": " + listed(printed) + ", \"given\": " + listed(given);
  }

  std::string output_shapes(std::istream&) {
    ExtentBuilder builder;
    std::vector<nvinfer1::DimsExprs> inputs;
    for (const Tensor& tensor : inputs_) {
      nvinfer1::DimsExprs& dims = inputs.emplace_back();
      dims.nbDims = tensor.desc.dims.nbDims;
      for (int32_t i = 0; i < dims.nbDims; ++i) dims.d[i] = builder.constant(tensor.desc.dims.d[i]);
    }
    std::vector<nvinfer1::DimsExprs> outputs(static_cast<size_t>(build()->getNbOutputs()));
    const int32_t result = build()->getOutputShapes(inputs.data(), static_cast<int32_t>(inputs.size()), nullptr, 0,
                                                    outputs.data(), build()->getNbOutputs(), builder);
    std::vector<std::string> shapes;
    for (const nvinfer1::DimsExprs& dims : outputs) {
      std::vector<std::string> extents;
      for (int32_t i = 0; i < dims.nbDims; ++i) {
        extents.push_back(std::to_string(static_cast<const Extent*>(dims.d[i])->value));
      }
      shapes.push_back(listed(extents));
    }
    return answer(result) + ", \"shapes\": " + listed(shapes);
  }

  /// Whether each position is supported, given the tensors before it.
  std::string formats(std::istream&) {
    auto all = dynamic_descs(inputs_);
    for (const auto& desc : dynamic_descs(outputs_)) all.push_back(desc);
    std::vector<std::string> printed;
    for (size_t i = 0; i < all.size(); ++i) {
      const bool is_supported =
          build()->supportsFormatCombination(static_cast<int32_t>(i), all.data(), static_cast<int32_t>(inputs_.size()),
                                             static_cast<int32_t>(outputs_.size()));
      printed.push_back(is_supported ? "true" : "false");
    }
    return answer(0) + ", \"formats\": " + listed(printed);
  }

  std::string workspace_size(std::istream&) {
    const auto inputs = dynamic_descs(inputs_);
    const auto outputs = dynamic_descs(outputs_);
    return answer(static_cast<int64_t>(build()->getWorkspaceSize(
        inputs.data(), static_cast<int32_t>(inputs.size()), outputs.data(), static_cast<int32_t>(outputs.size()))));
  }

  std::string configure(std::istream&) {
    const auto inputs = dynamic_descs(inputs_);
    const auto outputs = dynamic_descs(outputs_);
    return answer(build()->configurePlugin(inputs.data(), static_cast<int32_t>(inputs.size()), outputs.data(),
                                           static_cast<int32_t>(outputs.size())));
  }

  std::string shape_change(std::istream&) {
    const auto inputs = descs(inputs_);
    const auto outputs = descs(outputs_);
    return answer(runtime()->onShapeChange(inputs.data(), static_cast<int32_t>(inputs.size()), outputs.data(),
                                           static_cast<int32_t>(outputs.size())));
  }

  std::string set_workspace(std::istream& words) {
    std::string address;
    words >> address;
    workspace_ = device_.address(address);
    return answer(0);
  }

  int32_t run() {
    std::vector<const void*> inputs;
    std::vector<void*> outputs;
    for (const Tensor& tensor : inputs_) inputs.push_back(reinterpret_cast<const void*>(tensor.address));
    for (const Tensor& tensor : outputs_) outputs.push_back(reinterpret_cast<void*>(tensor.address));
    return runtime()->enqueue(descs(inputs_).data(), descs(outputs_).data(), inputs.data(), outputs.data(),
                              reinterpret_cast<void*>(workspace_), device_.stream());
  }

  nvinfer1::IPluginV3& plugin() {
    if (plugin_ == nullptr) throw std::runtime_error("there is no plugin: create one first");
    return *plugin_;
  }

  nvinfer1::IPluginV3OneBuild* build() {
    return static_cast<nvinfer1::IPluginV3OneBuild*>(
        plugin().getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
  }

  nvinfer1::IPluginV3OneRuntime* runtime() {
    return static_cast<nvinfer1::IPluginV3OneRuntime*>(
        plugin().getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
  }

  Device& device_;
  Logger logger_;
  std::map<std::string, nvinfer1::IPluginCreatorV3One*> creators_;
  std::deque<std::string> names_;
  std::deque<int64_t> integers_;
  std::deque<int32_t> short_integers_;
  std::deque<float> floats_;
  std::vector<PluginField> fields_;
  std::string type_;
  std::unique_ptr<nvinfer1::IPluginV3> plugin_;
  std::vector<Tensor> inputs_;
  std::vector<Tensor> outputs_;
  uint64_t workspace_ = 0;

  Commands commands_ = {
      {"int", [this](auto& words) { return add_attribute(words, integers_, PluginFieldType::kINT64); }},
      {"int32", [this](auto& words) { return add_attribute(words, short_integers_, PluginFieldType::kINT32); }},
      {"float", [this](auto& words) { return add_attribute(words, floats_, PluginFieldType::kFLOAT32); }},
      {"create", [this](auto& words) { return create(words); }},
      {"serialize", [this](auto& words) { return serialize(words); }},
      {"clone", [this](auto&) { return adopt(runtime()->attachToContext(nullptr)); }},
      {"destroy", [this](auto&) { return adopt(nullptr); }},
      {"input", [this](auto& words) { return add_tensor(words, inputs_); }},
      {"output", [this](auto& words) { return add_tensor(words, outputs_); }},
      {"forget", [this](auto&) { return forget(); }},
      {"workspace", [this](auto& words) { return set_workspace(words); }},
      {"types", [this](auto& words) { return types(words); }},
      {"output_shapes", [this](auto& words) { return output_shapes(words); }},
      {"formats", [this](auto& words) { return formats(words); }},
      {"workspace_size", [this](auto& words) { return workspace_size(words); }},
      {"configure", [this](auto& words) { return configure(words); }},
      {"shape_change", [this](auto& words) { return shape_change(words); }},
      {"enqueue", [this](auto&) { return answer(run()); }},
  };
};

void obey_all(const char* library_path) {
  const std::unique_ptr<Device> device = open_device();
  Driver driver(library_path, *device);
  for (std::string line; std::getline(std::cin, line);) {
    const std::string answer = driver.obey(line);
    std::vector<std::string> log;
    for (const std::string& message : driver.take_log()) log.push_back(quoted(message));
    // Flushed, so that whoever reads knows where a program that ends here got to.
    std::cout << "{" << answer << ", \"log\": " << listed(log) << ", \"events\": " << device->take_events() << "}"
              << std::endl;
  }
}

}  // namespace

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return result + "\"";
}

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cout << "{\"error\": \"give one argument, the plugin library; commands come from standard input\"}\n";
    return 2;
  }
  try {
    obey_all(argv[1]);
  } catch (const std::exception& problem) {
    std::cout << "{\"error\": " << quoted(problem.what()) << "}" << std::endl;
    return 1;
  }
  return 0;
}
