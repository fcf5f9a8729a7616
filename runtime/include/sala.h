/* The C interface of the runtime: load a bundle, make sessions, feed token ids, sample tokens, save and restore.
 *
 * Errors. A function that can fail returns NULL for success, or else an error that you own, read and destroy. Its
 * outputs are then as they were. No C++ exception leaves this library, and nothing is printed. If you pass a NULL
 * handle, path or output, you get SALA_ERROR_INVALID_ARGUMENT. Functions without an error take a NULL handle and return
 * 0 or NULL.
 *
 * After an error. If an argument was wrong (1xx), the object that refused it is as it was. After SALA_ERROR_STOPPED the
 * session holds the chunks that had run. SALA_ERROR_ENGINE_FAILED and 2xx poison it, and you may only call
 * sala_session_reset and sala_session_destroy.
 *
 * Ownership. Strings and arrays that you pass in are copied before the call returns. Memory behind a `const` pointer
 * that you get belongs to the handle. It is valid until you destroy the model, or until the next call that changes the
 * session. You may destroy handles in any order, a model before its sessions, a session before its prefillers,
 * generations and answers. Destroying NULL does nothing.
 *
 * Threads. Any number of threads may use a model at once. A session, with its prefillers and generations, is for one
 * thread at a time. A second call that would change it meanwhile, also one from the progress callback, is refused with
 * SALA_ERROR_INVALID_ARGUMENT. Any thread may call sala_session_stop. Sessions of one model run side by side. Do not
 * destroy a handle while a call on it runs.
 *
 * Options. The first member of an option struct is its size. Begin with the SALA_..._INIT of the struct and set what
 * differs. If you pass NULL instead of options, you get the defaults. Later versions append members whose default is
 * zero, so a program and a library of different minor ABI versions work together. A member that the library does not
 * know and that is not zero is refused.
 *
 * Versions. SALA_ABI_MAJOR is the SONAME's number. It changes when you must compile your program again. SALA_ABI_MINOR
 * changes when something was added. */

#ifndef SALA_H
#define SALA_H

#include <stddef.h>
#include <stdint.h>

#if defined(SALA_BUILDING_LIBRARY)
#define SALA_API __attribute__((visibility("default")))
#else
#define SALA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define SALA_ABI_MAJOR 1
#define SALA_ABI_MINOR 8
#define SALA_ABI_VERSION (SALA_ABI_MAJOR * 1000 + SALA_ABI_MINOR)

/* Returns the SALA_ABI_VERSION of the library that runs. */
SALA_API int32_t sala_abi_version(void);
/* Returns the release, e.g. "0.1.0". */
SALA_API const char* sala_version(void);

/* ---- Errors ------------------------------------------------------------------------------------------------------ */

typedef struct sala_error sala_error;
enum {
  SALA_ERROR_INVALID_ARGUMENT = 100, /* 1xx: an argument was wrong */
  SALA_ERROR_EMPTY_PROMPT = 101,
  SALA_ERROR_TOKEN_OUT_OF_RANGE = 102,
  SALA_ERROR_CONTEXT_EXCEEDED = 103,
  SALA_ERROR_NO_LOGITS = 104,
  SALA_ERROR_BUNDLE_MISSING = 200, /* 2xx: the bundle and weights */
  SALA_ERROR_BUNDLE_DAMAGED = 201,
  SALA_ERROR_BUNDLE_SCHEMA = 202,
  SALA_ERROR_WEIGHTS_MISSING = 203,
  SALA_ERROR_WEIGHTS_UNSUITABLE = 204,
  SALA_ERROR_STATE_UNREADABLE = 300, /* 3xx: a state file */
  SALA_ERROR_STATE_FOREIGN = 301,
  SALA_ERROR_STATE_DAMAGED = 302,
  SALA_ERROR_STATE_VERSION = 303,
  SALA_ERROR_STATE_MODEL = 304,
  SALA_ERROR_STATE_PRECISION = 305,
  SALA_ERROR_STATE_UNWRITABLE = 306,
  SALA_ERROR_LIBRARY_MISSING = 400, /* 4xx: this machine and its libraries */
  SALA_ERROR_LIBRARY_UNUSABLE = 401,
  SALA_ERROR_OUT_OF_MEMORY = 402,
  SALA_ERROR_DEVICE_MISSING = 403,
  SALA_ERROR_DEVICE_UNSUITABLE = 404,
  SALA_ERROR_ENGINE_FAILED = 500, /* 5xx: running */
  SALA_ERROR_SESSION_POISONED = 501,
  SALA_ERROR_STOPPED = 502,
  SALA_ERROR_BUSY = 503,    /* since 1.6 */
  SALA_ERROR_INTERNAL = 900 /* a bug of this library */
};

