"""Computes time from work: the floor that no kernel beats, and a prediction from what kernels reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint.quantization import SCHEMES
from ..engine.recipe import GpuRecipe
from ..errors import UnsupportedError
from ..ops.common.targets import require_architecture
from ..ops.infllmv2_attention import tiles
from ..specs import Precision
from .work import Kind, Phase

_INT8 = "int8"
WEIGHT_BITS: Mapping[str, float] = {
    "bf16": 16.0,
    "fp16": 16.0,
    **{precision.value: scheme.bits_per_weight for precision, scheme in SCHEMES.items()},
}
"""Bits per weight of a quantised projection, its share of the scale of its group included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """Share of the peak of tensor cores and memory that kernels of a kind reach."""

    operations: float
    bytes: float
    source: str


PREFILL: Mapping[Kind, Efficiency] = {
    Kind.GEMM: Efficiency(
        operations=0.9,
        bytes=0.9,
        source="the published Qwen3-8B figures on the RTX PRO 6000D at 64K to 256K take 1.10 to 1.12 x its floor",
    ),
    Kind.DENSE_ATTENTION: Efficiency(operations=0.9, bytes=0.9, source="the same figures, half attention at 128K"),
    Kind.ELEMENTWISE: Efficiency(
        operations=1.0, bytes=0.8, source="assumed: streaming kernels at 80 % of the bandwidth"
    ),
}
"""Kinds of work that every GPU computes alike."""

BLOCK_SCALED = Efficiency(
    operations=0.83,
    bytes=0.9,
    source=(
        "by the account of the compiled kernels (sala_export/ops/block_scaled_linear/README.md; rtx5090): 22.2 s at "
        "the peak over the 26.8 s predicted for 1M, tensor cores that wait a tenth of the time"
    ),
)
"""Products of mxfp8, which are kernels of this project."""

_SELECTION = "its 26.2, 35.4 and 5.5 ms of products over the 29.5, 44 and 9 ms predicted for 128K"
_BOUNDS = (
    "2048 cycles of int8 products over the 2983 of a turn, whose other instructions hide as little as those of 16 bits"
)
_SURVIVORS = "their products over the time in which the L2 cache gives the keys, and the choice among them"
_ATTENTION = "its 61, 83 and 13 ms of products over the 95, 235 and 67 ms predicted, neighbours with no block in common"
_LIGHTNING = "its 150, 350 and 80 us of bytes over the 330, 770 and 240 us predicted for 8K"
_OF_THE_LOOPS = "by the instructions of the compiled loops "
_OF_THE_CODE = "by the account of the compiled kernels (docs/kernel_predictions.md; rtx5090, a6000, h100): "


def _kernels(selection: float, survivors: float, attention: float, lightning_bytes: float) -> Mapping[Kind, Efficiency]:
    return {
        Kind.SELECTION: Efficiency(operations=selection, bytes=0.8, source=_OF_THE_CODE + _SELECTION),
        Kind.BOUNDS: Efficiency(operations=0.69, bytes=0.8, source=_OF_THE_LOOPS + _BOUNDS),
        Kind.SURVIVORS: Efficiency(operations=survivors, bytes=0.8, source=_OF_THE_LOOPS + _SURVIVORS),
        Kind.SPARSE_ATTENTION: Efficiency(operations=attention, bytes=0.8, source=_OF_THE_CODE + _ATTENTION),
        Kind.LIGHTNING: Efficiency(operations=0.5, bytes=lightning_bytes, source=_OF_THE_CODE + _LIGHTNING),
    }


KERNELS: Mapping[int, Mapping[Kind, Efficiency]] = {
    86: _kernels(0.80, 0.36, 0.35, 0.45),
    87: _kernels(0.80, 0.36, 0.35, 0.45),
    89: _kernels(0.89, 0.64, 0.64, 0.45),
    90: _kernels(0.61, 0.36, 0.19, 0.33),
    110: _kernels(0.61, 0.36, 0.19, 0.33),
    120: _kernels(0.89, 0.64, 0.64, 0.45),
    121: _kernels(0.89, 0.64, 0.64, 0.45),
}
"""Operators in prefill, by the architecture whose kernels a GPU runs. SM89 has the tiles and rates of SM120, and SM121
runs the same instructions. There is no account for SM87 and SM110: they are taken to be as SM86 and SM90. SM90 and
SM110 bound no scores, so that nothing asks for what they reach with bounds."""

