"""The form in which an operator's contract is written, once.

`ops/<op>/schema.py` holds one `Contract`. The attributes of the graph's nodes, the generated C++ header of the plugin,
the launchers and the table in `docs/operators.md` are derived from it; `tests/ops/test_contracts.py` fails on drift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import ShapeError
from .expr import evaluate

ACTIVATION = "X"
"""Element type variable: the one type that all activations of a call share (float32, float16 or bfloat16)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One input or output. `shape` entries are dimension names or expressions (`expr.py`) over names and attributes."""

    name: str
    dtype: str
    """`X`, or a concrete type name as in `specs.DType`."""
    shape: tuple[str, ...]
    doc: str
    updates: str | None = None
    """Outputs only: the input whose new value this is. At run time both are one buffer, updated in place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribute:
    """One required attribute, `int` (64 bits) or `float` (32 bits)."""

    name: str
    type: type[int] | type[float]
    doc: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A condition on attributes and dimensions: `left <relation> right`, both sides expressions."""

    left: str
    relation: str
    right: str
    doc: str

    def holds(self, names: Mapping[str, int]) -> bool:
        left, right = evaluate(self.left, names), evaluate(self.right, names)
        return {"==": left == right, ">=": left >= right, "<=": left <= right}[self.relation]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contract:
    """Everything that callers and implementations of one operator must agree on."""

    name: str
    """snake_case: the folder, the torch operator, the C++ files."""
    onnx_type: str
    """PascalCase: the ONNX node type and the TensorRT plugin name, in domain and namespace `sala`, version 1."""
    doc: str
    dims: Mapping[str, str]
    """Meaning of every free dimension name used in shapes."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: tuple[Attribute, ...]
    rules: tuple[Rule, ...]

    def bind(
        self,
        shapes: Sequence[Sequence[int]],
        dtypes: Sequence[str],
        attributes: Mapping[str, int | float],
    ) -> dict[str, int]:
        """Check one call and return the value of every dimension and integer attribute by name.

        Args: `shapes` and `dtypes` (names as in `specs.DType`) of all inputs, in order; all attributes.
        Raises: ShapeError naming the operator, the tensor or attribute, what was expected and what was given.
        """
        if len(shapes) != len(self.inputs):
            raise ShapeError(f"{self.onnx_type}: expected {len(self.inputs)} inputs, got {len(shapes)}")
        names = self._integers(attributes)
        activation: str | None = None
        for tensor, shape, dtype in zip(self.inputs, shapes, dtypes, strict=True):
            expected = tensor.dtype
            if expected == ACTIVATION:
                expected = activation = activation or dtype
                if activation not in ("float64", "float32", "float16", "bfloat16"):
                    raise ShapeError(f"{self.onnx_type}: {tensor.name} is {dtype}, expected a floating type")
            if dtype != expected and (dtype, tensor.dtype) != ("float64", "float32"):
                raise ShapeError(f"{self.onnx_type}: {tensor.name} is {dtype}, expected {expected}")
            self._bind_shape(tensor, shape, names)
        for rule in self.rules:
            if not rule.holds(names):
                raise ShapeError(
                    f"{self.onnx_type}: {rule.left} {rule.relation} {rule.right} does not hold "
                    f"({evaluate(rule.left, names)} and {evaluate(rule.right, names)}): {rule.doc}"
                )
        return names

    def _integers(self, attributes: Mapping[str, int | float]) -> dict[str, int]:
        known = {a.name for a in self.attributes}
        if known != attributes.keys():
            wrong = ", ".join(sorted(known ^ attributes.keys()))
            raise ShapeError(f"{self.onnx_type}: attributes missing or unknown: {wrong}")
        names = {}
        for attribute in self.attributes:
            value = attributes[attribute.name]
            if attribute.type is not int:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise ShapeError(f"{self.onnx_type}: {attribute.name} is {value!r}, expected an integer")
            names[attribute.name] = value
        return names

    def _bind_shape(self, tensor: Tensor, shape: Sequence[int], names: dict[str, int]) -> None:
        if len(shape) != len(tensor.shape):
            raise ShapeError(
                f"{self.onnx_type}: {tensor.name} has {len(shape)} dimensions, expected [{', '.join(tensor.shape)}]"
            )
        for extent, text in zip(shape, tensor.shape, strict=True):
            if text in self.dims and text not in names:
                names[text] = extent
            elif evaluate(text, names) != extent:
                raise ShapeError(
                    f"{self.onnx_type}: {tensor.name} has shape {list(shape)}, expected [{', '.join(tensor.shape)}] "
                    f"with {text} = {evaluate(text, names)}"
                )