/* Returns one of SALA_ERROR_..., or 0 for NULL. Later minor versions may add some. */
SALA_API int32_t sala_error_code(const sala_error* error);
/* Returns the code in words, e.g. "ContextExceeded". */
SALA_API const char* sala_error_name(const sala_error* error);
/* Returns one line that says what failed, where, and what to do. It is UTF-8 if your paths are. */
SALA_API const char* sala_error_message(const sala_error* error);
SALA_API void sala_error_destroy(sala_error* error);

/* ---- Models ------------------------------------------------------------------------------------------------------ */

/* A loaded bundle. It is immutable. */
typedef struct sala_model sala_model;

/* Allocates your own device memory, at a multiple of 256 bytes on the engine's GPU. Return NULL if there is no room. It
 * is called with that GPU current, from any thread that uses the model. */
typedef void* (*sala_device_allocate)(int64_t bytes, void* user_data);
typedef void (*sala_device_release)(void* data, int64_t bytes, void* user_data);

/* Called with the bytes of weights loaded so far and in all, in the thread that called. Return 0 to stop the load
 * (SALA_ERROR_STOPPED). Other weights for constants of the engine (int4, nvfp4) are compared before, and reported
 * likewise. */
typedef int32_t (*sala_load_callback)(int64_t done_bytes, int64_t total_bytes, void* user_data);

typedef struct sala_load_options {
  size_t struct_size;
  const char* runtime; /* a name of docs/runtimes.md, or "auto": the first that this machine can run. NULL: "auto" */
  const char* onnxruntime_library; /* path of libonnxruntime. NULL: beside this library, in ../lib, in the system */
  const char* operators_library;   /* path of libsala_ort.so. NULL looks beside this library and in ../lib */
  const char* tensorrt_library;    /* path of libtensorrt_rtx or libnvinfer. NULL looks as for onnxruntime_library */
  const char* runtime_cache;       /* file where TensorRT for RTX keeps what it compiled. NULL is beside the bundle */
  void* cuda_stream;               /* a CUstream that all sessions use in turn. NULL gives each session its own */
  sala_device_allocate device_allocate; /* for everything on the GPU, weights included. NULL is the driver's */
  sala_device_release device_release;   /* set it if and only if you set device_allocate */
  void* device_user_data;               /* passed to both */
  int32_t threads;         /* threads that load weights and, on the CPU, compute, at most 1,024. 0: one for each core */
  int32_t verify_hashes;   /* not 0 hashes all files but weights first. Loaded files are always hashed */
  int32_t no_decode_graph; /* not 0 enqueues every decode step instead of replaying a CUDA graph */
  /* Since 1.1. */
  const char* weights;            /* a checkpoint directory whose weights take the place of the bundle's, of the same
                                     configuration, names, types and shapes. NULL is the bundle's own */
  sala_load_callback on_progress; /* may be NULL */
  void* load_user_data;           /* passed to on_progress */
  const char* cpu_math;           /* arithmetic on the CPU, "exact" or "fast". NULL: "exact". Since 1.8 */
} sala_load_options;

#define SALA_LOAD_OPTIONS_INIT \
  {sizeof(sala_load_options), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, 0, NULL, NULL, NULL, NULL}

/* Opens a bundle directory and loads its engine and weights. */
SALA_API sala_error* sala_model_load(const char* bundle, const sala_load_options* options, sala_model** model);
SALA_API void sala_model_destroy(sala_model* model);

/* Returns the name of the engine that runs the steps, e.g. "onnxruntime". */
SALA_API const char* sala_model_engine_name(const sala_model* model);
/* Returns the reason why "auto" did not take TensorRT. Empty if it did, or if you chose a runtime yourself. */
SALA_API const char* sala_model_runtime_reason(const sala_model* model);
/* Returns the type of activations and caches: "fp32", "bf16" or "fp16". States move between engines of the same
 * precision. */