DECODE_BYTES = 0.85
"""Share of the bandwidth that products with one row reach (assumed)."""
DECODE_LAUNCH_SECONDS = 2e-6
"""Seconds between kernels of a CUDA graph (assumed)."""
DECODE_KERNELS_PER_LAYER = 9
"""Kernels of a decode step per layer: two norms, four products, the operator's two, one activation (assumed).

The operator takes one in a Lightning layer and four in an InfLLM-v2 layer.
"""


def bounded_blocks(recipe: GpuRecipe) -> int:
    """Candidate blocks of a token from which this GPU's kernels bound their scores in int8; 0 for never.

    Raises: UnsupportedError for a GPU without kernels.
    """
    return tiles.BOUNDED_BLOCKS[require_architecture(recipe.compute_capability)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A time in seconds. `floor` is the roofline of the GPU's peak rates, `predicted` adds what kernels lose."""

    floor: float
    predicted: float


def has_rates(recipe: GpuRecipe, precision: str) -> bool:
    """True if times can be estimated: the recipe states all rates that the products of this precision run at."""
    rates = {_rate(precision, quantized=quantized) for quantized in (False, True)}
    rates |= {_INT8} if bounded_blocks(recipe) else set()
    return precision in WEIGHT_BITS and rates <= recipe.peak_tera_operations_per_second.keys()


def time_of_prefill(phases: Sequence[Phase], recipe: GpuRecipe, precision: str) -> Estimate:
    """Time of a prefill. Phases run one after the other, and each takes the longer of its operations and its bytes.

    Products of quantised weights run at the GPU's rate for their type, bounds of selection at that for int8, and all
    else at that for 16 bits: attention, the gates, lm_head, and int4, which quantises weights alone.

    Raises: UnsupportedError for a GPU without kernels.
    """
    efficiencies = {**PREFILL, **KERNELS[require_architecture(recipe.compute_capability)]}
    floor = predicted = 0.0
    for phase in phases:
        is_block_scaled = phase.quantized and precision == Precision.MXFP8
        efficiency = BLOCK_SCALED if is_block_scaled else efficiencies[phase.kind]
        operations = phase.operations / (_peak(recipe, _type(phase, precision), precision) * 1e12)
        moved = phase.bytes / (recipe.memory_gigabytes_per_second * 1e9)
        # Perfect fusion leaves none of one, perfect bounds none of the other.
        if phase.kind not in (Kind.ELEMENTWISE, Kind.SURVIVORS):
            floor += max(operations, moved)
        predicted += max(operations / efficiency.operations, moved / efficiency.bytes)
    return Estimate(floor=floor, predicted=predicted)


def time_of_decode(phases: Sequence[Phase], layers: int, recipe: GpuRecipe) -> Estimate:
    """Time of one token at batch 1, which is bound by the bytes that it reads."""
    floor = sum(phase.bytes for phase in phases) / (recipe.memory_gigabytes_per_second * 1e9)
    launches = layers * DECODE_KERNELS_PER_LAYER * DECODE_LAUNCH_SECONDS
    return Estimate(floor=floor, predicted=floor / DECODE_BYTES + launches)


def _type(phase: Phase, precision: str) -> str:
    """The type whose rate a phase runs at."""
    return _INT8 if phase.kind is Kind.BOUNDS else _rate(precision, quantized=phase.quantized)


def _peak(recipe: GpuRecipe, type_: str, precision: str) -> float:
    """Tera-operations per second of products of a type, to plan for a precision.

    Raises: UnsupportedError for a recipe that does not state the rate.
    """
    rates = recipe.peak_tera_operations_per_second
    if type_ not in rates:
        raise UnsupportedError(
            f"the recipe of {recipe.gpu} has no peak_tera_operations_per_second.{type_}: add it to plan for {precision}"
        )
    return rates[type_]


def _rate(precision: str, *, quantized: bool) -> str:
    """The type whose rate the products of this precision run at, of quantised weights or others."""
    scheme = SCHEMES.get(Precision(precision))
    return precision if scheme is None or (quantized and scheme.input_activations) else "bf16"
