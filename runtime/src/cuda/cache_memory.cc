#include "cuda/cache_memory.h"

#include <string_view>
#include <utility>

#include "cuda/device_memory.h"
#include "memory/paged_memory.h"

namespace sala::cuda {

namespace {

CUmemLocation location(const Device& device) { return {kMemLocationTypeDevice, device.handle()}; }

CUmemAllocationProp properties(const Device& device) {
  CUmemAllocationProp properties{};
  properties.type = kMemAllocationTypePinned;
  properties.location = location(device);
  return properties;
}

/// Physical memory of the GPU. It is free again when it is mapped nowhere and this is gone.
class DevicePage final : public Page {
 public:
  DevicePage(int64_t& live, const Device& device, CUmemGenericAllocationHandle handle)
      : Page(live), device_(device), handle_(handle) {}
  ~DevicePage() override {
    const Device::Current current(device_);
    device_.driver().mem_release(handle_);
  }

  CUmemGenericAllocationHandle handle() const { return handle_; }

 private:
  const Device& device_;  // lives as long as the source
  CUmemGenericAllocationHandle handle_;
};

/// Pages by the driver's management of virtual memory: cuMemCreate, cuMemMap and so on of the driver API, section 6.14.
class DevicePages final : public PageSource {
 public:
  DevicePages(std::shared_ptr<const Device> device, int64_t page_bytes)
      : device_(std::move(device)), page_bytes_(page_bytes) {}

  ~DevicePages() override {
    if (window_ != nullptr) free(window_, page_bytes_);
  }

  int64_t page_bytes() const override { return page_bytes_; }
  bool is_on_host() const override { return false; }

  Expected<std::optional<int64_t>> free_bytes() const override {
    const auto free = device_->free_bytes();
    if (!free) return free.error();
    return std::optional(*free);
  }

  Expected<char*> reserve(int64_t bytes) override {
    const Device::Current current(*device_);
    CUdeviceptr at = 0;
    SALA_RETURN_IF_ERROR(
        check(driver().mem_address_reserve(&at, static_cast<size_t>(bytes), 0, 0, 0), "reserve addresses"));
    return reinterpret_cast<char*>(at);
  }

  void free(char* addresses, int64_t bytes) noexcept override {
    const Device::Current current(*device_);
    driver().mem_address_free(address(addresses), static_cast<size_t>(bytes));
  }

  Expected<std::vector<PageRef>> create(const char*, size_t count) override {
    const Device::Current current(*device_);
    const CUmemAllocationProp wanted = properties(*device_);
    std::vector<PageRef> pages;
    while (pages.size() < count) {
      CUmemGenericAllocationHandle handle = 0;
      const CUresult result = driver().mem_create(&handle, static_cast<size_t>(page_bytes_), &wanted, 0);
      if (result == kCudaErrorOutOfMemory) return no_room(count);
      SALA_RETURN_IF_ERROR(check(result, "create a page of memory"));
      pages.push_back(make_page<DevicePage>(*device_, handle));
    }
    return pages;
  }

  Status copy(std::span<const PageRef> to, const char* from) override {
    if (window_ == nullptr) {
      const auto reserved = reserve(page_bytes_);
      if (!reserved) return reserved.error();
      window_ = *reserved;
    }
    for (size_t i = 0; i < to.size(); ++i) {
      SALA_RETURN_IF_ERROR(map(window_, to.subspan(i, 1)));
      const Status copied = device_->copy(window_, from + static_cast<int64_t>(i) * page_bytes_, page_bytes_);
      SALA_RETURN_IF_ERROR(unmap(window_, 1));
      if (!copied) return copied;
    }
    return success();
  }

  Status map(char* at, std::span<const PageRef> pages) override {
    const Device::Current current(*device_);
    const auto bytes = static_cast<size_t>(page_bytes_);
    size_t done = 0;
    Status mapped = success();
    for (; mapped && done < pages.size(); done += mapped ? 1 : 0) {
      const auto handle = static_cast<const DevicePage&>(*pages[done]).handle();
      mapped = check(driver().mem_map(address(at) + done * bytes, bytes, 0, handle, 0), "map a page of memory");
    }
    if (mapped) {
      const CUmemAccessDesc access{location(*device_), kMemAccessFlagsProtReadWrite};
      mapped = check(driver().mem_set_access(address(at), done * bytes, &access, 1), "open pages of memory");
    }
    if (!mapped && done > 0) SALA_RETURN_IF_ERROR(unmap(at, done));
    return mapped;
  }

  Status unmap(char* at, size_t count) override {
    const Device::Current current(*device_);
    return check(driver().mem_unmap(address(at), count * static_cast<size_t>(page_bytes_)), "unmap memory");
  }

  Status zero(char* at, size_t count) override {
    return device_->set_zero(at, static_cast<int64_t>(count) * page_bytes_);
  }
  Status read(void* host, const void* from, int64_t bytes) override { return device_->read(host, from, bytes); }
  Status write(void* to, const void* host, int64_t bytes) override { return device_->write(to, host, bytes); }

 private:
  const CudaDriver& driver() const { return device_->driver(); }
  Status check(CUresult result, std::string_view what) const { return driver().check(result, what); }

  Error no_room(size_t pages) const {
    const auto free = device_->free_bytes();
    if (!free) return free.error();
    return error(ErrorCode::kOutOfMemory, "no room for ", static_cast<int64_t>(pages) * page_bytes_,
                 " bytes of device memory, ", *free,
                 " are free: end other sessions, or other programs on the GPU, or keep contexts shorter");
  }

  std::shared_ptr<const Device> device_;
  int64_t page_bytes_;
  char* window_ = nullptr;  // where a page is mapped while it is filled
};

bool maps_pages(const Device& device) {
  int supported = 0;
  const CUresult result = device.driver().device_get_attribute(
      &supported, kDeviceAttributeVirtualMemoryManagementSupported, device.handle());
  return result == kCudaSuccess && supported != 0;
}

}  // namespace

Expected<std::unique_ptr<Memory>> cache_memory(std::shared_ptr<const Device> device,
                                               const std::optional<DeviceAllocator>& allocator) {
  if (allocator || !maps_pages(*device)) {
    return std::unique_ptr<Memory>(std::make_unique<DeviceMemory>(std::move(device), allocator));
  }
  const Device::Current current(*device);
  const CUmemAllocationProp wanted = properties(*device);
  size_t page_bytes = 0;
  SALA_RETURN_IF_ERROR(device->driver().check(
      device->driver().mem_get_allocation_granularity(&page_bytes, &wanted, kMemAllocGranularityMinimum),
      "ask for the size of a page"));
  auto source = std::make_unique<DevicePages>(device, static_cast<int64_t>(page_bytes));
  return std::unique_ptr<Memory>(std::make_unique<PagedMemory>(std::move(source)));
}

}  // namespace sala::cuda

namespace sala {

Expected<std::unique_ptr<Memory>> cuda_memory(int ordinal) {
  const auto driver = cuda::CudaDriver::load();
  if (!driver) return driver.error();
  const auto devices = cuda::find_devices(*driver);
  if (!devices) return devices.error();
  if (ordinal < 0 || ordinal >= static_cast<int>(devices->size())) {
    return error(ErrorCode::kDeviceMissing, "there is no GPU ", ordinal, ", the driver has ", devices->size(),
                 ": count from 0");
  }
  auto device = cuda::Device::open(*driver, (*devices)[static_cast<size_t>(ordinal)]);
  if (!device) return device.error();
  return cuda::cache_memory(*std::move(device), std::nullopt);
}

}  // namespace sala
