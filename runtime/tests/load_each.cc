// Loads the bundle of every line of standard input and answers like tests/c/steps.c. Usage: sala_load_each
// LIBONNXRUNTIME LIBSALA_ORT

#include <iostream>
#include <string>

#include "sala/model.h"

int main(int count, char** arguments) {
  if (count != 3) return 2;
  sala::LoadOptions options;
  options.onnxruntime_library = arguments[1];
  options.operators_library = arguments[2];
  for (std::string bundle; std::getline(std::cin, bundle);) {
    const auto model = sala::Model::load(bundle, options);
    if (model) {
      std::cout << "ok" << std::endl;
    } else {
      std::cout << "error " << static_cast<int>(model.error().code) << ' ' << sala::name_of(model.error().code) << ' '
                << model.error().message << std::endl;
    }
  }
  return 0;
}
