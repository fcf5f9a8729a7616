"""Vocabulary that every stage shares: element types, precisions, sizes and tensor specifications."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from .errors import ConfigError, RequestError


class DType(StrEnum):
    """Element types that cross a stage boundary. The values are numpy's and torch's names."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT8_E4M3FN = "float8_e4m3fn"
    FLOAT4_E2M1FN = "float4_e2m1fn"
    """Four bits: two in a byte, the first in the low bits."""
    INT8 = "int8"
    UINT8 = "uint8"

    @property
    def bits(self) -> int:
        """Size of one element in bits."""
        return _ELEMENT_BITS[self]

    @property
    def bytes(self) -> int:
        """Size of one element in bytes. Raises: ValueError for a type of less than a byte."""
        if self.bits % 8:
            raise ValueError(f"an element of {self} is no whole number of bytes")
        return self.bits // 8


_ELEMENT_BITS = {
    DType.FLOAT32: 32,
    DType.FLOAT16: 16,
    DType.BFLOAT16: 16,
    DType.INT32: 32,
    DType.INT64: 64,
    DType.FLOAT8_E4M3FN: 8,
    DType.FLOAT4_E2M1FN: 4,
    DType.INT8: 8,
    DType.UINT8: 8,
}


class Precision(StrEnum):
    """Type of weights and activations of an exported graph or engine."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    """Quantised, like the four below. See docs/quantisation.md."""
    MXFP8 = "mxfp8"
    INT8 = "int8"
    INT4 = "int4"
    NVFP4 = "nvfp4"

    @property
    def dtype(self) -> DType:
        """Type of the activations, and of the weights unless they are quantised."""
        return {Precision.FP32: DType.FLOAT32, Precision.FP16: DType.FLOAT16}.get(self, DType.BFLOAT16)

    @property
    def is_quantized(self) -> bool:
        """True if the projections multiply quantised weights."""
        return self in QUANTIZED_PRECISIONS


QUANTIZED_PRECISIONS = tuple(each for each in Precision if each not in (Precision.FP32, Precision.BF16, Precision.FP16))

BUILT_PRECISIONS = (Precision.BF16, Precision.FP16, *QUANTIZED_PRECISIONS)
"""Precisions that this release builds engines of."""

OPERATOR_DOMAIN = "sala"
"""ONNX domain and TensorRT plugin namespace of the operators."""

TOKENIZER_FILE = "tokenizer.json"
"""Name of the tokenizer in checkpoints and bundles."""

RUNTIMES = ("auto", "tensorrt", "onnxruntime", "torch")
"""Names of the runtimes that users can choose."""


class CpuMath(StrEnum):
    """Arithmetic of a bundle's products and caches on a CPU."""

    EXACT = "exact"
    """Products, sums and caches in fp32."""
    FAST = "fast"
    """Inputs of products rounded to bf16, or to 8 bits for int4 weights; sums in fp32, caches of 16 bits."""


class FlavourName(StrEnum):
    """Names of the TensorRT that builds the engine."""

    AUTO = "auto"
    """TensorRT for RTX, because it needs no GPU to build."""
    RTX = "rtx"
    """TensorRT for RTX."""
    TENSORRT = "tensorrt"
    """TensorRT proper, which builds on the GPU of this machine, for that GPU."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, type and shape of a graph input or output. A string in the shape is a symbolic dimension."""

    # For pydantic, which reads bundle.json: unknown fields are refused.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    name: str
    dtype: DType
    shape: tuple[int | str, ...]

    def bound(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """The shape with every symbolic dimension replaced from `sizes`."""
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.shape)

    def size_bytes(self, sizes: dict[str, int]) -> int:
        """Bytes of the tensor at the given symbolic sizes."""
        return math.prod(self.bound(sizes)) * self.dtype.bits // 8


