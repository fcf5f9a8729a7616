"""Predicts what a machine without a GPU can hold, and how fast it will be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint.config import SalaConfig
from ..checkpoint.quantization import Quantization
from ..specs import CpuMath, DType, Precision, built_precision
from .cpu_rates import CpuMachine
from .roofline import WEIGHT_BITS
from .work import Kind, Phase, Sala

CPU_PRECISIONS = (Precision.BF16, Precision.MXFP8, Precision.FP8, Precision.INT8, Precision.NVFP4, Precision.INT4)
CPU_CONTEXTS = (4 << 10, 32 << 10, 128 << 10, 1 << 20)

_LARGEST_CONTEXT = 64 << 20
_CONTEXT_STEP = 1024
_CHUNK = 512
"""Tokens of a step of prefill on a CPU (`kDefaultChunkTokens` of the runtime)."""

_PROGRAM_BYTES = 256 << 20
"""Python, ONNX Runtime and the graph. Assumed."""
_SYSTEM_BYTES = 1 << 30
"""What the system and other programs keep. Assumed."""

_READING = 0.79
_REACHED: Mapping[Kind, float] = {
    Kind.GEMM: 0.73,
    Kind.SELECTION: 0.62,
    Kind.SPARSE_ATTENTION: 0.62,
    Kind.DENSE_ATTENTION: 0.62,
    Kind.LIGHTNING: 0.4,
}
"""Shares of the bandwidth that decoding reaches, and of the rate of products that kinds of work reach in prefill.

