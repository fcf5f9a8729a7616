// The first GPU of this machine. libcuda.so.1 is opened when the program runs, so that it also starts, and says what is
// missing, where there is none.

#include <dlfcn.h>

#include <fstream>
#include <stdexcept>
#include <utility>
#include <vector>

#include "device.h"

namespace {

#define SALA_CUDA_FUNCTIONS(X)   \
  X(cuInit)                      \
  X(cuDriverGetVersion)          \
  X(cuDeviceGet)                 \
  X(cuDeviceGetName)             \
  X(cuDeviceGetAttribute)        \
  X(cuDevicePrimaryCtxRetain)    \
  X(cuDevicePrimaryCtxRelease)   \
  X(cuCtxSetCurrent)             \
  X(cuMemAlloc)                  \
  X(cuMemFree)                   \
  X(cuMemcpyHtoDAsync)           \
  X(cuMemcpyDtoHAsync)           \
  X(cuMemsetD8Async)             \
  X(cuStreamCreate)              \
  X(cuStreamDestroy)             \
  X(cuStreamSynchronize)         \
  X(cuStreamBeginCapture)        \
  X(cuStreamEndCapture)          \
  X(cuGraphGetNodes)             \
  X(cuGraphInstantiateWithFlags) \
  X(cuGraphLaunch)               \
  X(cuGraphDestroy)              \
  X(cuGraphExecDestroy)          \
  X(cuGetErrorName)              \
  X(cuGetErrorString)

// cuda.h renames functions to the versioned symbols that its declarations fit; the second macro sees the new name.
#define SALA_SYMBOL_TEXT(name) #name
#define SALA_SYMBOL(name) SALA_SYMBOL_TEXT(name)

/// Entry points of libcuda.so.1; members are named as the functions are.
struct Cuda {
#define SALA_MEMBER(name) decltype(&::name) name;
  SALA_CUDA_FUNCTIONS(SALA_MEMBER)
#undef SALA_MEMBER

  void check(CUresult result, const std::string& what) const {
    if (result == CUDA_SUCCESS) return;
    const char* name = nullptr;
    const char* text = nullptr;
    if (cuGetErrorName(result, &name) != CUDA_SUCCESS || name == nullptr) name = "unknown CUDA error";
    if (cuGetErrorString(result, &text) != CUDA_SUCCESS || text == nullptr) text = "no description";
    throw std::runtime_error(what + ": " + name + " (" + std::to_string(static_cast<int>(result)) + "): " + text);
  }
};

template <class Function>
void resolve(void* library, const char* symbol, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, symbol));
  if (function == nullptr) throw std::runtime_error(std::string("the NVIDIA driver lacks ") + symbol);
}

Cuda load_cuda() {
  // Never closed: libcuda keeps threads and at-exit handlers of its own.
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(std::string("there is no NVIDIA driver: ") + dlerror());
  Cuda cuda{};
#define SALA_RESOLVE(name) resolve(library, SALA_SYMBOL(name), cuda.name);
  SALA_CUDA_FUNCTIONS(SALA_RESOLVE)
#undef SALA_RESOLVE
  return cuda;
}

std::string read_word(std::istream& words, const char* what) {
  std::string word;
  if (!(words >> word)) throw std::runtime_error(std::string("a command needs ") + what);
  return word;
}

uint64_t read_number(std::istream& words, const char* what) {
  uint64_t number = 0;
  if (!(words >> number)) throw std::runtime_error(std::string("a command needs ") + what);
  return number;
}

/// The rest of the line, which may hold blanks.
std::string read_path(std::istream& words) {
  std::string path;
  std::getline(words >> std::ws, path);
  if (path.empty()) throw std::runtime_error("a command needs a path");
  return path;
}

std::vector<char> file_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  std::vector<char> bytes(static_cast<size_t>(file.tellg()));
  file.seekg(0).read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file) throw std::runtime_error(path + ": cannot be read");
  return bytes;
}

const std::string kDone = "\"result\": 0";