@dataclass(frozen=True, order=True, slots=True)
class ComputeCapability:
    """Compute capability of a GPU, e.g. 12.0."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> ComputeCapability:
        """Read `major.minor`. Raises: ConfigError."""
        match = re.fullmatch(r"([0-9]{1,4})\.([0-9])", text)
        if not match:
            raise ConfigError(f"compute_capability is {text!r}, expected major.minor, as in '12.0'")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def from_sm(cls, name: str) -> ComputeCapability:
        """Read TensorRT's name, e.g. `SM120`: the last digit is the minor number. Raises: ValueError."""
        return cls(int(name.removeprefix("SM")[:-1]), int(name[-1]))

    @property
    def sm(self) -> str:
        """The name in NVIDIA's tools, e.g. `SM120`."""
        return f"SM{self.major}{self.minor}"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


STREAM = "hidden_states."
"""Prefix of the residual stream between layers."""


def stream_name(layer: int) -> str:
    """Name of the residual stream [batch, tokens, hidden_size] that enters `layer`."""
    return f"{STREAM}{layer}"


_SIZE = re.compile(r"^\s*(\d{1,20})\s*([KMkm]?)\s*$")

MOST_TOKENS = 2**31 - 1
"""Tokens of the longest context that any engine serves. Token ids end there too."""
MOST_DRAFT_TOKENS = 64
"""Tokens that can be drafted for one step of an answer."""


def parse_tokens(text: str) -> int:
    """Read a token count: plain digits, or binary `K` and `M` (`64K` is 65536, `1M` is 1048576).

    Raises: RequestError if the text is neither, or the count is zero or more than any engine serves.
    """
    match = _SIZE.match(text)
    count = int(match[1]) * {"": 1, "k": 1024, "m": 1024 * 1024}[match[2].lower()] if match else 0
    if not 0 < count <= MOST_TOKENS:
        raise RequestError(
            f"{text[:40]!r} is not a token count of 1 to {MOST_TOKENS}: write digits, or digits with K or M, as in "
            "64K or 1M"
        )
    return count


def format_tokens(count: int) -> str:
    """The shortest exact spelling that `parse_tokens` reads back."""
    for factor, suffix in ((1024 * 1024, "M"), (1024, "K")):
        if count >= factor and count % factor == 0:
            return f"{count // factor}{suffix}"
    return str(count)


_BYTES = re.compile(r"^\s*(\d{1,20})\s*(?:([KMGT])(?:i?B)?|B?)\s*$", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Read a size in bytes: plain digits, or binary `K`, `M`, `G` and `T` (`200G` and `200GiB` are 200 * 2**30).

    Raises: RequestError if the text is neither, or the size is zero or more than 2**63 - 1.
    """
    match = _BYTES.match(text)
    size = int(match[1]) << 10 * " KMGT".index((match[2] or " ").upper()) if match else 0
    if not 0 < size < 2**63:
        raise RequestError(
            f"{text[:40]!r} is not a size in bytes: write digits, or digits with K, M, G or T, as in 200G or 500M"
        )
    return size


def built_precision(name: str) -> Precision:
    """The precision of this name, in any case of letters, that bundles are built in.

    Raises: RequestError for an unknown name.
    """
    found = next((each for each in BUILT_PRECISIONS if each == name.lower()), None)
    if found is None:
        raise RequestError(f"--precision {name}: unknown, use one of {one_of(BUILT_PRECISIONS)}")
    return found


def one_of(names: Sequence[str]) -> str:
    """Names to choose from, for a sentence: `fp8, int8 or int4`."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def format_bytes(count: float) -> str:
    """Bytes in the binary unit a person would choose, e.g. `17.65 GiB`."""
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(count) >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f} B"


def computed_in(quantized: Precision | None, precision: str) -> str:
    """What a model is in, for people: `bf16`, or `int8 computed in fp32` where quantised weights are emulated."""
    if quantized is None or quantized == precision:
        return precision
    return f"{quantized} computed in {precision}"