Where each comes from, two cores of an AMD EPYC (Zen 4) unless it says otherwise:

    0.79  9B in int4, fast, one token behind 512: 33 of the 42 GB/s at which two threads read (docs/cpu.md)
    0.73  the same, a prompt of 512 tokens, of the peak rate of int8
    0.62  attention in bfloat16, 512 tokens at 8000; 0.74 in float32
    0.4   Lightning: assumed
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuRow:
    """Prediction for one length of context, for one session."""

    context: int
    caches_bytes: float
    memory_bytes: float
    """Bytes of weights, caches and work, and what the system keeps."""
    fits: bool
    decode_tokens_per_second: float
    """Rate of an answer behind so many tokens."""
    prefill_seconds: float
    """Time until the first token of an answer to a prompt of this length."""

    @property
    def prefill_tokens_per_second(self) -> float:
        return self.context / self.prefill_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedCpuForm:
    """A precision of the weights in one form of arithmetic."""

    precision: Precision
    math: CpuMath
    weights_bytes: float
    largest_context: int | None
    """The longest context that fits, in whole K. None if not even the weights do."""
    rows: tuple[CpuRow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuPlan:
    """Everything that `sala-export plan --gpu cpu` shows."""

    machine: CpuMachine
    context: int
    """The length of context that was asked for. Every form has a row of it."""
    forms: tuple[PlannedCpuForm, ...]


def cpu_precisions(name: str | None) -> tuple[Precision, ...]:
    """The precisions to plan: that of this name, or all if there is none.

    Raises: RequestError for an unknown name."""
    return CPU_PRECISIONS if name is None else (built_precision(name),)


def plan_cpu(
    config: SalaConfig,
    machine: CpuMachine,
    context: int,
    precisions: Sequence[Precision],
    quantization: Quantization | None = None,
) -> CpuPlan:
    """Plan a model on a machine, in each of the precisions and in both forms.

    Args: `quantization` is that of a quantised checkpoint, for its precision.
    """
    contexts = sorted({context, *CPU_CONTEXTS})
    forms = []
    for precision in precisions:
        stored = quantization if quantization and quantization.precision is precision else None
        model = Sala.in_precision(config, precision, stored)
        forms += [_form(model, machine, precision, math, contexts) for math in CpuMath]
    return CpuPlan(machine=machine, context=context, forms=tuple(forms))


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What a precision of the weights needs, in the fast form."""

    precision: Precision
    needed_bytes: float
    fits: bool


def needs(config: SalaConfig, memory_bytes: float, context: int) -> tuple[Need, ...]:
    """What every precision needs at a context, and whether a machine with so much memory has it."""
    found = {
        each: needed_bytes(Sala.in_precision(config, each), each, CpuMath.FAST, context) for each in CPU_PRECISIONS
    }
    return tuple(
        Need(precision=precision, needed_bytes=needed, fits=needed <= memory_bytes)
        for precision, needed in found.items()
    )


def needed_bytes(model: Sala, precision: Precision, math: CpuMath, context: int) -> float:
    """Memory in bytes of a machine that runs a model at a context."""
    config, weights = model.config, model.weights_bytes(WEIGHT_BITS[precision])
    # Rows of float32: the inputs and outputs of a gated MLP, and those of a mixer.
    work = 4.0 * _CHUNK * (3 * config.intermediate_size + 10 * config.hidden_size)
    return weights + _caches_bytes(model, math, context) + work + _PROGRAM_BYTES + _SYSTEM_BYTES


def _form(
    model: Sala, machine: CpuMachine, precision: Precision, math: CpuMath, contexts: Sequence[int]
) -> PlannedCpuForm:
    return PlannedCpuForm(
        precision=precision,
        math=math,
        weights_bytes=model.weights_bytes(WEIGHT_BITS[precision]),
        largest_context=_largest_context(model, precision, math, machine.memory_bytes.value),
        rows=tuple(_row(model, machine, precision, math, context) for context in contexts),
    )


def _row(model: Sala, machine: CpuMachine, precision: Precision, math: CpuMath, context: int) -> CpuRow:
    bits = WEIGHT_BITS[precision]
    memory = needed_bytes(model, precision, math, context)
    read = sum(_bytes(phase, math) for phase in model.decode(context, bits))
    prefill = model.prefill(context, min(context, _CHUNK), bits, bounded_blocks=0)
    return CpuRow(
        context=context,
        caches_bytes=_caches_bytes(model, math, context),
        memory_bytes=memory,
        fits=memory <= machine.memory_bytes.value,
        decode_tokens_per_second=_READING * machine.bytes_per_second.value / read,
        prefill_seconds=sum(_seconds(phase, machine, precision, math) for phase in prefill),
    )


def _caches_bytes(model: Sala, math: CpuMath, context: int) -> float:
    return model.cache_bytes(context, DType.FLOAT32 if math is CpuMath.EXACT else DType.BFLOAT16)


def _bytes(phase: Phase, math: CpuMath) -> float:
    """Bytes that a phase moves. The work is counted with caches and activations of 16 bits."""
    has_caches = phase.kind in (Kind.SELECTION, Kind.SPARSE_ATTENTION, Kind.DENSE_ATTENTION)
    is_wide = phase.kind is Kind.ELEMENTWISE or (has_caches and math is CpuMath.EXACT)
    return (2.0 if is_wide else 1.0) * phase.bytes


def _seconds(phase: Phase, machine: CpuMachine, precision: Precision, math: CpuMath) -> float:
    """Time of a phase of a prefill: the longer of its operations and its bytes."""
    moved = _bytes(phase, math) / (_READING * machine.bytes_per_second.value)
    if phase.kind is Kind.ELEMENTWISE:
        return moved
    rate = machine.operations_per_second[_operands(phase, precision, math)].value
    return max(moved, phase.operations / (_REACHED[phase.kind] * rate))


def _operands(phase: Phase, precision: Precision, math: CpuMath) -> str:
    """The type that a phase multiplies."""
    if math is CpuMath.EXACT or phase.kind is Kind.LIGHTNING or precision is Precision.FP16:
        return "float32"
    if phase.kind is not Kind.GEMM:
        return "bfloat16_attention"
    return "int8" if precision is Precision.INT4 and phase.quantized else "bfloat16"


def _largest_context(model: Sala, precision: Precision, math: CpuMath, memory_bytes: float) -> int | None:
    """The longest context in whole steps, by bisection, since the need grows with the context."""
    fits, too_long = 0, _LARGEST_CONTEXT // _CONTEXT_STEP + 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if needed_bytes(model, precision, math, middle * _CONTEXT_STEP) <= memory_bytes:
            fits = middle
        else:
            too_long = middle
    return fits * _CONTEXT_STEP or None
