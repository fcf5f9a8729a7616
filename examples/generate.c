/* Reads the token ids of a prompt from standard input, keeps the state of the session in a file, and prints the ids
 * that follow: C, linked with libsala. A second run on the same STATE goes on from where the first one stopped. Usage:
 * generate BUNDLE STATE [LIBONNXRUNTIME LIBSALA_ORT] */

#include <sala.h>
#include <stdio.h>
#include <stdlib.h>

/* Ends the program if there is an error. */
static void check(sala_error* error) {
  if (error == NULL) return;
  fprintf(stderr, "generate: %s: %s\n", sala_error_name(error), sala_error_message(error));
  sala_error_destroy(error);
  exit(1);
}

static int show(const sala_prefill_progress* progress, void* user_data) {
  (void)user_data;
  fprintf(stderr, "prefill %lld tokens, %.1f s\n", (long long)progress->tokens_done, progress->seconds);
  return 1; /* go on */
}

static int exists(const char* path) {
  FILE* file = fopen(path, "rb");
  if (file != NULL) fclose(file);
  return file != NULL;
}

static void read_prompt(sala_session* session) {
  sala_prefill_options options = SALA_PREFILL_OPTIONS_INIT;
  sala_prefiller* prefiller = NULL;
  int token;
  options.on_progress = show;
  check(sala_prefiller_create(session, &options, -1, &prefiller));
  while (scanf("%d", &token) == 1) {
    const int32_t id = token;
    check(sala_prefiller_feed(prefiller, &id, 1));
  }
  check(sala_prefiller_finish(prefiller));
  sala_prefiller_destroy(prefiller);
}

static void generate(sala_session* session) {
  sala_generate_options options = SALA_GENERATE_OPTIONS_INIT;
  sala_generation* generation = NULL;
  int32_t token, finish;
  options.max_new_tokens = 16;
  check(sala_generation_create(session, &options, NULL, &generation));
  for (;;) {
    check(sala_generation_next(generation, &token, &finish));
    if (finish != SALA_FINISH_NONE) break;
    printf("%d ", (int)token);
    fflush(stdout);
  }
  printf("\n");
  sala_generation_destroy(generation);
}

int main(int count, char** arguments) {
  sala_load_options options = SALA_LOAD_OPTIONS_INIT;
  sala_session_options sizes = SALA_SESSION_OPTIONS_INIT;
  sala_model* model = NULL;
  sala_session* session = NULL;
  if (count != 3 && count != 5) {
    fprintf(stderr, "usage: generate BUNDLE STATE [LIBONNXRUNTIME LIBSALA_ORT]\n");
    return 2;
  }
  if (count == 5) {
    options.onnxruntime_library = arguments[3];
    options.operators_library = arguments[4];
  }
  sizes.max_context = 65536;
  check(sala_model_load(arguments[1], &options, &model));
  if (exists(arguments[2])) {
    check(sala_session_restore(model, arguments[2], &sizes, &session));
  } else {
    check(sala_session_create(model, &sizes, &session));
  }
  read_prompt(session);
  generate(session);
  check(sala_session_save(session, arguments[2]));
  sala_session_destroy(session);
  sala_model_destroy(model);
  return 0;
}
