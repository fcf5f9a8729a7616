"""Loading a model into the torch runtime."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import RequestError, UnsupportedError
from ..model.rope import inverse_frequencies
from ..model_source import ModelSource
from ..runtime.model import Model
from ..specs import Precision
from .engine import SessionMemory, TorchEngine
from .operators import Operators, ReferenceOperators
from .weights import PackedModel, load_packed, weights_bytes

if TYPE_CHECKING:
    from ..runtime.prompt import Tokenizer

GPU_CHUNK_TOKENS = 8192
"""Enough rows for the matrix products of any GPU; 9B in bf16 takes 0.63 GiB for a step of them."""
CPU_CHUNK_TOKENS = 512

PRECISIONS = (Precision.FP32, Precision.BF16, Precision.FP16)

_log = logging.getLogger(__name__)


class TorchModel(Model):
    """A model in the torch runtime, which can tell its memory and has the reference beside it."""

    def __init__(self, engine: TorchEngine, source: ModelSource, fingerprint: str, tokenizer: Tokenizer | None) -> None:
        from ..runtime import _native

        config = engine.packed.config
        native = _native.Model.create(
            engine,
            source=source.name,
            fingerprint=fingerprint,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings,
            eos_token_ids=list(config.eos_token_id),
            inv_freq=_inv_freq(source),
            kernel_size=config.sparse_config.kernel_size,
            kernel_stride=config.sparse_config.kernel_stride,
        )
        super().__init__(native, tokenizer)
        self.engine = engine

    @property
    def on_gpu(self) -> bool:
        return self.engine.device.type == "cuda"

    @property
    def reference(self) -> PackedModel:
        """The `SalaForCausalLM` that computes from the same weights, without kernels or in-place buffers."""
        return self.engine.packed

    def foretold_device_bytes(self, max_context: int, chunk_tokens: int) -> int | None:
        return self.memory(max_context, chunk_tokens).total_bytes if self.on_gpu else None

    def memory(self, max_context: int, chunk_tokens: int | None = None) -> SessionMemory:
        """Bytes on the device while a session of these sizes runs; nothing is allocated."""
        return self.engine.memory(max_context, chunk_tokens or self.engine.default_chunk_tokens)


def load_torch(
    model: str | Path,
    *,
    device: str | None = None,
    precision: str | None = None,
    threads: int = 0,
    verify_hashes: bool = False,
    tokenizer: Tokenizer | None = None,
) -> TorchModel:
    """Load a bundle, a checkpoint directory or a hub id; arguments and errors as `sala_export.load`."""
    chosen = _device(device)
    source = ModelSource.open(model)
    if verify_hashes and source.bundle is not None:
        source.bundle.verify_hashes()
    if threads < 0:
        raise RequestError(f"threads is {threads}, expected 0 for all cores, or a count")
    if threads:
        torch.set_num_threads(threads)
    kind = _precision(precision, source, chosen)
    return assemble(source, kind, chosen, _operators(source, kind, chosen), tokenizer or source.tokenizer())


def assemble(
    source: ModelSource,
    precision: Precision,
    device: torch.device,
    operators: Operators,
    tokenizer: Tokenizer | None = None,
) -> TorchModel:
    """Load the weights of `source` and put the runtime together from its parts. Raises: as `load_torch`."""
    checkpoint = source.checkpoint()
    with ThreadPoolExecutor(1) as pool:
        # Hashing reads the same pages, and takes as long as copying them.
        fingerprint = pool.submit(source.fingerprint)
        packed = load_packed(checkpoint, precision, device)
        _log.info("%s in %s on %s", source.name, precision, device)
        engine = TorchEngine(
            packed,
            operators,
            weights_bytes=weights_bytes(checkpoint, precision),
            default_chunk_tokens=CPU_CHUNK_TOKENS if device.type == "cpu" else GPU_CHUNK_TOKENS,
        )
        return TorchModel(engine, source, fingerprint.result(), tokenizer)


def _operators(source: ModelSource, precision: Precision, device: torch.device) -> Operators:
    """Kernels on a GPU, the reference on the CPU.

    Raises: UnsupportedError if the kernels do not serve this GPU.
    """
    if device.type == "cpu":
        return ReferenceOperators()
    # Here, not above: the CPU needs no Triton.
    from .kernel_operators import KernelOperators

    return KernelOperators(source.config, precision, device)


def _device(name: str | None) -> torch.device:
    """Raises: RequestError for a device that torch does not know, UnsupportedError for one that is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise RequestError(f"device {name} is unknown: choose cuda, cuda:N or cpu") from None
    if device.type not in ("cuda", "cpu"):
        raise RequestError(f"device {name} is not served: choose cuda, cuda:N or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UnsupportedError(
            f"device {name}: torch finds {count} CUDA devices; check the driver with nvidia-smi, or choose device cpu"
        )
    # Which GPU is the current one differs between threads.
    is_any_gpu = device.type == "cuda" and device.index is None
    return torch.device("cuda", torch.cuda.current_device()) if is_any_gpu else device


def _precision(name: str | None, source: ModelSource, device: torch.device) -> Precision:
    if name is None and device.type == "cpu":
        return Precision.FP32
    chosen = source.precision() if name is None else name
    if chosen not in PRECISIONS:
        whose = f"{source.name} is in {chosen}" if name is None else f"precision {name} is unknown"
        raise RequestError(f"{whose}: the torch runtime runs {', '.join(PRECISIONS)}, choose one of them as precision")
    return Precision(chosen)


def _inv_freq(source: ModelSource) -> list[float]:
    """The table of the bundle, or of the configuration."""
    if source.bundle is not None:
        return list(source.bundle.manifest.model.inv_freq)
    return [float(x) for x in inverse_frequencies(source.config.rope_theta, source.config.head_dim)]
