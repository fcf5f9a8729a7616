// Reads the token ids of a prompt from standard input while they come, and prints the ids that follow: C++, linked
// statically with Sala::runtime. Usage: generate BUNDLE [LIBONNXRUNTIME LIBSALA_ORT]

#include <iostream>

#include "sala/model.h"
#include "sala/prefiller.h"

int fail(const sala::Error& error) {
  std::cerr << "generate: " << sala::name_of(error.code) << ": " << error.message << std::endl;
  return 1;
}

int main(int count, char** arguments) {
  if (count != 2 && count != 4) return fail({sala::ErrorCode::kInvalidArgument, "give a bundle"});
  sala::LoadOptions libraries;
  if (count == 4) {
    libraries.onnxruntime_library = arguments[2];
    libraries.operators_library = arguments[3];
  }
  const auto model = sala::Model::load(arguments[1], libraries);
  if (!model) return fail(model.error());
  auto session = model->create_session({.max_context = 65536, .chunk_tokens = {}});
  if (!session) return fail(session.error());

  auto prefiller = sala::Prefiller::create(*session, {});  // of unknown length
  if (!prefiller) return fail(prefiller.error());
  for (int32_t token; std::cin >> token;) {
    if (const auto fed = prefiller->feed({&token, 1}); !fed) return fail(fed.error());
  }
  if (const auto logits = prefiller->finish(); !logits) return fail(logits.error());

  auto generation = session->generate({.max_new_tokens = 16, .sampling = {}, .stop_tokens = {}});
  if (!generation) return fail(generation.error());
  auto token = generation->next();
  for (; token && *token; token = generation->next()) std::cout << **token << ' ' << std::flush;
  std::cout << std::endl;
  return token ? 0 : fail(token.error());
}