SALA_API const char* sala_model_precision(const sala_model* model);
/* Returns the hub id or the name of the checkpoint that the weights came from. */
SALA_API const char* sala_model_source(const sala_model* model);
/* Returns a hash that is equal for equal models. */
SALA_API const char* sala_model_fingerprint(const sala_model* model);
SALA_API int64_t sala_model_vocab_size(const sala_model* model);
/* Returns the number of tokens that the model was made for. Sessions may be longer. */
SALA_API int64_t sala_model_max_position_embeddings(const sala_model* model);
/* Returns the number of tokens that a session can hold if you do not choose. */
SALA_API int64_t sala_model_default_max_context(const sala_model* model);
/* Returns the tokens that end a text, and their number in `count`. */
SALA_API const int32_t* sala_model_eos_token_ids(const sala_model* model, size_t* count);
/* Returns the bytes that the caches of all sessions of the model take. What forks share counts once. Since 1.5. */
SALA_API int64_t sala_model_cache_bytes(const sala_model* model);
/* Tells the bytes of the file that a session of so many tokens saves. If the last of them was sampled and has not run,
 * it takes less. Since 1.3. */
SALA_API sala_error* sala_model_state_bytes(const sala_model* model, int64_t tokens, int64_t* bytes);

/* ---- Sessions ---------------------------------------------------------------------------------------------------- */

/* One sequence: its tokens, its caches, the logits of its last token. */
typedef struct sala_session sala_session;

typedef struct sala_session_options {
  size_t struct_size;
  int64_t max_context;  /* tokens. 0: sala_model_default_max_context, or what a restored state needs if it is more */
  int64_t chunk_tokens; /* tokens per prefill step. 0 lets the engine choose. Results do not depend on it. */
  /* Since 1.5. */
  int64_t max_checkpoints; /* checkpoints that the session keeps for sala_session_rewind. 0 means 8, -1 none */
} sala_session_options;

#define SALA_SESSION_OPTIONS_INIT {sizeof(sala_session_options), 0, 0, 0}

SALA_API sala_error* sala_session_create(const sala_model* model, const sala_session_options* options,
                                         sala_session** session);
/* Creates a session from a file of sala_session_save, written in this language or another. */
SALA_API sala_error* sala_session_restore(const sala_model* model, const char* state_file,
                                          const sala_session_options* options, sala_session** session);
SALA_API void sala_session_destroy(sala_session* session);

/* Returns the number of tokens in the context, the last sampled one included. */
SALA_API int64_t sala_session_position(const sala_session* session);
SALA_API int64_t sala_session_max_context(const sala_session* session);
SALA_API int64_t sala_session_chunk_tokens(const sala_session* session);
/* Returns the tokens of the context, and their number in `count`. */
SALA_API const int32_t* sala_session_tokens(const sala_session* session, size_t* count);
/* Returns the logits of the last token, fp32 [vocab_size], and their number in `count`. NULL and 0 before the first
 * prefill and between a sample and the next step. */
SALA_API const float* sala_session_logits(const sala_session* session, size_t* count);

/* The progress of a prefill, reported after every chunk. */
typedef struct sala_prefill_progress {
  size_t struct_size;   /* members that this library knows */
  int64_t tokens_done;  /* tokens of this call that have run */
  int64_t tokens_total; /* tokens of this call, -1 for a stream of unknown length */
  double seconds;       /* seconds since the call began */
} sala_prefill_progress;

/* Return 0 to stop the prefill there. It runs in the thread that prefills, and must not call anything on its session.
 */
typedef int (*sala_progress_callback)(const sala_prefill_progress* progress, void* user_data);

/* Takes the logits of some tokens of a prefill, fp32 [count, vocab_size], which are valid during the call. `tokens`
 * says which they are, in order. It runs in the thread that prefills, and must not call anything on its session. */
typedef void (*sala_logits_callback)(const int64_t* tokens, size_t count, const float* logits, size_t vocab_size,
                                     void* user_data);

typedef struct sala_prefill_options {
  size_t struct_size;
  int64_t context_length; /* only for one prompt that is cut over several calls, to read logits in between: the length
                             of the context after the last of them. 0: the prompt ends with this call, or with
                             sala_prefiller_finish */
  sala_progress_callback on_progress; /* NULL: none */
  void* user_data;                    /* for on_progress and on_logits */
  const int64_t* logit_tokens; /* tokens whose logits are wanted besides those of the last, rising. 0 is the first token
                                  of this call. A prefiller needs tokens_total for them. Since 1.7 */
  size_t logit_token_count;
  sala_logits_callback on_logits; /* called after each step that has some of logit_tokens */
} sala_prefill_options;

