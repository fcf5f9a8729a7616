"""Arguments of the model `sala`: what is taken, and one line for what is not."""

from __future__ import annotations

from typing import Any

import pytest

from sala_export.errors import RequestError
from sala_export.interop.lm_eval.arguments import ModelArguments


def test_harness_arguments_become_numbers_and_flags() -> None:
    given = {
        "pretrained": "out.sala",
        "max_context": "32K",
        "batch_size": "4",
        "add_bos_token": False,
        "device": "cuda:0",
    }
    asked = ModelArguments.of({**given, "trust_remote_code": True})
    assert (asked.pretrained, asked.max_context, asked.batch_size) == ("out.sala", 32768, 4)
    assert (asked.add_bos_token, asked.device, asked.runtime) == (False, None, "auto")
    assert ModelArguments.of({"pretrained": "9"}) == ModelArguments(pretrained="9")


@pytest.mark.parametrize(
    ("size", "most", "expected"), [("auto", None, 8), ("auto:3", 5, 5), (2, 5, 2), (None, None, 1)]
)
def test_batch_size(size: object, most: object, expected: int) -> None:
    assert ModelArguments.of({"pretrained": "p", "batch_size": size, "max_batch_size": most}).batch_size == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "model_args has no pretrained: name the model"),
        ({"pretrained": None}, "model_args has no pretrained"),
        (
            {"pretrained": "p", "max_contex": 9},
            "has max_contex, which the model sala does not know: did you mean max_context",
        ),
        ({"pretrained": "p", "max_context": "many"}, "'many' is not a"),
        ({"pretrained": "p", "max_context": 1}, "model_args: max_context is 1, expected a whole number from 2 to"),
        ({"pretrained": "p", "max_gen_toks": 1.5}, "model_args: max_gen_toks is 1.5, expected a whole number from 1"),
        ({"pretrained": "p", "batch_size": "many"}, "model_args: batch_size is 'many', expected a whole number"),
        ({"pretrained": "p", "add_bos_token": "no"}, "model_args: add_bos_token is 'no', expected True or False"),
        ({"pretrained": "p", "runtime": 3}, "runtime is 3, expected text"),
    ],
)
def test_wrong_argument_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match="^" + message if message.startswith("model_args") else message):
        ModelArguments.of(given)