class CudaDevice final : public Device {
 public:
  CudaDevice() : cuda_(load_cuda()) {
    cuda_.check(cuda_.cuInit(0), "cuInit");
    cuda_.check(cuda_.cuDeviceGet(&device_, 0), "cuDeviceGet");
    cuda_.check(cuda_.cuDevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain");
    cuda_.check(cuda_.cuCtxSetCurrent(context_), "cuCtxSetCurrent");
    cuda_.check(cuda_.cuStreamCreate(&stream_, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  }

  // After a kernel's fault every call fails, and the process ends: there is nobody left to tell.
  ~CudaDevice() override {
    if (replayed_ != nullptr) cuda_.cuGraphExecDestroy(replayed_);
    cuda_.cuStreamDestroy(stream_);
    for (const auto& [name, buffer] : buffers_) cuda_.cuMemFree(buffer.address);
    cuda_.cuDevicePrimaryCtxRelease(device_);
  }

  Commands commands(std::function<int32_t()> enqueue) override {
    return {
        {"device", [this](auto&) { return describe(); }},
        {"buffer", [this](auto& words) { return add_buffer(words); }},
        {"fill", [this](auto& words) { return fill(words); }},
        {"write", [this](auto& words) { return write(words); }},
        {"read", [this](auto& words) { return read(words); }},
        {"synchronize", [this](auto&) { return synchronize("synchronize"), kDone; }},
        {"capture", [this, enqueue = std::move(enqueue)](auto&) { return capture(enqueue); }},
        {"replay", [this](auto&) { return replay(); }},
    };
  }

  uint64_t address(const std::string& word) const override { return buffer(word).address; }
  CUstream stream() const override { return stream_; }
  std::string take_events() override { return "[]"; }

 private:
  struct Buffer {
    CUdeviceptr address = 0;
    uint64_t bytes = 0;
  };

  const Buffer& buffer(const std::string& name) const {
    const auto found = buffers_.find(name);
    if (found == buffers_.end()) throw std::runtime_error("there is no buffer " + name);
    return found->second;
  }

  int attribute(CUdevice_attribute which) const {
    int value = 0;
    cuda_.check(cuda_.cuDeviceGetAttribute(&value, which, device_), "cuDeviceGetAttribute");
    return value;
  }

  std::string describe() const {
    char name[256] = "";
    int version = 0;
    cuda_.check(cuda_.cuDeviceGetName(name, sizeof(name), device_), "cuDeviceGetName");
    cuda_.check(cuda_.cuDriverGetVersion(&version), "cuDriverGetVersion");
    const int sm = 10 * attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) +
                   attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
    return kDone + ", \"name\": " + quoted(name) + ", \"sm\": " + std::to_string(sm) +
           ", \"cuda_version\": " + std::to_string(version);
  }

  std::string add_buffer(std::istream& words) {
    const std::string name = read_word(words, "the name of a buffer");
    const uint64_t bytes = read_number(words, "a number of bytes");
    if (buffers_.contains(name)) throw std::runtime_error("there is a buffer " + name + " already");
    Buffer added{0, bytes};
    cuda_.check(cuda_.cuMemAlloc(&added.address, bytes), "cuMemAlloc of " + std::to_string(bytes) + " for " + name);
    buffers_[name] = added;
    return kDone + ", \"address\": " + std::to_string(added.address);
  }

  std::string fill(std::istream& words) {
    const std::string name = read_word(words, "the name of a buffer");
    const Buffer& filled = buffer(name);
    const auto byte = static_cast<unsigned char>(read_number(words, "a byte"));
    cuda_.check(cuda_.cuMemsetD8Async(filled.address, byte, filled.bytes, stream_), "cuMemsetD8Async of " + name);
    return kDone;
  }

  std::string write(std::istream& words) {
    const std::string name = read_word(words, "the name of a buffer");
    const Buffer& to = buffer(name);
    const std::string path = read_path(words);
    const std::vector<char> bytes = file_bytes(path);
    if (bytes.size() != to.bytes) {
      throw std::runtime_error(path + " holds " + std::to_string(bytes.size()) + " bytes, buffer " + name + " " +
                               std::to_string(to.bytes));
    }
    cuda_.check(cuda_.cuMemcpyHtoDAsync(to.address, bytes.data(), bytes.size(), stream_),
                "cuMemcpyHtoDAsync to " + name);
    synchronize("write of " + name);
    return kDone;
  }

  std::string read(std::istream& words) {
    const std::string name = read_word(words, "the name of a buffer");
    const Buffer& from = buffer(name);
    const std::string path = read_path(words);
    std::vector<char> bytes(from.bytes);
    cuda_.check(cuda_.cuMemcpyDtoHAsync(bytes.data(), from.address, from.bytes, stream_),
                "cuMemcpyDtoHAsync from " + name);
    synchronize("read of " + name);
    std::ofstream file(path, std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!file.flush()) throw std::runtime_error(path + ": cannot be written");
    return kDone;
  }

  void synchronize(const std::string& what) const { cuda_.check(cuda_.cuStreamSynchronize(stream_), what); }

  std::string capture(const std::function<int32_t()>& enqueue) {
    cuda_.check(cuda_.cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "cuStreamBeginCapture");
    const int32_t result = enqueue();
    CUgraph graph = nullptr;
    const CUresult ended = cuda_.cuStreamEndCapture(stream_, &graph);
    if (result != 0) {
      // The plugin has said why, in the log of this answer; what it left of the graph is of no use.
      if (graph != nullptr) cuda_.cuGraphDestroy(graph);
      return "\"result\": " + std::to_string(result);
    }
    cuda_.check(ended, "cuStreamEndCapture");
    size_t nodes = 0;
    cuda_.check(cuda_.cuGraphGetNodes(graph, nullptr, &nodes), "cuGraphGetNodes");
    if (replayed_ != nullptr) cuda_.cuGraphExecDestroy(std::exchange(replayed_, nullptr));
    cuda_.check(cuda_.cuGraphInstantiateWithFlags(&replayed_, graph, 0), "cuGraphInstantiateWithFlags");
    cuda_.check(cuda_.cuGraphDestroy(graph), "cuGraphDestroy");
    return kDone + ", \"nodes\": " + std::to_string(nodes);
  }

  std::string replay() const {
    if (replayed_ == nullptr) throw std::runtime_error("there is no graph: capture one first");
    cuda_.check(cuda_.cuGraphLaunch(replayed_, stream_), "cuGraphLaunch");
    synchronize("replay");
    return kDone;
  }

  const Cuda cuda_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  CUstream stream_ = nullptr;
  CUgraphExec replayed_ = nullptr;
  std::map<std::string, Buffer> buffers_;
};

}  // namespace

std::unique_ptr<Device> open_device() { return std::make_unique<CudaDevice>(); }