#define SALA_PREFILL_OPTIONS_INIT {sizeof(sala_prefill_options), 0, NULL, NULL, NULL, 0, NULL}

/* Appends `count` tokens, chunk by chunk. sala_session_logits then has the logits of the last one. A prompt that is
 * empty, does not fit or has a token outside the vocabulary is refused whole. */
SALA_API sala_error* sala_session_prefill(sala_session* session, const int32_t* token_ids, size_t count,
                                          const sala_prefill_options* options);

typedef struct sala_score_options {
  size_t struct_size;
  int64_t top;                        /* likeliest tokens at each place, 0 to 20 */
  int64_t context_length;             /* as in sala_prefill_options */
  sala_progress_callback on_progress; /* NULL: none */
  void* user_data;                    /* for on_progress */
} sala_score_options;

#define SALA_SCORE_OPTIONS_INIT {sizeof(sala_score_options), 0, 0, NULL, NULL}

/* Appends `count` tokens as sala_session_prefill does, and tells how probable the model found each of them, given all
 * tokens before it. `logprobs` takes `count` natural logarithms. The first token of an empty context has none: NaN.
 * `top_ids` and `top_logprobs` take [count, top], the likeliest tokens at each place. They hold -1 and NaN where there
 * are none. With a `top` of 0 both may be NULL. Since 1.7. */
SALA_API sala_error* sala_session_score(sala_session* session, const int32_t* token_ids, size_t count,
                                        const sala_score_options* options, double* logprobs, int32_t* top_ids,
                                        double* top_logprobs);
/* Appends one token to the answer. The answer begins where the last prefill ended, and holds what you sample, generate
 * or decode. */
SALA_API sala_error* sala_session_decode(sala_session* session, int32_t token_id);

/* Adds `bias`, from -100 to 100, to the logit of a token. Since 1.4. */
typedef struct sala_logit_bias {
  int32_t token_id;
  double bias;
} sala_logit_bias;

/* sala/sampler.h defines what each option does, and in which order. */
typedef struct sala_sampling_options {
  size_t struct_size;
  double temperature;        /* 0 always picks the most likely token */
  int64_t top_k;             /* keep only the k most likely tokens, 0 keeps all */
  double top_p;              /* keep the fewest tokens whose probabilities sum to at least this */
  double repetition_penalty; /* values above 1 make tokens of the context less likely. 0.01 to 100 */
  uint64_t seed;
  /* Since 1.4. */
  double min_p;                      /* keep tokens that are at least this times as probable as the likeliest. 0 to 1 */
  double frequency_penalty;          /* taken from the logit of a token for each time it is in the answer. -2 to 2 */
  double presence_penalty;           /* taken from the logit of a token that is in the answer. -2 to 2 */
  const sala_logit_bias* logit_bias; /* NULL: none. Each token at most once */
  size_t logit_bias_count;
} sala_sampling_options;

#define SALA_SAMPLING_OPTIONS_INIT {sizeof(sala_sampling_options), 0.0, 0, 1.0, 1.0, 0, 0.0, 0.0, 0.0, NULL, 0}

/* Samples the next token from the logits and appends it. It runs with the next step, whichever call that is. */
SALA_API sala_error* sala_session_sample(sala_session* session, const sala_sampling_options* options,
                                         int32_t* token_id);

/* Writes everything that sala_session_restore needs. The file appears whole or not at all. One that it replaces keeps
 * its mode. */
SALA_API sala_error* sala_session_save(const sala_session* session, const char* state_file);
/* A path that this process alone may write a state to, from the open until the destroy. Open it before a long prefill:
 * what would make a save fail shows at once. A link is written through. Refused with SALA_ERROR_STATE_UNWRITABLE are a
 * directory, FIFO, device or socket, a missing or read-only folder, and a path that another process is writing to. A
 * target is for one thread at a time. */
typedef struct sala_state_target sala_state_target;

/* Since 1.3. */
SALA_API sala_error* sala_state_target_open(const char* state_file, sala_state_target** target);
/* Compares a size, that of sala_model_state_bytes for example, with the room on the disk and the limits of this
 * process. Since 1.3. */
