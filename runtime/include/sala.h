/* The C interface of the runtime: load a bundle, make sessions, feed token ids, draw tokens, save and restore.
 *
 * Errors. A function that can fail returns NULL for success, or an error that the caller owns, reads and destroys. Its
 * outputs are then as they were. No C++ exception leaves this library, and nothing is printed. A NULL handle, path or
 * output is refused with SALA_ERROR_INVALID_ARGUMENT; functions without an error take a NULL handle and return 0 or
 * NULL.
 *
 * After an error. 1xx, what the caller gave: the object that refused it is as it was. SALA_ERROR_STOPPED: the session
 * holds the chunks that had run. SALA_ERROR_ENGINE_FAILED poisons it: only sala_session_reset and
 * sala_session_destroy are valid.
 *
 * Ownership. Strings and arrays that are passed in are copied before the call returns. What a `const` pointer that is
 * handed out leads to belongs to the handle: of a model, until it is destroyed; of a session, until the next call that
 * changes the session. Handles may be destroyed in any order, a model before its sessions, a session before its
 * prefillers and generations. Destroying NULL does nothing.
 *
 * Threads. A model may be used by any number of threads at once. A session, with its prefillers and generations, is for
 * one thread at a time; a second call that would change it meanwhile, also one from the progress callback, is refused
 * with SALA_ERROR_INVALID_ARGUMENT. sala_session_stop may be called from any thread. Sessions of one model run side by
 * side. A handle must not be destroyed while a call on it runs.
 *
 * Options. The first member of an option struct is its size: begin with the SALA_..._INIT of the struct and set what
 * differs. NULL instead of options takes the defaults. Later versions append members whose default is zero. So a
 * program and a library of different minor ABI versions work together; a member that the library does not know and that
 * is not zero is refused.
 *
 * Versions. SALA_ABI_MAJOR is the SONAME's number and changes when a program must be compiled again; SALA_ABI_MINOR
 * when something was added. */

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
#define SALA_ABI_MINOR 2
#define SALA_ABI_VERSION (SALA_ABI_MAJOR * 1000 + SALA_ABI_MINOR)

/* The SALA_ABI_VERSION of the library that runs. */
SALA_API int32_t sala_abi_version(void);
/* The release, e.g. "0.1.0". */
SALA_API const char* sala_version(void);

/* ---- Errors ------------------------------------------------------------------------------------------------------ */

typedef struct sala_error sala_error;

enum {
  /* 1xx: what the caller gave. */
  SALA_ERROR_INVALID_ARGUMENT = 100,
  SALA_ERROR_EMPTY_PROMPT = 101,
  SALA_ERROR_TOKEN_OUT_OF_RANGE = 102,
  SALA_ERROR_CONTEXT_EXCEEDED = 103,
  SALA_ERROR_NO_LOGITS = 104,
  /* 2xx: the bundle and weights. */
  SALA_ERROR_BUNDLE_MISSING = 200,
  SALA_ERROR_BUNDLE_DAMAGED = 201,
  SALA_ERROR_BUNDLE_SCHEMA = 202,
  SALA_ERROR_WEIGHTS_MISSING = 203,
  SALA_ERROR_WEIGHTS_UNSUITABLE = 204,
  /* 3xx: a state file. */
  SALA_ERROR_STATE_UNREADABLE = 300,
  SALA_ERROR_STATE_FOREIGN = 301,
  SALA_ERROR_STATE_DAMAGED = 302,
  SALA_ERROR_STATE_VERSION = 303,
  SALA_ERROR_STATE_MODEL = 304,
  SALA_ERROR_STATE_PRECISION = 305,
  SALA_ERROR_STATE_UNWRITABLE = 306,
  /* 4xx: this machine and its libraries. */
  SALA_ERROR_LIBRARY_MISSING = 400,
  SALA_ERROR_LIBRARY_UNUSABLE = 401,
  SALA_ERROR_OUT_OF_MEMORY = 402,
  SALA_ERROR_DEVICE_MISSING = 403,
  SALA_ERROR_DEVICE_UNSUITABLE = 404,
  /* 5xx: running. */
  SALA_ERROR_ENGINE_FAILED = 500,
  SALA_ERROR_SESSION_POISONED = 501,
  SALA_ERROR_STOPPED = 502,
  /* A bug of this library. */
  SALA_ERROR_INTERNAL = 900
};

