"""Perplexity: sums by position against a plain loop, and a whole evaluation against the torch module."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.checkpoints import tiny_checkpoint
from support.text_bundles import tiny_text_bundle

import sala_export
from sala_export.calibration.shipped_text import documents
from sala_export.cli.app import run
from sala_export.errors import RequestError
from sala_export.evaluation.perplexity import EvaluationText, score_text
from sala_export.evaluation.prompts import ReadText
from sala_export.evaluation.run import EvaluatedModel, EvaluationRequest, run_evaluation
from sala_export.model_source import ModelSource
from sala_export.progress import silent
from sala_export.runtime.text import Tokenizer


@dataclass
class _Scores:
    logprobs: NDArray[np.float64]


class ScriptedSession:
    """Gives log-probabilities that were written down, and notes how it was asked."""

    def __init__(self, logprobs: NDArray[np.float64]) -> None:
        self.logprobs = logprobs
        self.position = 0
        self.context_lengths: set[int | None] = set()

    def score(self, prompt: NDArray[np.int32], *, context_length: int | None = None) -> _Scores:
        first, self.position = self.position, self.position + len(prompt)
        self.context_lengths.add(context_length)
        return _Scores(self.logprobs[first : self.position])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_files(ModelSource.of_bundle(tiny_text_bundle()).text_files())


@pytest.mark.parametrize("leading", [[1], []])
@pytest.mark.parametrize(("length", "piece"), [(17, 5), (256, 256), (257, 100), (1030, 7), (3000, 1024)])
def test_sums_by_position_are_those_of_a_loop(
    length: int, piece: int, leading: list[int], tokenizer: Tokenizer
) -> None:
    text = EvaluationText.of("Grüße aus Köln! 世界. " * 400, tokenizer, leading, "text")
    logprobs = np.random.default_rng(length).normal(-3.0, 1.0, length)
    logprobs[0] = math.nan
    session = ScriptedSession(logprobs)
    told: list[tuple[int, int]] = []
    found = score_text(
        session,
        text,
        length,
        tokenizer,
        lambda phase, done, total, unit="steps": told.append((done, total)),
        piece_tokens=piece,
    )
    assert (session.position, session.context_lengths) == (length, {length})
    assert told[-1] == (length, length)
    by_bin: dict[int, list[float]] = {}
    for position in range(1, length):
        first = 0
        while max(2 * first, 256) <= position:
            first = max(2 * first, 256)
        by_bin.setdefault(first, []).append(-float(logprobs[position]))
    assert [(each.first, each.tokens) for each in found.bins] == [(first, len(each)) for first, each in by_bin.items()]
    assert [each.last + 1 for each in found.bins] == [*[each.first for each in found.bins[1:]], length]
    for each, expected in zip(found.bins, by_bin.values(), strict=True):
        assert each.nll == pytest.approx(math.fsum(expected) / len(expected), rel=1e-12)
        assert each.perplexity == pytest.approx(math.exp(each.nll))
    total = math.fsum(value for each in by_bin.values() for value in each)
    assert found.tokens == length - 1
    assert found.nll == pytest.approx(total / found.tokens)
    predicted = tokenizer.decode(text.ids[1:length].tolist()).encode()
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / len(predicted), rel=0.02)


def test_perplexity_of_a_bundle_is_that_of_the_torch_module(tmp_path: Path) -> None:
    (document,) = (each for each in documents() if each.name == "long-nian.txt")
    text = document.text[:220]
    source = ModelSource.of_bundle(tiny_text_bundle())
    tokenizer = Tokenizer.from_files(source.text_files())
    subject = EvaluatedModel(
        model=sala_export.load(tiny_text_bundle()), tokenizer=tokenizer, name=source.name, config=source.config
    )
    ids = tokenizer.encode(text)
    lengths = (400, len(ids))
    request = EvaluationRequest(tasks=("perplexity",), lengths=(400, 8192), text=ReadText(text=text, sha256="0"))
    summary = run_evaluation(subject, request, tmp_path, silent)
    reference = sala_export.SalaForCausalLM.from_pretrained(tiny_checkpoint(), dtype=torch.float32)
    assert [each["length"] for each in summary.perplexity] == list(lengths)
    for length, found in zip(lengths, summary.perplexity, strict=True):
        tokens = torch.tensor(ids[:length])
        logprobs = torch.log_softmax(reference(tokens[None])[0].double(), dim=-1)
        nll = -logprobs[torch.arange(length - 1), tokens[1:]].numpy()
        assert found["nll"] == pytest.approx(nll.mean(), abs=1e-4)
        assert found["perplexity"] == pytest.approx(math.exp(nll.mean()), rel=1e-4)
        # The token at position p is predicted by row p - 1.
        assert found["bins"][0]["nll"] == pytest.approx(nll[:255].mean(), abs=1e-4)
        assert found["bins"][1]["nll"] == pytest.approx(nll[255:511].mean(), abs=1e-4)
    assert summary.perplexity[-1]["bits_per_byte"] == pytest.approx(
        nll.sum() / math.log(2) / len(text.encode()), rel=1e-3
    )


@pytest.mark.parametrize(("content", "told"), [("", "is empty"), ("Hi", "expected at least 16")])
def test_text_that_says_nothing_is_one_line(
    content: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(content, encoding="utf-8")
    assert run(["eval", str(tiny_text_bundle()), "--task", "perplexity", "--text", str(path)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert told in line


def test_short_text_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="my text has 3 tokens"):
        EvaluationText.of("abc", tokenizer, [1], "my text")
