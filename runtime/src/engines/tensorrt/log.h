// What TensorRT reports while it works: its functions return only that they failed.

#pragma once

#include <memory>
#include <string>

namespace sala::tensorrt {

/// Collects errors. Safe to use from several threads; must outlive everything made with it.
class Log {
 public:
  /// `versioned`: in the form of Interface::versioned_logger.
  explicit Log(bool versioned);
  ~Log();

  /// The ILogger to give to TensorRT.
  void* logger() const;

  /// The errors since the last call, in one line.
  std::string take_errors();

 private:
  struct Errors;
  class Plain;
  class Versioned;

  std::unique_ptr<Errors> errors_;
  std::unique_ptr<Plain> plain_;
  std::unique_ptr<Versioned> versioned_;
};

}  // namespace sala::tensorrt