/* One of SALA_ERROR_...; later minor versions may add some. 0 for NULL. */
SALA_API int32_t sala_error_code(const sala_error* error);
/* The code in words, e.g. "ContextExceeded". */
SALA_API const char* sala_error_name(const sala_error* error);
/* One line: what, where, what to do. UTF-8 as far as paths are. */
SALA_API const char* sala_error_message(const sala_error* error);
SALA_API void sala_error_destroy(sala_error* error);

/* ---- Models ------------------------------------------------------------------------------------------------------ */

/* A loaded bundle: immutable. */
typedef struct sala_model sala_model;

/* Device memory of the caller's, at a multiple of 256 bytes on the engine's GPU; NULL if there is no room. Called with
 * that GPU current, from any thread that uses the model. */
typedef void* (*sala_device_allocate)(int64_t bytes, void* user_data);
typedef void (*sala_device_release)(void* data, int64_t bytes, void* user_data);

/* Told of the weights' bytes while they are loaded, from 0 to all, in the thread that called. 0 stops the load
 * (SALA_ERROR_STOPPED). Other weights for constants of the engine (int4, nvfp4) are compared before, and told of
 * likewise. */
typedef int32_t (*sala_load_callback)(int64_t done_bytes, int64_t total_bytes, void* user_data);

typedef struct sala_load_options {
  size_t struct_size;
  const char* runtime; /* a name of docs/runtimes.md, or "auto": the first that this machine can run. NULL: "auto" */
  const char* onnxruntime_library; /* libonnxruntime; NULL: looked for beside this library, in ../lib, in the system */
  const char* operators_library;   /* libsala_ort.so; NULL: looked for beside this library and in ../lib */
  const char* tensorrt_library;    /* libtensorrt_rtx or libnvinfer; NULL: looked for as onnxruntime_library is */
  const char* runtime_cache;       /* where TensorRT for RTX keeps what it compiled; NULL: beside the bundle */
  void* cuda_stream;               /* a CUstream that all sessions use in turn; NULL: each session has its own */
  sala_device_allocate device_allocate; /* for everything on the GPU, weights included; NULL: the driver's */
  sala_device_release device_release;   /* given if and only if device_allocate is */
  void* device_user_data;               /* for both */
  int32_t threads;                      /* that load weights and, on the CPU, compute; 0: one for each core */
  int32_t verify_hashes;                /* not 0: hash all files but weights first; what is loaded is hashed anyhow */
  int32_t no_decode_graph;              /* not 0: enqueue every decode step instead of replaying a CUDA graph */
  /* Since 1.1. */
  const char* weights;            /* a checkpoint directory whose weights take the place of the bundle's: of the same
                                     configuration, names, types and shapes. NULL: the bundle's own */
  sala_load_callback on_progress; /* NULL: none */
  void* load_user_data;           /* for on_progress */
} sala_load_options;

#define SALA_LOAD_OPTIONS_INIT \
  {sizeof(sala_load_options), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, 0, NULL, NULL, NULL}

/* Opens a bundle directory and loads its engine and weights. */
SALA_API sala_error* sala_model_load(const char* bundle, const sala_load_options* options, sala_model** model);
SALA_API void sala_model_destroy(sala_model* model);

