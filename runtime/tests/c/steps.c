/* Does what the lines of standard input say through the C interface, so that tests in Python can ask for anything and
 * compare. An answer is one line: `ok`, what was asked for, or `error CODE NAME MESSAGE`. Token files and logit files
 * hold int32 and fp32. Usage: sala_c_steps LIBONNXRUNTIME LIBSALA_ORT
 *
 *   load BUNDLE                      session MAX_CONTEXT CHUNK       restore STATE MAX_CONTEXT CHUNK
 *   prefill TOKENS CONTEXT_LENGTH    stream TOKENS CONTEXT_LENGTH PIECE    decode TOKEN
 *   logits FILE                      generate COUNT TEMPERATURE SEED       facts
 *   save STATE                       reset                             check COUNT TEMPERATURE SEED
 *   target STATE, to save to it after steps of this session that follow    finish TOKENS, the room it must have
 *   session MAX_CONTEXT CHUNK CHECKPOINTS                                  tokens FILE
 *   fork, which keeps a fork as the other session                          swap the session and the other
 *   checkpoint    checkpoints, their positions    rewind POSITION, where it went    bytes of all caches
 *   drop the session */

#include <sala.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char* onnxruntime;
static const char* operators;
static sala_model* model;
static sala_session* session;
static sala_session* other;
static sala_state_target* target;

static void answer(sala_error* error) {
  if (error == NULL) {
    printf("ok\n");
  } else {
    printf("error %d %s %s\n", (int)sala_error_code(error), sala_error_name(error), sala_error_message(error));
    sala_error_destroy(error);
  }
}

static int32_t* read_tokens(const char* path, size_t* count) {
  FILE* file = fopen(path, "rb");
  int32_t* tokens;
  if (file == NULL) exit(3);
  fseek(file, 0, SEEK_END);
  *count = (size_t)ftell(file) / sizeof(int32_t);
  rewind(file);
  tokens = malloc(*count * sizeof(int32_t) + 1);
  if (fread(tokens, sizeof(int32_t), *count, file) != *count) exit(3);
  fclose(file);
  return tokens;
}

static sala_error* load(const char* bundle) {
  sala_load_options options = SALA_LOAD_OPTIONS_INIT;
  options.onnxruntime_library = onnxruntime;
  options.operators_library = operators;
  options.threads = 2;
  sala_model_destroy(model);
  model = NULL;
  return sala_model_load(bundle, &options, &model);
}

/* A new session; restored from `state` if that is not NULL. */
static sala_error* begin(const char* state, long max_context, long chunk_tokens, long max_checkpoints) {
  sala_session_options options = SALA_SESSION_OPTIONS_INIT;
  options.max_context = max_context;
  options.chunk_tokens = chunk_tokens;
  options.max_checkpoints = max_checkpoints;
  sala_session_destroy(session);
  session = NULL;
  return state == NULL ? sala_session_create(model, &options, &session)
                       : sala_session_restore(model, state, &options, &session);
}

/* In pieces of `piece` tokens as a stream of unknown length; whole if that is 0. */
static sala_error* prefill(const char* path, long context_length, long piece) {
  sala_prefill_options options = SALA_PREFILL_OPTIONS_INIT;
  sala_prefiller* prefiller = NULL;
  sala_error* error;
  size_t count, done;
  int32_t* tokens = read_tokens(path, &count);
  options.context_length = context_length;
  if (piece == 0) {
    error = sala_session_prefill(session, tokens, count, &options);
  } else {
    error = sala_prefiller_create(session, &options, -1, &prefiller);
    for (done = 0; error == NULL && done < count; done += (size_t)piece) {
      const size_t left = count - done;
      error = sala_prefiller_feed(prefiller, tokens + done, left < (size_t)piece ? left : (size_t)piece);
    }
    if (error == NULL) error = sala_prefiller_finish(prefiller);
    sala_prefiller_destroy(prefiller);
  }
  free(tokens);
  return error;
}

static sala_error* generate(long count, double temperature, long seed) {
  sala_generate_options options = SALA_GENERATE_OPTIONS_INIT;
  sala_sampling_options sampling = SALA_SAMPLING_OPTIONS_INIT;
  sala_generation* generation = NULL;
  int32_t token, finish = SALA_FINISH_NONE;
  sala_error* error;
  options.max_new_tokens = count;
  sampling.temperature = temperature;
  sampling.seed = (uint64_t)seed;
  error = sala_generation_create(session, &options, &sampling, &generation);
  while (error == NULL) {
    error = sala_generation_next(generation, &token, &finish);
    if (error != NULL || finish != SALA_FINISH_NONE) break;
    printf("%d ", (int)token);
  }
  if (error == NULL) printf("finish %d ", (int)finish);
  sala_generation_destroy(generation);
  return error;
}

/* Saves to the target that was opened, if its disk has room for `tokens` tokens, and lets it go. */
static sala_error* finish(long tokens) {
  int64_t bytes = 0;
  sala_error* error = sala_model_state_bytes(model, tokens, &bytes);
  if (error == NULL) error = sala_state_target_require_room(target, bytes);
  if (error == NULL) error = sala_session_save_to(session, target);
  sala_state_target_destroy(target);
  target = NULL;
  return error;
}

