"""Inputs and outputs of the model, under the names that clients of Triton's other LLM backends use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError


@dataclass(frozen=True, slots=True)
class TensorForm:
    """Type and shape of a tensor."""

    data_type: str
    """As `config.pbtxt` writes it, without `TYPE_`."""
    is_list: bool = False
    """int [-1] rather than [1]."""


INPUTS = {
    "text_input": TensorForm("STRING"),
    "input_ids": TensorForm("INT32", is_list=True),
    "messages": TensorForm("STRING"),
    "stream": TensorForm("BOOL"),
    "max_tokens": TensorForm("INT32"),
    "max_new_tokens": TensorForm("INT32"),
    "temperature": TensorForm("FP32"),
    "top_p": TensorForm("FP32"),
    "top_k": TensorForm("INT32"),
    "min_p": TensorForm("FP32"),
    "seed": TensorForm("UINT64"),
    "random_seed": TensorForm("UINT64"),
    "repetition_penalty": TensorForm("FP32"),
    "frequency_penalty": TensorForm("FP32"),
    "presence_penalty": TensorForm("FP32"),
    "stop": TensorForm("STRING", is_list=True),
    "stop_words": TensorForm("STRING", is_list=True),
    "stop_token_ids": TensorForm("INT32", is_list=True),
    "ignore_eos": TensorForm("BOOL"),
    "sampling_parameters": TensorForm("STRING"),
}
"""All are optional."""

OUTPUTS = {
    "text_output": TensorForm("STRING"),
    "reasoning_output": TensorForm("STRING"),
    "output_ids": TensorForm("INT32", is_list=True),
    "finish_reason": TensorForm("STRING"),
    "num_input_tokens": TensorForm("INT32"),
    "num_cached_tokens": TensorForm("INT32"),
    "num_output_tokens": TensorForm("INT32"),
}

_NUMPY = {"STRING": np.object_, "INT32": np.int32}


def value_of(name: str, tensor: NDArray[Any]) -> Any:
    """The plain value of an input: a text, number or bool, or a list of them.

    Raises: RequestError for a tensor that is not of the input's shape, or for text that is no UTF-8.
    """
    form = INPUTS[name]
    values = tensor.reshape(-1).tolist()
    if form.data_type == "STRING":
        values = [_text(name, each) for each in values]
    if form.is_list:
        return values
    if len(values) != 1:
        raise RequestError(f"{name} has {len(values)} values, expected one")
    return values[0]


def array_of(name: str, value: Any) -> NDArray[Any]:
    """The array of an output, of shape [1], or [values] for a list."""
    form = OUTPUTS[name]
    values = value if form.is_list else [value]
    if form.data_type == "STRING":
        values = [each.encode() for each in values]
    return np.array(values, _NUMPY[form.data_type])


def _text(name: str, value: bytes | str) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is no UTF-8 text: byte {error.start} is wrong") from None