SALA_API sala_error* sala_state_target_require_room(const sala_state_target* target, int64_t bytes);
/* Without a save that succeeded, everything is left as it was. Since 1.3. */
SALA_API void sala_state_target_destroy(sala_state_target* target);
/* Saves as sala_session_save does. One save may succeed, and after a failed one you can try again. Since 1.3. */
SALA_API sala_error* sala_session_save_to(const sala_session* session, sala_state_target* target);

/* Refused with SALA_ERROR_OUT_OF_MEMORY if the engine knows that its memory has no room for so many tokens more.
 * sala_session_prefill asks this itself. Since 1.5. */
SALA_API sala_error* sala_session_require_room(const sala_session* session, int64_t tokens);
/* Makes a session with the same context and options. The two share the memory of the keys and values that both have.
 * What you do with one changes nothing in the other. Since 1.5. */
SALA_API sala_error* sala_session_fork(const sala_session* session, sala_session** fork);
/* Keeps a checkpoint here, if the session keeps any. A token that was sampled and has not run is not in it. Since 1.5.
 */
SALA_API sala_error* sala_session_checkpoint(sala_session* session);
/* Returns the positions of the checkpoints, in order, and their number in `count`. The session keeps one where a prompt
 * ends, where the next one begins, and some within a long prompt. Each takes the bytes of the Lightning states in the
 * host's memory, 48 MiB for 9B. When there are too many, those within prompts go first, and the further back, the
 * fewer are kept. Since 1.5. */
SALA_API const int64_t* sala_session_checkpoints(const sala_session* session, size_t* count);
/* Goes back to the last checkpoint at or before `position`. `reached` takes its position. The tokens behind it are
 * forgotten. Refused with SALA_ERROR_INVALID_ARGUMENT, naming the nearest, if no checkpoint lies there. Since 1.5. */
SALA_API sala_error* sala_session_rewind(sala_session* session, int64_t position, int64_t* reached);

/* Forgets the context and its checkpoints. A poisoned session is usable again. */
SALA_API sala_error* sala_session_reset(sala_session* session);
/* Ends a prefill that runs after its current chunk, or else the next one before its first (SALA_ERROR_STOPPED). Each
 * stop ends at most one: a prefill that finishes nevertheless uses it up, and sala_session_reset forgets it. A call
 * that is refused leaves it, and so do decode, sample and generation. Any thread may call this. */
SALA_API void sala_session_stop(sala_session* session);

/* ---- Streams ----------------------------------------------------------------------------------------------------- */

/* A prefill whose tokens arrive bit by bit. The logits do not depend on how the prompt is cut.
 *
 * All tokens of a prompt are attended densely if the context has fewer tokens than the model's dense_len at the end of
 * the prompt, else sparsely. So tokens wait until the context is that long or the finish ends the prompt. From then on
 * every step runs as soon as it is full. Tokens that wait are not in the session: sala_session_position does not count
 * them, and sala_session_save does not write them.
 *
 * After SALA_ERROR_STOPPED or a failed step the prefiller has ended. The tokens behind the last step that ran are
 * dropped. */
typedef struct sala_prefiller sala_prefiller;

/* `tokens_total`: tokens that will come, told to on_progress; -1 if unknown. The session must not do anything else
 * until the finish. */
SALA_API sala_error* sala_prefiller_create(sala_session* session, const sala_prefill_options* options,
                                           int64_t tokens_total, sala_prefiller** prefiller);
/* Takes any number of tokens. If it refuses them (1xx), it takes none, and you can go on. */
SALA_API sala_error* sala_prefiller_feed(sala_prefiller* prefiller, const int32_t* token_ids, size_t count);
/* Ends the prompt: runs what is left; sala_session_logits then has the logits of the last token. */
SALA_API sala_error* sala_prefiller_finish(sala_prefiller* prefiller);
/* Before the finish: tokens that wait are dropped. */
SALA_API void sala_prefiller_destroy(sala_prefiller* prefiller);

/* ---- Generation -------------------------------------------------------------------------------------------------- */

/* A generation, which samples tokens one by one. */
typedef struct sala_generation sala_generation;