static sala_error* check(long count, double temperature, long seed) {
  sala_generate_options options = SALA_GENERATE_OPTIONS_INIT;
  sala_sampling_options sampling = SALA_SAMPLING_OPTIONS_INIT;
  options.max_new_tokens = count;
  sampling.temperature = temperature;
  sampling.seed = (uint64_t)seed;
  return sala_model_check_generate(model, &options, &sampling);
}

static void write_logits(const char* path) {
  size_t count;
  const float* logits = sala_session_logits(session, &count);
  FILE* file = fopen(path, "wb");
  if (file == NULL || fwrite(logits, sizeof(float), count, file) != count) exit(3);
  fclose(file);
  printf("ok\n");
}

static void write_context(const char* path) {
  size_t count;
  const int32_t* tokens = sala_session_tokens(session, &count);
  FILE* file = fopen(path, "wb");
  if (file == NULL || fwrite(tokens, sizeof(int32_t), count, file) != count) exit(3);
  fclose(file);
  printf("ok\n");
}

static sala_error* make_fork(void) {
  sala_session* made = NULL;
  sala_error* error = sala_session_fork(session, &made);
  if (error != NULL) return error;
  sala_session_destroy(other);
  other = made;
  return NULL;
}

static void swap(void) {
  sala_session* before = session;
  session = other;
  other = before;
  printf("ok\n");
}

static void drop(void) {
  sala_session_destroy(session);
  session = NULL;
  printf("ok\n");
}

static void checkpoints(void) {
  size_t count, i;
  const int64_t* positions = sala_session_checkpoints(session, &count);
  printf("at");
  for (i = 0; i < count; ++i) printf(" %lld", (long long)positions[i]);
  printf("\n");
}

static void go_back(long position) {
  int64_t reached = -1;
  sala_error* error = sala_session_rewind(session, position, &reached);
  if (error == NULL) {
    printf("%lld\n", (long long)reached);
  } else {
    answer(error);
  }
}

static void facts(void) {
  size_t eos;
  const int32_t* ids = sala_model_eos_token_ids(model, &eos);
  printf("%s %s %s %lld %lld %zu %d\n", sala_model_engine_name(model), sala_model_precision(model),
         sala_model_fingerprint(model), (long long)sala_model_vocab_size(model),
         (long long)sala_model_default_max_context(model), eos, (int)ids[0]);
}

int main(int count, char** arguments) {
  char line[8192], verb[16], path[4096];
  long a, b, c;
  double real;
  if (count != 3) return 2;
  onnxruntime = arguments[1];
  operators = arguments[2];
  while (fgets(line, sizeof line, stdin) != NULL) {
    a = b = c = 0;
    if (sscanf(line, "generate %ld %lf %ld", &a, &real, &b) == 3) {
      answer(generate(a, real, b));
    } else if (sscanf(line, "check %ld %lf %ld", &a, &real, &b) == 3) {
      answer(check(a, real, b));
    } else if (sscanf(line, "finish %ld", &a) == 1) {
      answer(finish(a));
    } else if (sscanf(line, "session %ld %ld %ld", &a, &b, &c) >= 2) {
      answer(begin(NULL, a, b, c));
    } else if (sscanf(line, "rewind %ld", &a) == 1) {
      go_back(a);
    } else if (sscanf(line, "decode %ld", &a) == 1) {
      answer(sala_session_decode(session, (int32_t)a));
    } else if (sscanf(line, "%15s %4095s %ld %ld", verb, path, &a, &b) >= 2) {
      if (strcmp(verb, "load") == 0) answer(load(path));
      if (strcmp(verb, "restore") == 0) answer(begin(path, a, b, 0));
      if (strcmp(verb, "prefill") == 0) answer(prefill(path, a, 0));
      if (strcmp(verb, "stream") == 0) answer(prefill(path, a, b));
      if (strcmp(verb, "logits") == 0) write_logits(path);
      if (strcmp(verb, "tokens") == 0) write_context(path);
      if (strcmp(verb, "save") == 0) answer(sala_session_save(session, path));
      if (strcmp(verb, "target") == 0) answer(sala_state_target_open(path, &target));
    } else if (strncmp(line, "facts", 5) == 0) {
      facts();
    } else if (strncmp(line, "checkpoints", 11) == 0) {
      checkpoints();
    } else if (strncmp(line, "checkpoint", 10) == 0) {
      answer(sala_session_checkpoint(session));
    } else if (strncmp(line, "fork", 4) == 0) {
      answer(make_fork());
    } else if (strncmp(line, "swap", 4) == 0) {
      swap();
    } else if (strncmp(line, "drop", 4) == 0) {
      drop();
    } else if (strncmp(line, "bytes", 5) == 0) {
      printf("%lld\n", (long long)sala_model_cache_bytes(model));
    } else if (strncmp(line, "reset", 5) == 0) {
      answer(sala_session_reset(session));
    } else {
      return 2;
    }
    fflush(stdout);
  }
  sala_state_target_destroy(target);
  sala_session_destroy(session);
  sala_session_destroy(other);
  sala_model_destroy(model);
  return 0;
}