/* What runs the steps, e.g. "onnxruntime". */
SALA_API const char* sala_model_engine_name(const sala_model* model);
/* Why "auto" did not take TensorRT; empty if it did, or was not asked. */
SALA_API const char* sala_model_runtime_reason(const sala_model* model);
/* Type of activations and caches: "fp32", "bf16" or "fp16". States pass between engines of one precision. */
SALA_API const char* sala_model_precision(const sala_model* model);
/* Where the weights came from. */
SALA_API const char* sala_model_source(const sala_model* model);
/* Equal for equal models. */
SALA_API const char* sala_model_fingerprint(const sala_model* model);
SALA_API int64_t sala_model_vocab_size(const sala_model* model);
/* Tokens that the model was made for; sessions may be longer. */
SALA_API int64_t sala_model_max_position_embeddings(const sala_model* model);
/* Tokens of a session that does not choose. */
SALA_API int64_t sala_model_default_max_context(const sala_model* model);
/* Tokens that end a text; `count` takes their number. */
SALA_API const int32_t* sala_model_eos_token_ids(const sala_model* model, size_t* count);

/* ---- Sessions ---------------------------------------------------------------------------------------------------- */

/* One sequence: its tokens, its caches, the logits of its last token. */
typedef struct sala_session sala_session;

typedef struct sala_session_options {
  size_t struct_size;
  int64_t max_context;  /* tokens; 0: sala_model_default_max_context, or what a restored state needs if that is more */
  int64_t chunk_tokens; /* tokens of one prefill step; 0: the engine's choice. Results do not depend on it. */
} sala_session_options;

#define SALA_SESSION_OPTIONS_INIT {sizeof(sala_session_options), 0, 0}

SALA_API sala_error* sala_session_create(const sala_model* model, const sala_session_options* options,
                                         sala_session** session);
/* A session as sala_session_save left it, in this language or another. */
SALA_API sala_error* sala_session_restore(const sala_model* model, const char* state_file,
                                          const sala_session_options* options, sala_session** session);
SALA_API void sala_session_destroy(sala_session* session);

/* Tokens of the context, the last drawn one included. */
SALA_API int64_t sala_session_position(const sala_session* session);
SALA_API int64_t sala_session_max_context(const sala_session* session);
SALA_API int64_t sala_session_chunk_tokens(const sala_session* session);
/* The context; `count` takes its length. */
SALA_API const int32_t* sala_session_tokens(const sala_session* session, size_t* count);
/* fp32 [vocab_size] of the last token; NULL and 0 before the first prefill and between a draw and the next step. */
SALA_API const float* sala_session_logits(const sala_session* session, size_t* count);

/* How far a prefill is, told after every chunk. */
typedef struct sala_prefill_progress {
  size_t struct_size;   /* members that this library knows */
  int64_t tokens_done;  /* of this call */
  int64_t tokens_total; /* of this call; -1 for a stream of unknown length */
  double seconds;       /* since the call began */
} sala_prefill_progress;

/* 0 stops the prefill there. Runs in the thread that prefills, and must not enter its session. */
typedef int (*sala_progress_callback)(const sala_prefill_progress* progress, void* user_data);

typedef struct sala_prefill_options {
  size_t struct_size;
  int64_t context_length; /* only for one prompt that is cut over several calls, to read logits in between: the length
                             of the context after the last of them. 0: the prompt ends with this call, or with
                             sala_prefiller_finish */
  sala_progress_callback on_progress; /* NULL: none */
  void* user_data;                    /* for on_progress */
} sala_prefill_options;

#define SALA_PREFILL_OPTIONS_INIT {sizeof(sala_prefill_options), 0, NULL, NULL}

/* Appends `count` tokens, chunk by chunk; sala_session_logits then has those of the last one. An empty prompt, one that
 * does not fit and one with a token outside the vocabulary are refused whole. */
SALA_API sala_error* sala_session_prefill(sala_session* session, const int32_t* token_ids, size_t count,
                                          const sala_prefill_options* options);
/* Appends one token. */
SALA_API sala_error* sala_session_decode(sala_session* session, int32_t token_id);

