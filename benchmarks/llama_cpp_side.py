"""A random dense model in llama.cpp: loads it, reads a prompt, decodes, and prints what that took as a JSON line.

    pip install llama-cpp-python gguf
    python benchmarks/llama_cpp_side.py model.gguf --type q4_0 --layers 4 --intermediate 19712 --contexts 512,32768

`benchmarks.cpu_peers` runs it, in whichever environment has llama-cpp-python. It needs nothing of sala-export.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import time
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

HIDDEN, HEADS, KEY_HEADS, VOCABULARY = 4096, 32, 2, 73448
STEP_TOKENS = 512
TYPES = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "bf16": gguf.GGMLQuantizationType.BF16}


def tensors(layers: int, intermediate: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama model, [out, in]."""
    keys = KEY_HEADS * HIDDEN // HEADS
    found: list[tuple[str, tuple[int, ...]]] = [("token_embd", (VOCABULARY, HIDDEN))]
    for layer in range(layers):
        for name, shape in (
            ("attn_norm", (HIDDEN,)),
            ("attn_q", (HIDDEN, HIDDEN)),
            ("attn_k", (keys, HIDDEN)),
            ("attn_v", (keys, HIDDEN)),
            ("attn_output", (HIDDEN, HIDDEN)),
            ("ffn_norm", (HIDDEN,)),
            ("ffn_gate", (intermediate, HIDDEN)),
            ("ffn_up", (intermediate, HIDDEN)),
            ("ffn_down", (HIDDEN, intermediate)),
        ):
            found.append((f"blk.{layer}.{name}", shape))
    return [*found, ("output_norm", (HIDDEN,)), ("output", (VOCABULARY, HIDDEN))]


def random_bytes(kind: gguf.GGMLQuantizationType, elements: int, random: np.random.Generator) -> np.ndarray:
    """Numbers of about +-0.03 in the stored form of `kind`."""
    if kind is gguf.GGMLQuantizationType.BF16:
        numbers = random.standard_normal(elements, dtype=np.float32) * np.float32(0.03)
        return (numbers.view(np.uint32) >> 16).astype(np.uint16)
    # A block of Q4_0 is a scale in float16 and 16 bytes of nibbles, each its code plus 8.
    blocks = np.empty((elements // 32, 18), np.uint8)
    blocks[:, :2] = np.full(1, 0.004, np.float16).view(np.uint8)
    blocks[:, 2:] = random.integers(0, 256, (elements // 32, 16), dtype=np.uint8)
    return blocks


def write(path: Path, kind: gguf.GGMLQuantizationType, layers: int, intermediate: int) -> None:
    """Write the model. Embedding and head stay in bfloat16, as in our int4 checkpoints."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    plain = gguf.GGMLQuantizationType.BF16

    def stored_as(name: str, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
        if len(shape) == 1:
            return gguf.GGMLQuantizationType.F32
        return plain if name in ("token_embd", "output") else kind

    listed = [(name, shape, stored_as(name, shape)) for name, shape in tensors(layers, intermediate)]
    for name, shape, dtype in listed:
        block, size = gguf.GGML_QUANT_SIZES[dtype]
        elements = int(np.prod(shape))
        writer.add_tensor_info(f"{name}.weight", shape, np.dtype(np.float32), elements // block * size, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    for _, shape, dtype in listed:
        if dtype is gguf.GGMLQuantizationType.F32:
            writer.write_tensor_data(np.ones(shape, np.float32))
        else:
            writer.write_tensor_data(random_bytes(dtype, int(np.prod(shape)), random))
    writer.close()


class Llama:
    """A loaded model with one context."""

    def __init__(self, path: Path, context: int, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, STEP_TOKENS, STEP_TOKENS
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.model or not self.context:
            raise SystemExit(f"llama.cpp could not load {path}")
        self.random = np.random.default_rng(1)

    def run(self, tokens: int) -> None:
        """Run so many random tokens in one step."""
        ids = (llama_cpp.llama_token * tokens)(*self.random.integers(3, VOCABULARY, tokens).tolist())
        if failed := llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(ids, tokens)):
            raise SystemExit(f"llama_decode gave {failed}")
        llama_cpp.llama_synchronize(self.context)

    def measure(self, context: int, new_tokens: int) -> dict[str, float]:
        """Seconds of a prompt and of each of the tokens behind it."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        start = time.perf_counter()
        for position in range(0, context, STEP_TOKENS):
            self.run(min(STEP_TOKENS, context - position))
        read = time.perf_counter()
        for _ in range(new_tokens - 1):
            self.run(1)
        token = (time.perf_counter() - read) / (new_tokens - 1)
        return {"context": context, "first_token": read - start, "token": token}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path", type=Path, help="GGUF file, written if it is not there")
    parser.add_argument("--type", choices=[*TYPES], required=True, help="type of the weights of layers")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--intermediate", type=int, required=True, help="width of the MLP")
    parser.add_argument("--contexts", required=True, help="lengths of prompts in tokens, for example 512,32768")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens behind each prompt (default: 16)")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    if not options.path.exists():
        write(options.path, TYPES[options.type], options.layers, options.intermediate)
    contexts = [int(word) for word in options.contexts.split(",")]
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))

    start = time.perf_counter()
    llama = Llama(options.path, max(contexts) + options.new_tokens, options.threads)
    loaded = time.perf_counter() - start
    llama.run(8)
    report = {
        "load_seconds": loaded,
        "rows": [llama.measure(context, options.new_tokens) for context in contexts],
        "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "weight_bytes": options.path.stat().st_size,
        "version": f"llama-cpp-python {llama_cpp.__version__}",
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