typedef struct sala_generate_options {
  size_t struct_size;
  int64_t max_new_tokens;
  const int32_t* stop_tokens; /* tokens that end the text. NULL means the model's eos tokens */
  size_t stop_token_count;    /* 0 with stop_tokens not NULL means none */
  int64_t speculation;        /* most tokens to draft for a step, 1 to 64. 0 drafts none. Since 1.7 */
} sala_generate_options;

#define SALA_GENERATE_OPTIONS_INIT {sizeof(sala_generate_options), 256, NULL, 0, 0}

enum {
  SALA_FINISH_NONE = 0, /* not finished */
  SALA_FINISH_STOP_TOKEN = 1,
  SALA_FINISH_MAX_NEW_TOKENS = 2,
  SALA_FINISH_MAX_CONTEXT = 3,
  SALA_FINISH_CANCELLED = 4 /* an answer of a scheduler. Since 1.6 */
};

/* Checks the options of a generation before there is a session. Since 1.3. */
SALA_API sala_error* sala_model_check_generate(const sala_model* model, const sala_generate_options* options,
                                               const sala_sampling_options* sampling);

SALA_API sala_error* sala_generation_create(sala_session* session, const sala_generate_options* options,
                                            const sala_sampling_options* sampling, sala_generation** generation);
/* Samples the next token. `finish` takes SALA_FINISH_NONE, or the reason why there is no token. A stop token joins the
 * context but is not returned. */
SALA_API sala_error* sala_generation_next(sala_generation* generation, int32_t* token_id, int32_t* finish);
SALA_API void sala_generation_destroy(sala_generation* generation);

/* ---- Scheduler --------------------------------------------------------------------------------------------------- */

/* Runs the requests of many users on one model, each on a session of its own. A thread of the scheduler reads prompts
 * chunk by chunk. Between the chunks it draws the answers, one step of the engine for all of them. Each session gives
 * the tokens that it gives alone, but for the rounding of sums. sala/scheduler.h says who begins and whose turn it is.
 *
 * Any thread may submit. Only the process that made the scheduler can use it, not a child (SALA_ERROR_ENGINE_FAILED).
 */
typedef struct sala_scheduler sala_scheduler;

typedef struct sala_scheduler_options {
  size_t struct_size;
  int64_t max_running;     /* requests that run at once. 0 means 8, or what one step serves if that is from 2 to 7 */
  int64_t max_waiting;     /* requests that may wait for their turn. 0 means 256, -1 none */
  int64_t max_cache_bytes; /* bytes that the caches of all sessions of the model may take. 0: what the memory has */
  double prefill_share;    /* share of the time that goes to prompts while answers are drawn, below 1. 0 means 0.5 */
} sala_scheduler_options;

#define SALA_SCHEDULER_OPTIONS_INIT {sizeof(sala_scheduler_options), 0, 0, 0, 0.0}

/* Since 1.6. */
SALA_API sala_error* sala_scheduler_create(const sala_model* model, const sala_scheduler_options* options,
                                           sala_scheduler** scheduler);
/* Cancels all requests and waits for the step that runs. You still own their answers. Since 1.6. */
SALA_API void sala_scheduler_destroy(sala_scheduler* scheduler);

/* The answer to one request. One thread at a time may use it, but any thread may cancel it and ask for its progress. */
typedef struct sala_answer sala_answer;

/* Called with each token, before the next step. Return 0 to end the answer behind this token (SALA_FINISH_CANCELLED).
 * It runs in the scheduler's thread, and all requests wait for it. It may submit and cancel requests. It must not wait
 * for an answer, and destroy neither an answer nor the scheduler. */
typedef int32_t (*sala_token_callback)(int32_t token_id, void* user_data);

typedef struct sala_request_options {
  size_t struct_size;
  const sala_generate_options* generate; /* NULL: the defaults */
  const sala_sampling_options* sampling; /* NULL: the defaults */
  double max_wait;  /* seconds that it may wait for its turn, then it ends (SALA_ERROR_BUSY). 0: as long as it takes */
  int32_t priority; /* requests of a larger number begin first, and read their prompts first */
  sala_token_callback on_token; /* NULL: none */
  void* user_data;              /* for on_token */
} sala_request_options;

#define SALA_REQUEST_OPTIONS_INIT {sizeof(sala_request_options), NULL, NULL, 0.0, 0, NULL, NULL}