typedef struct sala_sampling_options {
  size_t struct_size;
  double temperature;        /* 0: the largest logit */
  int64_t top_k;             /* keep this many tokens; 0: all */
  double top_p;              /* keep the fewest tokens whose probabilities sum to at least this */
  double repetition_penalty; /* more than 1 makes tokens of the context less likely */
  uint64_t seed;
} sala_sampling_options;

#define SALA_SAMPLING_OPTIONS_INIT {sizeof(sala_sampling_options), 0.0, 0, 1.0, 1.0, 0}

/* Draws the next token from the logits and appends it; it runs with the next step, whichever call that is. */
SALA_API sala_error* sala_session_sample(sala_session* session, const sala_sampling_options* options,
                                         int32_t* token_id);

/* Writes all that sala_session_restore needs. The file appears whole or not at all. */
SALA_API sala_error* sala_session_save(const sala_session* session, const char* state_file);
/* Forgets the context, and heals a poisoned session. */
SALA_API sala_error* sala_session_reset(sala_session* session);
/* Asks a running prefill to stop after its current chunk; from any thread. */
SALA_API void sala_session_stop(sala_session* session);

/* ---- Streams ----------------------------------------------------------------------------------------------------- */

/* A prefill whose tokens arrive bit by bit. The logits do not depend on how the prompt is cut.
 *
 * All tokens of a prompt are attended densely if the context has fewer tokens than the model's dense_len at the end of
 * the prompt, else sparsely. So tokens wait until the context is that long or the finish ends the prompt. From then on
 * every step runs as soon as it is full. Tokens that wait are not in the session: sala_session_position does not count
 * them, and sala_session_save does not write them. */
typedef struct sala_prefiller sala_prefiller;

/* `tokens_total`: tokens that will come, told to on_progress; -1 if unknown. The session must not do anything else
 * until the finish. */
SALA_API sala_error* sala_prefiller_create(sala_session* session, const sala_prefill_options* options,
                                           int64_t tokens_total, sala_prefiller** prefiller);
/* Takes any number of tokens. Refuses them whole with 1xx, which leaves the prefiller usable. */
SALA_API sala_error* sala_prefiller_feed(sala_prefiller* prefiller, const int32_t* token_ids, size_t count);
/* Ends the prompt: runs what is left; sala_session_logits then has the logits of the last token. */
SALA_API sala_error* sala_prefiller_finish(sala_prefiller* prefiller);
/* Before the finish: tokens that wait are dropped. */
SALA_API void sala_prefiller_destroy(sala_prefiller* prefiller);

/* ---- Generation -------------------------------------------------------------------------------------------------- */

/* Tokens drawn one by one. */
typedef struct sala_generation sala_generation;

typedef struct sala_generate_options {
  size_t struct_size;
  int64_t max_new_tokens;
  const int32_t* stop_tokens; /* that end the text; NULL: the model's eos tokens */
  size_t stop_token_count;    /* 0 with stop_tokens not NULL: none */
} sala_generate_options;

#define SALA_GENERATE_OPTIONS_INIT {sizeof(sala_generate_options), 256, NULL, 0}

enum {
  SALA_FINISH_NONE = 0, /* not finished */
  SALA_FINISH_STOP_TOKEN = 1,
  SALA_FINISH_MAX_NEW_TOKENS = 2,
  SALA_FINISH_MAX_CONTEXT = 3
};

SALA_API sala_error* sala_generation_create(sala_session* session, const sala_generate_options* options,
                                            const sala_sampling_options* sampling, sala_generation** generation);
/* The next token; `finish` takes SALA_FINISH_NONE, or why there is none. A stop token joins the context but is not
 * given out. */
SALA_API sala_error* sala_generation_next(sala_generation* generation, int32_t* token_id, int32_t* finish);
SALA_API void sala_generation_destroy(sala_generation* generation);

#ifdef __cplusplus
}
#endif

#endif
