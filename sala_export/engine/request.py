"""The request for an engine: GPUs, precision and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RequestError, UnsupportedError
from ..specs import BUILT_PRECISIONS, FlavourName, Precision, format_tokens, one_of
from .recipe import GpuRecipe, Target, names_of

MAX_BATCH = 256
"""Largest batch. Kernels put batch times heads into a grid dimension of at most 65535."""

_NEAREST = {
    Precision.FP8: (Precision.INT8, Precision.INT4),
    Precision.MXFP8: (Precision.FP8, Precision.INT8, Precision.INT4),
    Precision.INT8: (Precision.FP8, Precision.INT4),
    Precision.INT4: (Precision.NVFP4, Precision.INT8, Precision.FP8),
    Precision.NVFP4: (Precision.MXFP8, Precision.FP8, Precision.INT8, Precision.INT4),
}
"""Precisions nearest in speed to a quantised one, best first. The 16-bit types come after these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    """One engine to build: its GPUs, its precision and its sizes.

    Raises: RequestError or UnsupportedError naming the command-line option that is wrong.
    """

    target: Target
    precision: Precision = Precision.BF16
    max_context: int
    """Largest number of tokens that the caches hold."""
    prefill_chunk: int
    """Largest number of tokens that one call of the engine takes."""
    max_batch: int = 1
    """Largest number of sequences that one decode step takes, with one token each."""
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
        stored: Precision | None = None,
    ) -> EngineRequest:
        """Make a request from command-line options. An option that is None comes from the recipes.

        If the context is smaller than the recipes' chunk, the chunk shrinks. A chunk that you ask for does not.

        Args: `stored` is the precision of a quantised model, which is built unless `precision` says otherwise.
        """
        if precision is None and stored is not None:
            _require_stored(stored, target)
            precision = stored
        context = target.default_max_context if max_context is None else max_context
        return cls(
            target=target,
            precision=require_precision(Precision.BF16 if precision is None else precision, target),
            max_context=context,
            prefill_chunk=min(target.default_prefill_chunk, context) if prefill_chunk is None else prefill_chunk,
            max_batch=max_batch,
            flavour=flavour,
        )


def require_precision(name: str, target: Target) -> Precision:
    """Return the precision of this name, if all GPUs of the target run it and this release builds it.

    Raises: UnsupportedError saying which of the two fails, and the best precision to use instead; RequestError for an
        empty name.
    """
    if not name:
        raise RequestError(f"--precision is empty: expected {one_of(BUILT_PRECISIONS)}")
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


def _require_stored(precision: Precision, target: Target) -> None:
    """Refuse a quantised model that not all GPUs of the target run: no other precision can be built of it.

    Raises: UnsupportedError.
    """
    lacking = [gpu for gpu in target.gpus if precision not in gpu.precisions]
    if not lacking:
        return
    able = ",".join(gpu.name for gpu in target.gpus if gpu not in lacking)
    choice = f"build with --gpu {able}" if able else "choose another --gpu"
    served = [each for each in BUILT_PRECISIONS if all(each in gpu.precisions for gpu in target.gpus)]
    raise UnsupportedError(
        f"the model is quantised to {precision}, but {_lack(precision, lacking)}; {choice}, or take the "
        f"original model, which can be built in {', '.join(served)}"
    )


def _lack(precision: str, gpus: Sequence[GpuRecipe]) -> str:
    verb = "have" if len(gpus) > 1 else "has"
    lack = f"{names_of(gpus, capabilities=True)} {verb} no {precision.upper()}"
    return lack if len(gpus) > 1 else f"{lack}, it runs {', '.join(gpus[0].precisions)}"
