// Restores the state of every line of standard input and answers like tests/c/steps.c. Usage: sala_restore_each
// LIBONNXRUNTIME LIBSALA_ORT BUNDLE

#include <iostream>
#include <string>

#include "sala/model.h"

int main(int count, char** arguments) {
  if (count != 4) return 2;
  sala::LoadOptions options;
  options.onnxruntime_library = arguments[1];
  options.operators_library = arguments[2];
  options.runtime = "onnxruntime";
  options.threads = 1;
  const auto model = sala::Model::load(arguments[3], options);
  if (!model) return 2;
  for (std::string path; std::getline(std::cin, path);) {
    const auto session = model->restore(path);
    if (session) {
      std::cout << "ok" << std::endl;
    } else {
      std::cout << "error " << static_cast<int>(session.error().code) << ' ' << sala::name_of(session.error().code)
                << ' ' << session.error().message << std::endl;
    }
  }
  return 0;
}
