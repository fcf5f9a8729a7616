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

/// Of 2 MiB on the GPUs there are: 16 MiB. A fork that goes on from the middle of merged pages copies them.
constexpr size_t kMergedPages = 8;

/// Physical memory of the GPU. It is free again when it is mapped nowhere and this is gone.
class DevicePage final : public Page {
 public:
  DevicePage(int64_t& live, size_t count, const Device& device, CUmemGenericAllocationHandle handle)
      : Page(live, count), device_(device), handle_(handle) {}
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
    if (window_ != nullptr) free(window_, bytes_of(kMergedPages));
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
    std::vector<PageRef> pages;
    while (pages.size() < count) {
      auto page = create_one(1, count);
      if (!page) return page.error();
      pages.push_back(*std::move(page));
    }
    return pages;
  }

  size_t merged_pages() const override { return kMergedPages; }
  Expected<PageRef> create_merged() override { return create_one(kMergedPages, kMergedPages); }

  Status copy(std::span<const PageRef> to, const char* from) override {
    if (window_ == nullptr) {
      const auto reserved = reserve(bytes_of(kMergedPages));
      if (!reserved) return reserved.error();
      window_ = *reserved;
    }
    for (size_t i = 0, count = 0; i < to.size(); i += count) {
      count = to[i]->count();
      SALA_RETURN_IF_ERROR(map(window_, to.subspan(i, count)));
      const Status copied = device_->copy(window_, from + bytes_of(i), bytes_of(count));
      SALA_RETURN_IF_ERROR(unmap(window_, count));
      if (!copied) return copied;
    }
    return success();
  }

  Status map(char* at, std::span<const PageRef> pages) override {
    const Device::Current current(*device_);
    const auto bytes = [&](size_t count) { return static_cast<size_t>(bytes_of(count)); };
    size_t done = 0;
    Status mapped = success();
    while (mapped && done < pages.size()) {
      const auto& page = static_cast<const DevicePage&>(*pages[done]);
      mapped = check(driver().mem_map(address(at) + bytes(done), bytes(page.count()), 0, page.handle(), 0),
                     "map a page of memory");
      if (mapped) done += page.count();
    }
    if (mapped) {
      const CUmemAccessDesc access{location(*device_), kMemAccessFlagsProtReadWrite};
      mapped = check(driver().mem_set_access(address(at), bytes(done), &access, 1), "open pages of memory");
    }
    if (!mapped && done > 0) SALA_RETURN_IF_ERROR(unmap(at, done));
    return mapped;
  }

  Status unmap(char* at, size_t count) override {
    const Device::Current current(*device_);
    return check(driver().mem_unmap(address(at), static_cast<size_t>(bytes_of(count))), "unmap memory");
  }

  Status zero(char* at, size_t count) override { return device_->set_zero(at, bytes_of(count)); }
  Status read(void* host, const void* from, int64_t bytes) override { return device_->read(host, from, bytes); }
  Status write(void* to, const void* host, int64_t bytes) override { return device_->write(to, host, bytes); }
  Status copy(void* to, const void* from, int64_t bytes) override { return device_->copy(to, from, bytes); }

 private:
  const CudaDriver& driver() const { return device_->driver(); }
  Status check(CUresult result, std::string_view what) const { return driver().check(result, what); }

  int64_t bytes_of(size_t pages) const { return static_cast<int64_t>(pages) * page_bytes_; }

  /// Memory of `count` pages in one; `needed` are what the caller needs in all.
  Expected<PageRef> create_one(size_t count, size_t needed) {
    const Device::Current current(*device_);
    const CUmemAllocationProp wanted = properties(*device_);
    CUmemGenericAllocationHandle handle = 0;
    const CUresult result = driver().mem_create(&handle, static_cast<size_t>(bytes_of(count)), &wanted, 0);
    if (result == kCudaErrorOutOfMemory) return no_room(needed);
    SALA_RETURN_IF_ERROR(check(result, "create a page of memory"));
    return make_page<DevicePage>(count, *device_, handle);
  }

  Error no_room(size_t pages) const {
    const auto free = device_->free_bytes();
    if (!free) return free.error();
    return error(ErrorCode::kOutOfMemory, "no room for ", bytes_of(pages), " bytes of device memory, ", *free,
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
