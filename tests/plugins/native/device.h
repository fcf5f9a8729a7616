// The GPU that plugin_driver.cc gives to a plugin. Which one is decided when the program is linked: fake_device.cc
// plays one, cuda_device.cc uses the machine's own.

#pragma once

#include <cuda.h>

#include <cstdint>
#include <functional>
#include <istream>
#include <map>
#include <memory>
#include <string>

/// Obeys the words after its name and returns the members of the answer, without braces. Throws std::runtime_error.
using Command = std::function<std::string(std::istream&)>;
using Commands = std::map<std::string, Command>;

class Device {
 public:
  virtual ~Device() = default;

  /// What this device obeys beside what plugin_driver.cc does. `enqueue` runs the plugin on `stream()` and returns its
  /// result.
  virtual Commands commands(std::function<int32_t()> enqueue) = 0;

  /// The address that a word of `input`, `output` or `workspace` stands for. Throws if it stands for none.
  virtual uint64_t address(const std::string& word) const = 0;

  virtual CUstream stream() const = 0;

  /// What a fake CUDA driver was asked since the last call, as a JSON array; empty on a real one.
  virtual std::string take_events() = 0;
};

/// Throws std::runtime_error with one line if there is no such device.
std::unique_ptr<Device> open_device();

/// `text` as a JSON string.
std::string quoted(const std::string& text);
