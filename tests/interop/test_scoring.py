"""Scores of continuations, compared with the log-softmax of the torch module over each whole text."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from support.checkpoints import tiny_checkpoint
from support.runtime_bundles import tiny_cpu_bundle

import sala_export
from sala_export import SalaForCausalLM
from sala_export.interop.scoring import Continuation, Score, score_continuations
from sala_export.runtime.model import Model


@pytest.fixture(scope="module")
def model() -> Model:
    return sala_export.load(tiny_cpu_bundle(), threads=2)


def random_tokens(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 500, count).tolist()


def asked() -> list[Continuation]:
    """Answers to questions behind common examples, some of one token, and one that is the greedy one."""
    examples = random_tokens(25, 0)
    contexts = [[1], examples, examples + random_tokens(9, 1)]
    answers = [[17], [18], random_tokens(2, 8), random_tokens(17, 9)]
    pairs = [(context, answer) for context in contexts for answer in answers]
    return [
        Continuation(context=np.asarray(context, np.int32), tokens=np.asarray(answer, np.int32))
        for context, answer in pairs
    ]


def scores_of(model: Model, continuations: list[Continuation]) -> list[Score]:
    found = dict(score_continuations(continuations, lambda: model.session(max_context=256), model.dense_len))
    return [found[at] for at in range(len(continuations))]


def with_greedy(model: Model, continuations: list[Continuation]) -> list[Continuation]:
    """The continuations, and what the model itself would say in the place of two of them."""
    greedy = []
    for place, length in ((4, 1), (8, 5)):
        session = model.session(max_context=256)
        session.prefill(continuations[place].context)
        drawn = list(session.generate_tokens(max_new_tokens=length, stop_tokens=[]))
        greedy.append(Continuation(context=continuations[place].context, tokens=np.asarray(drawn, np.int32)))
    return [*continuations, *greedy]


def test_scores_are_those_of_the_reference(model: Model) -> None:
    reference = SalaForCausalLM.from_pretrained(tiny_checkpoint(), torch.float32)
    continuations = with_greedy(model, asked())
    for score, each in zip(scores_of(model, continuations), continuations, strict=True):
        text = torch.tensor([[*each.context.tolist(), *each.tokens.tolist()]])
        logprobs = reference(text)[0].double().log_softmax(-1)[len(each.context) - 1 : -1]
        right = logprobs.gather(1, text[0, len(each.context) :, None]).sum()
        assert score.logprob == pytest.approx(right.item(), abs=1e-4 * len(each.tokens))
        assert score.is_greedy == bool((logprobs.argmax(-1).numpy() == each.tokens).all())
    assert [score.is_greedy for score in scores_of(model, continuations)][-2:] == [True, True]


def test_scores_depend_neither_on_order_nor_on_company(model: Model) -> None:
    continuations = asked()
    together = scores_of(model, continuations)
    order = list(range(len(continuations)))
    random.Random(0).shuffle(order)
    shuffled = scores_of(model, [continuations[at] for at in order])
    for place, at in enumerate(order):
        (alone,) = scores_of(model, [continuations[at]])
        assert shuffled[place] == together[at]
        assert alone.logprob == pytest.approx(together[at].logprob, abs=1e-5 * len(continuations[at].tokens))
        assert alone.is_greedy == together[at].is_greedy
