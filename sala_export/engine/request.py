"""What an engine is asked to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ..errors import RequestError, UnsupportedError
from ..specs import QUANTIZED_PRECISIONS, Precision, format_tokens
from .recipe import GpuRecipe, Target, names_of

MAX_BATCH = 256
"""Kernels put batch times heads into a grid dimension of at most 65535."""

BUILT_PRECISIONS = (Precision.BF16, Precision.FP16, *QUANTIZED_PRECISIONS)
"""Precisions that this release builds engines of."""

_NEAREST = {
    Precision.FP8: (Precision.INT8, Precision.INT4),
    Precision.INT8: (Precision.FP8, Precision.INT4),
    Precision.INT4: (Precision.NVFP4, Precision.INT8, Precision.FP8),
    Precision.NVFP4: (Precision.FP8, Precision.INT8, Precision.INT4),
}
"""What comes nearest to a quantised precision in speed, best first; after these the 16-bit types."""


class FlavourName(StrEnum):
    """Which TensorRT builds the engine."""

    AUTO = "auto"
    """TensorRT for RTX: it needs no GPU to build."""
    RTX = "rtx"
    """TensorRT for RTX."""
    TENSORRT = "tensorrt"
    """TensorRT proper: builds on and for the GPU of this machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    """One engine: for which GPUs, in what precision, of which sizes.

    Raises: RequestError or UnsupportedError naming the command-line option that is wrong.
    """

    target: Target
    precision: Precision = Precision.BF16
    max_context: int
    """Tokens that the caches hold at most."""
    prefill_chunk: int
    """Tokens that one call of the engine takes at most."""
    max_batch: int = 1
    """Sequences that one call takes at most."""
    flavour: FlavourName = FlavourName.AUTO

    def __post_init__(self) -> None:
        for option, value in (
            ("--max-context", self.max_context),
            ("--prefill-chunk", self.prefill_chunk),
            ("--max-batch", self.max_batch),
        ):
            if value < 1:
                raise RequestError(f"{option} {value}: expected at least 1")
        if self.max_batch > MAX_BATCH:
            raise RequestError(f"--max-batch {self.max_batch}: expected at most {MAX_BATCH}")
        if self.prefill_chunk > self.max_context:
            raise RequestError(
                f"--prefill-chunk {format_tokens(self.prefill_chunk)} is larger than --max-context "
                f"{format_tokens(self.max_context)}: a chunk must fit the context"
            )
        require_precision(self.precision, self.target)

    @classmethod
    def from_options(
        cls,
        target: Target,
        *,
        precision: str | None = None,
        max_context: int | None = None,
        prefill_chunk: int | None = None,
        max_batch: int = 1,
        flavour: FlavourName = FlavourName.AUTO,
    ) -> EngineRequest:
        """A request from command-line options; what is None comes from the recipes.

        The recipes' chunk gives way to a smaller context; a chunk that was asked for does not.
        """
        context = target.default_max_context if max_context is None else max_context
        return cls(
            target=target,
            precision=require_precision(precision or Precision.BF16, target),
            max_context=context,
            prefill_chunk=min(target.default_prefill_chunk, context) if prefill_chunk is None else prefill_chunk,
            max_batch=max_batch,
            flavour=flavour,
        )


def require_precision(name: str, target: Target) -> Precision:
    """The precision of this name, if all GPUs of the target run it and this release builds it.

    Raises: UnsupportedError saying which of the two fails, with the best that there is instead.
    """
    precision = name.lower()
    known = next((each for each in Precision if each == precision), None)
    nearest = (*(_NEAREST.get(known, ()) if known else ()), *BUILT_PRECISIONS)
    built = next((each for each in nearest if all(each in gpu.precisions for gpu in target.gpus)), None)
    lacking = [gpu for gpu in target.gpus if precision not in gpu.precisions]
    able = ",".join(gpu.name for gpu in target.gpus if gpu not in lacking)
    choices = [f"--precision {built}"] * bool(built) + [f"--gpu {able}"] * bool(lacking and able)
    use = f"use {', or '.join(choices)}" if choices else "choose another --gpu"
    if lacking:
        raise UnsupportedError(f"--precision {precision}: {_lack(precision, lacking)}; {use}")
    if known in BUILT_PRECISIONS:
        return known
    raise UnsupportedError(
        f"--precision {precision}: this release builds engines in {', '.join(BUILT_PRECISIONS)} only; {use}"
    )


def _lack(precision: str, gpus: Sequence[GpuRecipe]) -> str:
    verb = "have" if len(gpus) > 1 else "has"
    lack = f"{names_of(gpus, capabilities=True)} {verb} no {precision.upper()}"
    return lack if len(gpus) > 1 else f"{lack}, it runs {', '.join(gpus[0].precisions)}"
