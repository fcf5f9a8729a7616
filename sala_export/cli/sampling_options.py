"""The options that say how an answer is sampled, for each command that answers."""

from __future__ import annotations

from typing import TypedDict

import click

from .options import MOST_COUNT, SEED, Command, FiniteRange


class Sampling(TypedDict):
    """Options that go to `Session.generate` as they are."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int


def sampling_options(command: Command) -> Command:
    """Add the options of `Sampling`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


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
        "--repetition-penalty",
        type=FiniteRange(min=0.01, max=100),
        default=1.0,
        show_default=True,
        help="Values above 1 make repetition less likely.",
    ),
    click.option("--seed", type=SEED, default=0, show_default=True, help="Random seed for sampling."),
)
