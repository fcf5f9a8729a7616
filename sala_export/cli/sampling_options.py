"""The options that say how an answer is sampled, for each command that answers."""

from __future__ import annotations

import re
from typing import TypedDict

import click

from ..specs import MOST_DRAFT_TOKENS, MOST_TOKENS
from .options import MOST_COUNT, SEED, Command, FiniteRange


class Sampling(TypedDict):
    """Options that go to `Session.generate` as they are."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: dict[int, float]
    seed: int
    stop_strings: tuple[str, ...]
    speculation: int | None


def sampling_options(command: Command) -> Command:
    """Add the options of `Sampling`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _biases(context: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> dict[int, float]:
    """The values of --logit-bias by token id."""
    biases: dict[int, float] = {}
    for word in words:
        given = re.fullmatch(r"([0-9]{1,10})=([+-]?[0-9]{1,3}(?:\.[0-9]{1,20})?)", word)
        if given is None or int(given[1]) > MOST_TOKENS or not -100 <= float(given[2]) <= 100:
            raise click.BadParameter(f"{word!r} is no token id and bias from -100 to 100, for example 42=-5")
        if int(given[1]) in biases:
            raise click.BadParameter(f"token {int(given[1])} is given twice")
        biases[int(given[1])] = float(given[2])
    return biases


def _texts(context: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    """The values of --stop."""
    from ..runtime.options import stop_strings

    stop_strings(words)
    return words


_PENALTY = FiniteRange(min=-2, max=2)

speculation_option = click.option(
    "--speculation",
    metavar="N",
    type=click.IntRange(1, MOST_DRAFT_TOKENS),
    help="Draft up to N tokens from the text so far and check them in one step. The answer stays the same, and comes "
    "sooner where it repeats the text.",
)

_OPTIONS = (
    click.option(
        "--max-new-tokens",
        type=click.IntRange(min=0, max=MOST_COUNT),
        default=256,
        show_default=True,
        help="Stop after this many tokens.",
    ),
    click.option(
        "--temperature",
        type=FiniteRange(min=0),
        default=0.0,
        show_default=True,
        help="Sampling temperature. 0 always picks the most likely token.",
    ),
    click.option(
        "--top-p",
        type=FiniteRange(min=0, min_open=True, max=1),
        default=1.0,
        show_default=True,
        help="Sample only from the most likely tokens that together have this probability.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(min=0, max=MOST_COUNT),
        default=0,
        help="Sample only from the k most likely tokens. 0 means all.",
    ),
    click.option(
        "--min-p",
        type=FiniteRange(min=0, max=1),
        default=0.0,
        show_default=True,
        help="Sample only from tokens that are at least this times as probable as the likeliest.",
    ),
    click.option(
        "--repetition-penalty",
        type=FiniteRange(min=0.01, max=100),
        default=1.0,
        show_default=True,
        help="Values above 1 make repetition less likely.",
    ),
    click.option(
        "--frequency-penalty",
        type=_PENALTY,
        default=0.0,
        show_default=True,
        help="Taken from the logit of a token for each time it is in the answer.",
    ),
    click.option(
        "--presence-penalty",
        type=_PENALTY,
        default=0.0,
        show_default=True,
        help="Taken from the logit of a token that is in the answer.",
    ),
    click.option(
        "--logit-bias",
        metavar="ID=BIAS",
        multiple=True,
        callback=_biases,
        help="Add this, from -100 to 100, to the logit of a token id. You can give it more than once.",
    ),
    click.option(
        "--stop",
        "stop_strings",
        metavar="TEXT",
        multiple=True,
        callback=_texts,
        help="End the answer before this text. You can give it more than once.",
    ),
    click.option("--seed", type=SEED, default=0, show_default=True, help="Random seed for sampling."),
    speculation_option,
)
