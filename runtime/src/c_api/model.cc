#include "c_api/handles.h"

namespace sala::c {

namespace {

constexpr size_t kFirstLoadOptions = offsetof(sala_load_options, no_decode_graph) + sizeof(int32_t);

std::string text_or(const char* text, const char* otherwise) { return text != nullptr ? text : otherwise; }

Expected<LoadOptions> load_options_of(const sala_load_options* options) {
  const auto given = options_of(options, kFirstLoadOptions, sala_load_options SALA_LOAD_OPTIONS_INIT);
  if (!given) return given.error();
  LoadOptions result;
  result.runtime = text_or(given->runtime, "auto");
  result.onnxruntime_library = text_or(given->onnxruntime_library, "");
  result.operators_library = text_or(given->operators_library, "");
  result.tensorrt.library = text_or(given->tensorrt_library, "");
  result.tensorrt.runtime_cache = text_or(given->runtime_cache, "");
  result.tensorrt.decode_graph = given->no_decode_graph == 0;
  result.tensorrt.stream = given->cuda_stream;
  if ((given->device_allocate == nullptr) != (given->device_release == nullptr)) {
    return error(ErrorCode::kInvalidArgument, "device_allocate and device_release belong together: give both or none");
  }
  if (given->device_allocate != nullptr) {
    result.tensorrt.allocator = {
        [allocate = given->device_allocate, data = given->device_user_data](int64_t bytes) {
          return allocate(bytes, data);
        },
        [release = given->device_release, data = given->device_user_data](void* memory, int64_t bytes) {
          release(memory, bytes, data);
        },
    };
  }
  result.weights = text_or(given->weights, "");
  if (given->on_progress != nullptr) {
    result.on_progress = [tell = given->on_progress, data = given->load_user_data](int64_t done, int64_t total) {
      return tell(done, total, data) != 0;
    };
  }
  const auto cpu_math = cpu_math_of(text_or(given->cpu_math, "exact"));
  if (!cpu_math) return cpu_math.error();
  result.cpu_math = *cpu_math;
  result.threads = given->threads;
  result.verify_hashes = given->verify_hashes != 0;
  return result;
}

}  // namespace

}  // namespace sala::c

extern "C" {

sala_error* sala_model_load(const char* bundle, const sala_load_options* options, sala_model** model) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"bundle", bundle}, {"model", model}}));
    const auto load_options = sala::c::load_options_of(options);
    if (!load_options) return load_options.error();
    auto loaded = sala::Model::load(bundle, *load_options);
    if (!loaded) return loaded.error();
    *model = new sala_model(*std::move(loaded));
    return sala::success();
  });
}

void sala_model_destroy(sala_model* model) { delete model; }

const char* sala_model_engine_name(const sala_model* model) {
  return model != nullptr ? model->engine_name.c_str() : nullptr;
}

const char* sala_model_runtime_reason(const sala_model* model) {
  return model != nullptr ? model->model.runtime_reason().c_str() : nullptr;
}

const char* sala_model_precision(const sala_model* model) {
  return model != nullptr ? model->precision.c_str() : nullptr;
}

const char* sala_model_source(const sala_model* model) {
  return model != nullptr ? model->model.config().source.c_str() : nullptr;
}

const char* sala_model_fingerprint(const sala_model* model) {
  return model != nullptr ? model->model.config().fingerprint.c_str() : nullptr;
}

int64_t sala_model_vocab_size(const sala_model* model) {
  return model != nullptr ? model->model.config().vocab_size : 0;
}

int64_t sala_model_max_position_embeddings(const sala_model* model) {
  return model != nullptr ? model->model.config().max_position_embeddings : 0;
}

int64_t sala_model_default_max_context(const sala_model* model) {
  return model != nullptr ? model->model.default_max_context() : 0;
}

const int32_t* sala_model_eos_token_ids(const sala_model* model, size_t* count) {
  if (count != nullptr) *count = model != nullptr ? model->model.config().eos_token_ids.size() : 0;
  return model != nullptr ? model->model.config().eos_token_ids.data() : nullptr;
}

int64_t sala_model_cache_bytes(const sala_model* model) { return model != nullptr ? model->model.cache_bytes() : 0; }

sala_error* sala_model_state_bytes(const sala_model* model, int64_t tokens, int64_t* bytes) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"model", model}, {"bytes", bytes}}));
    const auto size = model->model.state_bytes(tokens);
    if (!size) return size.error();
    *bytes = *size;
    return sala::success();
  });
}

}  // extern "C"
