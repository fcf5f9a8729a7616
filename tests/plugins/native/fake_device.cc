// A GPU that computes nothing: libcuda.so.1 is fake_cuda.cc, addresses are made up by whoever sends the commands.

#include "device.h"
#include "fake_cuda.h"

namespace {

class FakeDevice final : public Device {
 public:
  Commands commands(std::function<int32_t()> /*enqueue*/) override {
    const auto with_number = [](void (*set)(int)) {
      return [set](std::istream& words) {
        int number = 0;
        words >> number;
        set(number);
        return "\"result\": " + std::to_string(number);
      };
    };
    const auto fail = [](std::istream& words) {
      std::string function;
      words >> function;
      fake_cuda_fail(function.c_str());
      return std::string("\"result\": 0");
    };
    return {{"sm", with_number(fake_cuda_set_sm)}, {"context", with_number(fake_cuda_set_context)}, {"fail", fail}};
  }

  uint64_t address(const std::string& word) const override { return std::stoull(word); }

  CUstream stream() const override { return reinterpret_cast<CUstream>(uint64_t{0x5712ea3}); }

  std::string take_events() override { return fake_cuda_take_events(); }
};

}  // namespace

std::unique_ptr<Device> open_device() { return std::make_unique<FakeDevice>(); }
