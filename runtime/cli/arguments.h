// The command line of sala-run.

#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "sala/model.h"
#include "sala/status.h"

namespace sala::cli {

extern const std::string_view kUsage;

struct Arguments {
  std::string bundle;
  std::optional<std::string> tokens;
  std::optional<std::string> load_state;
  std::optional<std::string> save_state;
  LoadOptions load;
  SessionOptions session;
  GenerateOptions generate;
  bool no_decode_graph = false;
  bool json = false;
  bool version = false;
  bool help = false;
};

/// Reads the words by getopt_long. kInvalidArgument names the first that is wrong, or what is missing. With `--help` or
/// `--version` nothing is missing.
Expected<Arguments> parse(int count, char** values);

}  // namespace sala::cli
