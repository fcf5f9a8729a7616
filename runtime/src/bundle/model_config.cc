#include "bundle/model_config.h"

#include <cstdint>
#include <string>

namespace sala {

namespace {

int64_t token_of(const Field& field, int64_t vocab_size) {
  const int64_t id = field.integer(0);
  field.expect(id < vocab_size, "is not a token of the vocabulary");
  return id;
}

/// Every field of SalaConfig, also those that only the graph needs (sala_export/checkpoint/config.py).
void check_config(const Field& config, const Field& sparse) {
  config.allow_only({"vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
                     "head_dim", "mixer_types", "sparse_config", "rms_norm_eps", "rope_theta", "scale_emb",
                     "scale_depth", "dim_model_base", "max_position_embeddings", "tie_word_embeddings", "bos_token_id",
                     "eos_token_id", "pad_token_id", "residual_depth"});
  for (const char* name : {"hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
                           "dim_model_base", "residual_depth"}) {
    config[name].integer(1);
  }
  for (const char* name : {"rms_norm_eps", "rope_theta", "scale_emb", "scale_depth"}) {
    config[name].expect(config[name].number() > 0.0, "is not positive");
  }
  config["tie_word_embeddings"].flag();
  for (const char* name : {"bos_token_id", "pad_token_id"}) {
    if (!config[name].is_null()) token_of(config[name], config["vocab_size"].integer(1));
  }
  const auto mixers = config["mixer_types"].elements();
  config["mixer_types"].expect(!mixers.empty(), "is empty");
  for (const Field& mixer : mixers) {
    const std::string name = mixer.string();
    mixer.expect(name == "minicpm4" || name == "lightning-attn", "is not a mixer");
  }
  sparse.allow_only({"kernel_size", "kernel_stride", "block_size", "topk", "window_size", "init_blocks", "dense_len"});
  const int64_t kernel_stride = sparse["kernel_stride"].integer(1, INT32_MAX);
  const int64_t block_size = sparse["block_size"].integer(1);
  sparse["kernel_size"].expect(sparse["kernel_size"].integer(1, INT32_MAX) > kernel_stride,
                               "is not larger than kernel_stride");
  sparse["block_size"].expect(block_size % kernel_stride == 0, "is not a multiple of kernel_stride");
  sparse["window_size"].expect(sparse["window_size"].integer(0) % block_size == 0, "is not a multiple of block_size");
  sparse["topk"].expect(sparse["topk"].integer(1) > sparse["init_blocks"].integer(0),
                        "leaves no room for init_blocks and the query's own block");
  sparse["dense_len"].integer(-1);
}

}  // namespace

ModelConfig config_of(const Field& model) {
  model.allow_only({"source", "config", "config_sha256", "inv_freq", "fingerprint"});
  const Field config = model["config"];
  const Field sparse = config["sparse_config"];
  check_config(config, sparse);
  ModelConfig result;
  result.source = model["source"].string();
  result.fingerprint = model["fingerprint"].sha256();
  result.vocab_size = config["vocab_size"].integer(1, INT32_MAX);
  result.max_position_embeddings = config["max_position_embeddings"].integer(1);
  result.kernel_size = sparse["kernel_size"].integer(1);
  result.kernel_stride = sparse["kernel_stride"].integer(1);
  result.dense_len = sparse["dense_len"].integer(-1);
  for (const Field& token : config["eos_token_id"].elements()) {
    result.eos_token_ids.push_back(static_cast<int32_t>(token_of(token, result.vocab_size)));
  }
  for (const Field& frequency : model["inv_freq"].elements()) {
    result.inv_freq.push_back(frequency.fp32());
  }
  const int64_t head_dim = config["head_dim"].integer(2);
  model["inv_freq"].expect(static_cast<int64_t>(result.inv_freq.size()) * 2 == head_dim,
                           "expected head_dim / 2 numbers");
  return result;
}

}  // namespace sala
