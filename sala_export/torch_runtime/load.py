"""Loads a model into the torch runtime."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from ..checkpoint.config import SalaConfig
from ..checkpoint.float_types import convert_weights
from ..errors import RequestError, UnsupportedError
from ..model_source import ModelSource
from ..runtime.model import Model, tokenizer_of
from ..runtime.options import MOST_THREADS, flag, optional_text, whole_number
from ..specs import Precision
from .engine import SessionMemory, TorchEngine
from .operators import Operators, ReferenceOperators
from .quantized import StoredWeight, quantized_weights_of
from .random_model import RandomModel
from .weights import PackedModel, load_packed, weights_bytes

if TYPE_CHECKING:
    from ..runtime.prompt import TokenizerLike

GPU_CHUNK_TOKENS = 8192
"""Tokens per prefill step on a GPU: enough rows for any GPU, and 0.63 GiB for a step of 9B in bf16."""
CPU_CHUNK_TOKENS = 512

PRECISIONS = (Precision.FP32, Precision.BF16, Precision.FP16)

LoadableModel = ModelSource | RandomModel
"""A model before it is loaded, on disk or random."""

logger = logging.getLogger(__name__)


class TorchModel(Model):
    """A model in the torch runtime. It can predict its memory and has the reference beside it."""

    def __init__(
        self, engine: TorchEngine, source: LoadableModel, fingerprint: str, tokenizer: TokenizerLike | None
    ) -> None:
        config = engine.packed.config
        native = _native_runtime().Model.create(
            engine,
            source=source.name,
            fingerprint=fingerprint,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings,
            eos_token_ids=list(config.eos_token_id),
            inv_freq=source.inv_freq(),
            kernel_size=config.sparse_config.kernel_size,
            kernel_stride=config.sparse_config.kernel_stride,
            dense_len=config.sparse_config.dense_len,
        )
        super().__init__(native, tokenizer)
        self.engine = engine
        self.source = source

    @property
    def on_gpu(self) -> bool:
        return self.engine.device is not None

    @property
    def reference(self) -> PackedModel:
        """The `SalaForCausalLM` that computes from the same weights, without kernels or in-place buffers."""
        return self.engine.packed

    def predicted_device_bytes(self, max_context: int, chunk_tokens: int) -> int | None:
        return self.memory(max_context, chunk_tokens).total_bytes if self.on_gpu else None

    def memory(self, max_context: int, chunk_tokens: int | None = None) -> SessionMemory:
        """Predict the bytes on the device while a session of these sizes runs whose context is full."""
        return self.engine.memory(max_context, chunk_tokens or self.engine.default_chunk_tokens)


def load_torch(
    model: str | Path | ModelSource,
    *,
    device: str | None = None,
    precision: str | None = None,
    threads: int = 0,
    verify_hashes: bool = False,
    tokenizer: TokenizerLike | None = None,
    weights: str | Path | None = None,
) -> TorchModel:
    """Load a bundle, a checkpoint directory or a hub id. Arguments and errors are those of `sala_export.load`."""
    threads = whole_number("threads", threads, 0, MOST_THREADS)
    verify_hashes = flag("verify_hashes", verify_hashes)
    precision = optional_text("precision", precision)
    chosen = _device(optional_text("device", device))
    source = model if isinstance(model, ModelSource) else ModelSource.open(model, other_weights=weights)
    if verify_hashes and source.bundle is not None:
        # Weights are hashed as they are loaded, asked or not.
        source.bundle.verify_files()
    if threads:
        torch.set_num_threads(threads)
    kind = _precision(precision, lambda: _plain_precision(source), source.name, chosen)
    if source.bundle is None:
        convert_weights(source.weights(), kind, may_round=precision is not None)
    operators = _operators(source.config, kind, chosen)
    if tokenizer is None:
        tokenizer = tokenizer_of(source.text_files())
    loaded = assemble(source, kind, chosen, operators, tokenizer)
    source.require_unchanged()
    return loaded


def load_random(
    preset: str,
    *,
    layers: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    seed: int = 0,
) -> TorchModel:
    """Load a model of a preset's size with random weights. They are drawn on the device, without a copy on the host.

    Args:
        preset: `9b` or `tiny`, with the distributions of `sala-export random-checkpoint`.
        layers: take only this many layers from the start. By default all.
        device, precision: as in `load_torch`. The model's own precision is bf16.
        seed: random seed of the weights.
    Raises: RequestError or UnsupportedError for a wrong option, RunError if the device has no room for the weights.
    """
    chosen = _device(device)
    kind = _precision(precision, lambda: Precision.BF16, f"random {preset}", chosen)
    source = RandomModel.of_preset(preset, layers, seed=seed, precision=kind, device=chosen)
    return assemble(source, kind, chosen, _operators(source.config, kind, chosen))


def assemble(
    source: LoadableModel,
    precision: Precision,
    device: torch.device,
    operators: Operators,
    tokenizer: TokenizerLike | None = None,
) -> TorchModel:
    """Load the weights of `source` and put the runtime together from its parts. Raises: as `load_torch`."""
    _native_runtime()
    weights = source.weights()
    quantized = quantized_weights_of(source) if isinstance(source, ModelSource) else {}
    packed = load_packed(weights, precision, device, quantized)
    if quantized:
        logger.warning("%s", _emulated(quantized, precision, device))
    logger.info("%s in %s on %s", source.name, precision, device)
    engine = TorchEngine(
        packed,
        operators,
        weights_bytes=weights_bytes(weights.config, precision),
        default_chunk_tokens=CPU_CHUNK_TOKENS if device.type == "cpu" else GPU_CHUNK_TOKENS,
    )
    return TorchModel(engine, source, source.fingerprint(), tokenizer)


def _plain_precision(source: ModelSource) -> Precision:
    """The type of the weights that are not quantised, or the precision of a bundle of plain weights."""
    dtype = source.precision().dtype if source.quantized() is None else source.weights().dtype
    return next(precision for precision in PRECISIONS if precision.dtype == dtype)


def _emulated(quantized: Mapping[str, StoredWeight], precision: Precision, device: torch.device) -> str:
    stored = next(iter(quantized.values()))
    rounded = ", inputs of their products rounded as an engine rounds them" if stored.rounds_input else ""
    return (
        f"{stored.precision} is emulated in {precision} on {device}: weights are dequantised{rounded}; it takes the "
        f"memory of {precision} and is no measure of speed"
    )


def _native_runtime() -> ModuleType:
    """The compiled module with the session. Raises: UnsupportedError if this Python has none."""
    try:
        from ..runtime import _native
    except ImportError as error:
        raise UnsupportedError(
            f"the compiled part of sala-export cannot be imported ({error}): build it for this Python with "
            "scripts/install.sh"
        ) from None
    return _native


def _operators(config: SalaConfig, precision: Precision, device: torch.device) -> Operators:
    """Kernels on a GPU, the reference on the CPU.

    Raises: UnsupportedError if the kernels do not serve this GPU.
    """
    if device.type == "cpu":
        return ReferenceOperators()
    # Here, not above: the CPU needs no Triton.
    from .kernel_operators import KernelOperators

    return KernelOperators(config, precision, device)


def _device(name: str | None) -> torch.device:
    """Raises: RequestError for a device that torch does not know, UnsupportedError for one that is not there."""
    try:
        if name is None:
            name = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(name)
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


def _precision(name: str | None, stored: Callable[[], Precision], model: str, device: torch.device) -> Precision:
    """The precision to run in. Args: `stored`, asked for the model's own where that decides; `model`, its name."""
    if name is None and device.type == "cpu":
        return Precision.FP32
    chosen = stored() if name is None else name
    if chosen not in PRECISIONS:
        whose = f"{model} is in {chosen}" if name is None else f"precision {name} is unknown"
        raise RequestError(f"{whose}: the torch runtime runs {', '.join(PRECISIONS)}, choose one of them as precision")
    return Precision(chosen)
