#include "trt/log.h"

#include <atomic>
#include <cstdio>

namespace sala::trt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder = nullptr;

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) { logger_finder = finder; }

void log_error(const char* message) noexcept {
  nvinfer1::ILoggerFinder* finder = logger_finder;
  nvinfer1::ILogger* logger = finder == nullptr ? nullptr : finder->findLogger();
  if (logger != nullptr) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, message);
  } else {
    std::fprintf(stderr, "sala plugins: %s\n", message);
  }
}

}  // namespace sala::trt
