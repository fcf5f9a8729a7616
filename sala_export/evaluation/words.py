"""Words, sentences and numbers of which prompts are made. A random generator decides everything, so a seed repeats it.

The sentences are filler: they say nothing that a question asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_ADJECTIVES = _listed(
    "amber brave calm dusty early faded gentle hollow idle jolly keen little mellow narrow old pale quiet rusty sandy "
    "tall unknown velvet warm young broad clever distant eager frosty golden humble ivory jagged kind lonely misty "
    "noble open patient rapid silver tidy upper vivid wooden yellow crimson silent"
)
_NOUNS = _listed(
    "anchor baker candle dancer engine farmer garden harbour island jacket kettle lantern miller needle orchard "
    "painter quarry river sailor teacher umbrella valley window weaver bridge castle doctor eagle forest glacier "
    "hammer inventor journal kitchen library meadow notebook ocean pilot rabbit saddle tower uncle village wagon "
    "yard barrel cottage drummer envelope fiddle gate hill mirror basket ladder"
)
_VERBS = _listed("carries draws finds greets hears keeps likes mends paints remembers sees visits watches follows")
_PLACES = (
    "after the rain",
    "at the edge of the field",
    "before breakfast",
    "behind the mill",
    "in the afternoon",
    "near the station",
    "on the way to the market",
    "under the old roof",
    "when the bell rings",
    "with great care",
)

KEY_COUNT = len(_ADJECTIVES) * len(_NOUNS)
"""Number of keys that `keys` can give."""


def sentences(random: Random) -> Iterator[str]:
    """Yield sentences of English without end."""
    while True:
        subject, thing = random.choice(_NOUNS), random.choice(_NOUNS)
        yield (
            f"The {random.choice(_ADJECTIVES)} {subject} {random.choice(_VERBS)} the {random.choice(_ADJECTIVES)} "
            f"{thing} {random.choice(_PLACES)}."
        )


def keys(random: Random, count: int) -> list[str]:
    """Different names such as `amber-lantern`, at most `KEY_COUNT`."""
    chosen = random.sample(range(KEY_COUNT), count)
    return [f"{_ADJECTIVES[each // len(_NOUNS)]}-{_NOUNS[each % len(_NOUNS)]}" for each in chosen]


def numbers(random: Random, count: int, digits: int) -> list[str]:
    """Different numbers of so many digits, none of which begins with 0."""
    least = 10 ** (digits - 1)
    return [str(least + each) for each in random.sample(range(9 * least), count)]


def variables(random: Random, count: int) -> list[str]:
    """Different names of five capital letters."""
    chosen = random.sample(range(26**5), count)
    return ["".join(chr(ord("A") + each // 26**place % 26) for place in range(5)) for each in chosen]


def nouns(random: Random) -> list[str]:
    """All nouns, shuffled."""
    return random.sample(_NOUNS, len(_NOUNS))
