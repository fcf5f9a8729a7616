"""Contracts applied to torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from .contract import Contract

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchOperator(Generic[Result]):
    """An operator in torch, its calls checked against the contract: what models run.

    For example, `lightning_attention(qkvz, q_norm, k_norm, o_norm, rope_cos_sin, state, **attributes)`.
    """

    contract: Contract
    reference: Callable[..., Result]
    """The truth: it takes the inputs by position and the attributes by keyword, and says what it returns."""
    check_values: Callable[..., None] | None = None
    """Checks what the contract cannot say, from the sizes by name and the inputs; raises ShapeError."""

    def __call__(self, *inputs: Tensor, **attributes: Any) -> Result:
        """Run the reference on inputs in the contract's order.

        Raises: ShapeError if a shape, type, attribute or value breaks the contract; the inputs are then untouched.
        """
        names = bind_call(self.contract, inputs, attributes)
        if self.check_values is not None:
            self.check_values(names, *inputs)
        return self.reference(*inputs, **attributes)


def bind_call(contract: Contract, tensors: Sequence[Tensor], attributes: Mapping[str, int | float]) -> dict[str, int]:
    """Check one call of an operator; returns dimensions and integer attributes by name.

    Raises: ShapeError as `Contract.bind`.
    """
    return contract.bind([t.shape for t in tensors], [str(t.dtype).removeprefix("torch.") for t in tensors], attributes)