/* Asks for an answer. When it is its turn, the request appends `count` tokens to the session and draws. The prompt may
 * be empty if the session has a context. What sala_session_prefill and sala_generation_create refuse is refused at
 * once, and so is one request more than may wait (SALA_ERROR_BUSY).
 *
 * The session is at work until its answer has ended. Until then you may call sala_session_stop and
 * sala_session_destroy. Other functions that return an error refuse it (SALA_ERROR_INVALID_ARGUMENT). Those without an
 * error, such as sala_session_position, you must not call. Since 1.6. */
SALA_API sala_error* sala_scheduler_submit(sala_scheduler* scheduler, sala_session* session, const int32_t* token_ids,
                                           size_t count, const sala_request_options* options, sala_answer** answer);
/* Waits for the next token. `finish` takes SALA_FINISH_NONE, or the reason why there is no token: the session is free
 * then, and holds what it has read and drawn. It is also free after an error, which comes behind the tokens that were
 * drawn before. Since 1.6. */
SALA_API sala_error* sala_answer_next(sala_answer* answer, int32_t* token_id, int32_t* finish);
/* Waits at most so many seconds, with 0 not at all. Returns 1 if sala_answer_next would not wait. Since 1.6. */
SALA_API int32_t sala_answer_wait(const sala_answer* answer, double seconds);
/* Ends the request when the step that runs has ended. It returns at once. Tokens that were drawn can still be taken.
 * Since 1.6. */
SALA_API void sala_answer_cancel(sala_answer* answer);

enum {
  SALA_STAGE_WAITING = 0, /* for its turn */
  SALA_STAGE_PREFILL = 1,
  SALA_STAGE_GENERATE = 2,
  SALA_STAGE_ENDED = 3 /* tokens may be left to take */
};

/* Begin with SALA_REQUEST_PROGRESS_INIT. */
typedef struct sala_request_progress {
  size_t struct_size;
  int32_t stage;              /* one of SALA_STAGE_... */
  int64_t prompt_tokens_done; /* tokens of the prompt that have run */
  int64_t prompt_tokens;
  int64_t new_tokens; /* tokens drawn so far. Stop tokens are not counted */
} sala_request_progress;

#define SALA_REQUEST_PROGRESS_INIT {sizeof(sala_request_progress), 0, 0, 0, 0}

/* Tells how far a request is. It does not wait for the step that runs. Since 1.6. */
SALA_API sala_error* sala_answer_progress(const sala_answer* answer, sala_request_progress* progress);
/* Cancels the request, and waits until its session is free. Since 1.6. */
SALA_API void sala_answer_destroy(sala_answer* answer);

/* ---- Stop strings ------------------------------------------------------------------------------------------------ */

/* Strings that end a text, looked for while its pieces arrive. For example, with the stop string "\nUser:" the piece
 * "Yes.\nUs" gives out "Yes.", and "ers ask" behind it "\nUsers ask". How you cut the text into pieces changes nothing:
 * a piece may end inside a UTF-8 character. If one string contains another, the text ends at the one that begins first.
 *
 * This library turns no tokens into text: push what your tokenizer makes of them. When `found` is 1, ask for no more
 * tokens. The session keeps those that it has generated, the stop string's included. */
typedef struct sala_stop_strings sala_stop_strings;

/* Takes `count` strings, at most 64, of 1 to 1,024 bytes each. Since 1.4. */
SALA_API sala_error* sala_stop_strings_create(const char* const* strings, size_t count,
                                              sala_stop_strings** stop_strings);
/* Takes the next bytes of the text. `shown` and `shown_bytes` take the bytes that no later piece can make part of a
 * stop string. They belong to the handle until the next call, and do not end with a zero. `found` takes 1 if the text
 * has ended before a stop string. Nothing is shown from then on. Since 1.4. */
SALA_API sala_error* sala_stop_strings_push(sala_stop_strings* stop_strings, const char* text, size_t bytes,
                                            const char** shown, size_t* shown_bytes, int32_t* found);
/* Ends the text. `shown` takes what was held back, up to a stop string among it. Since 1.4. */
SALA_API sala_error* sala_stop_strings_finish(sala_stop_strings* stop_strings, const char** shown, size_t* shown_bytes,
                                              int32_t* found);
/* Since 1.4. */
SALA_API void sala_stop_strings_destroy(sala_stop_strings* stop_strings);

#ifdef __cplusplus
}
#endif

#endif
