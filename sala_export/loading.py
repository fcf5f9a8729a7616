"""`sala_export.load`, which loads a model by any of its names on the runtime that you choose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RequestError, SessionError
from .extras import extras_named
from .machine import gpus
from .model_source import ModelSource
from .runtime.model import Model, load_bundle
from .specs import RUNTIMES, Precision, computed_in, format_bytes, format_tokens, one_of

if TYPE_CHECKING:
    from .checkpoint.config import SalaConfig
    from .runtime.prompt import TokenizerLike

TORCH = "torch"
"""The runtime that you have to ask for: `auto` does not import it."""


def load(
    model: str | Path | ModelSource,
    *,
    runtime: str = "auto",
    device: str | None = None,
    precision: str | None = None,
    threads: int = 0,
    cpu_math: str | None = None,
    verify_hashes: bool = False,
    tokenizer: TokenizerLike | None = None,
    weights: str | Path | None = None,
    **engine_options: Any,
) -> Model:
    """Load a model to run it.

    Args:
        model: a bundle directory. For the torch runtime also a checkpoint directory or a hub id. A `ModelSource` is
            such a model that is open, and has its `weights`.
        runtime: `auto`, `tensorrt` or `onnxruntime` as `sala_export.runtime.model.load_bundle` has them, or `torch`,
            which runs on any NVIDIA GPU that the kernels support, and on the CPU for verification. docs/runtimes.md
            says which for what.
        device, precision: for torch: `cuda`, `cuda:1` or `cpu`, by default a GPU if there is one; `fp32`, `bf16` or
            `fp16`, by default the model's own on a GPU and fp32 on the CPU.
        threads: threads that compute on the CPU, at most 1,024. 0 takes all cores.
        cpu_math: arithmetic of a bundle on the CPU: `exact`, the default, is in fp32 throughout. `fast` rounds inputs
            of products to bf16, or to 8 bits for int4 weights, and keeps caches in 16 bits. docs/runtimes.md says what
            that costs and gains.
        verify_hashes: compare every file of a bundle with its hash, not only what is loaded.
        tokenizer: a tokenizer to use instead of the model's own.
        weights: a checkpoint directory whose weights take the place of the bundle's, a fine-tune for example: of the
            same configuration, and with tensors of the same names, types and shapes.
        engine_options: further arguments of `sala_export.runtime.model.load_bundle`, for example libraries to use.
            Not for torch.
    Raises: BundleError or CheckpointError if the model is missing, damaged, of a newer schema or without weights.
        UnsupportedError if a library or GPU is missing or cannot serve the model; RequestError or SessionError for a
        wrong option; RunError if there is no memory.
    """
    if runtime not in RUNTIMES:
        raise SessionError(f"runtime '{runtime}' is unknown: choose {one_of(RUNTIMES)}")
    if cpu_math is not None and runtime in (TORCH, "tensorrt"):
        raise RequestError(f"cpu_math {cpu_math} is for the runtime onnxruntime, not {runtime}: leave it out")
    if runtime == TORCH:
        with extras_named():
            from .torch_runtime.load import load_torch

        if engine_options:
            raise RequestError(f"{', '.join(engine_options)}: not for the torch runtime, leave it out")
        return load_torch(
            model,
            device=device,
            precision=precision,
            threads=threads,
            verify_hashes=verify_hashes,
            tokenizer=tokenizer,
            weights=weights,
        )
    for option, value in (("device", device), ("precision", precision)):
        if value is not None:
            raise RequestError(
                f"{option} {value} is for the torch runtime; a bundle fixes it for runtime {runtime} (leave it out)"
            )
    source = model if isinstance(model, ModelSource) else ModelSource.of_bundle(Path(model), weights)
    return load_bundle(
        source.require_bundle(),
        runtime=runtime,
        threads=threads,
        cpu_math=cpu_math,
        verify_hashes=verify_hashes,
        tokenizer=tokenizer,
        weights=source.other_weights,
        **engine_options,
    )


def require_host_room(model: Model, config: SalaConfig, option: str, context: int, *, new_tokens: int = 0) -> None:
    """Refuse a context whose caches do not fit into the free memory of this machine.

    Pages of the host are given when they are written, so nothing would fail before the machine does. On a GPU
    everything passes, because its memory is known, and a prompt that does not fit is refused.

    Args: `option` is the one that asks for the `context`, to which `new_tokens` are added.
    Raises: RequestError with what the caches need and what is free.
    """
    # Here, not above: whoever loads a model needs neither.
    from .engine.host import available_host_bytes
    from .model.signature import cache_sizes, signature

    if model.on_gpu:
        return
    sizes = cache_sizes(config, context + new_tokens)
    entries = signature(config, Precision(model.precision).dtype).caches
    needed, free = sum(entry.past.size_bytes(sizes) for entry in entries), available_host_bytes()
    if needed > free:
        raise RequestError(
            f"{option} {format_tokens(context)} needs {format_bytes(needed)} of memory for its caches, "
            f"{format_bytes(free)} are free: choose a smaller {option}"
        )


_RUNTIME_TITLES = {"tensorrt": "TensorRT", "onnxruntime": "ONNX Runtime", TORCH: "PyTorch"}


def runs_on(model: Model, source: ModelSource) -> tuple[str, bool]:
    """One line that says what a loaded model runs on and why, and whether a GPU that is here is left unused.

    For example, `runs on ONNX Runtime on the CPU, bf16: this machine has no NVIDIA GPU`.
    """
    device = "the GPU" if model.on_gpu else "the CPU"
    quantized = source.quantized()
    what = f"runs on {_RUNTIME_TITLES[model.runtime]} on {device}, {computed_in(quantized, model.precision)}"
    if not model.runtime_reason:
        return what, False
    if not gpus():
        return f"{what}: this machine has no NVIDIA GPU", False
    return f"{what}, not on TensorRT: {model.runtime_reason}", True
