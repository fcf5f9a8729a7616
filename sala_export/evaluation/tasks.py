"""Retrieval tasks in the manner of RULER (Hsieh et al., 2024): what a text holds, what is asked, what is right.

A `HaystackReading` is one text. It is read once, and each of its questions is asked behind it, apart from the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from ..errors import RequestError
from .prompts import Filler, NeedleWords
from .words import KEY_COUNT, nouns, numbers, variables
from .words import keys as made_keys

PASSKEY, MULTI_KEY, VARIABLES, AGGREGATION = "passkey", "multi-key", "variable-tracking", "aggregation"
NEEDLE_TASKS = (PASSKEY, MULTI_KEY)
PERPLEXITY = "perplexity"
"""Name of the one task that asks nothing. `perplexity.py` has it."""

_DISTRACTOR_TOKENS = 512
"""A text of multi-key has one needle that is not asked for in so many tokens."""
_DISTRACTORS = (8, 2048)
"""Fewest and most of them."""
_HOPS = 4
"""Assignments from one variable to the next in a chain, as in RULER."""
_FREQUENT = 5
"""Words that aggregation asks for."""
_RARITY = 10
"""A frequent word comes so many times as often as another."""
_VALUE_DIGITS = 7
_CHAIN_DIGITS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Insert:
    """A sentence that the filler of a text makes room for."""

    depth: float
    """Place in the text: 0 is its beginning, 1 its end."""
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question about a text."""

    depth: float | None
    """Depth of the one needle that it asks for. None if it asks for more than one place."""
    sample: int
    text: str
    answer: str
    """The beginning of the answer, which the model continues."""
    expected: tuple[str, ...]
    """Strings that a right answer has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HaystackReading:
    """One text with its questions."""

    intro: str
    filler: Callable[[], Iterator[str]]
    """Gives sentences without end, the same at each call."""
    inserts: tuple[Insert, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskOptions:
    """The options of retrieval tasks. Raises: RequestError for counts below one."""

    depths: int = 5
    """Number of depths, evenly from the beginning to the end of a text. One depth is its middle."""
    samples: int = 1
    """Questions at each depth, and of each task that has no depths."""
    seed: int = 0
    words: NeedleWords = field(default_factory=NeedleWords)
    """Words of the needle tasks. The other tasks take its filler."""

    def __post_init__(self) -> None:
        for name in ("depths", "samples"):
            if getattr(self, name) < 1:
                raise RequestError(f"--{name} {getattr(self, name)}: expected at least 1")

    def places(self) -> list[tuple[float, int]]:
        """Depth and sample of each needle that is asked for."""
        depths = [0.5] if self.depths == 1 else [each / (self.depths - 1) for each in range(self.depths)]
        return [(depth, sample) for depth in depths for sample in range(self.samples)]


def readings(task: str, length: int, options: TaskOptions) -> list[HaystackReading]:
    """The texts of a task at a length in tokens, with their questions.

    Raises: RequestError if there are fewer keys or values than needles.
    """
    random = Random(f"{options.seed} {task} {length}")
    return _TASKS[task](length, options, random)


def _repeated(filler: Filler, random: Random) -> Callable[[], Iterator[str]]:
    seed = random.getrandbits(64)
    return lambda: filler(Random(seed))


def _passkey(length: int, options: TaskOptions, random: Random) -> list[HaystackReading]:
    return [_needles(options, random, PASSKEY, distractors=0)]


def _multi_key(length: int, options: TaskOptions, random: Random) -> list[HaystackReading]:
    least, most = _DISTRACTORS
    distractors = min(max(length // _DISTRACTOR_TOKENS, least), most)
    if options.words.keys:
        distractors = min(distractors, len(options.words.keys) - len(options.places()))
        distractors = max(distractors, 1)
    return [_needles(options, random, MULTI_KEY, distractors=distractors)]


def _needles(options: TaskOptions, random: Random, task: str, *, distractors: int) -> HaystackReading:
    """A text with a needle for every depth and sample, and needles that nobody asks for, evenly."""
    words, places = options.words, options.places()
    count = len(places) + distractors
    pairs = [*zip(_keys(words, random, count, task), _values(words, random, count, task), strict=True)]
    asked, others = pairs[: len(places)], pairs[len(places) :]
    spread = [(number + 0.5) / distractors for number in range(distractors)]
    inserts = [
        Insert(depth=depth, text=words.of(words.needle, *pair))
        for depth, pair in zip([*(depth for depth, _ in places), *spread], [*asked, *others], strict=True)
    ]
    questions = [
        Question(
            depth=depth,
            sample=sample,
            text=words.of(words.question, key),
            answer=words.of(words.answer, key),
            expected=(value,),
        )
        for (depth, sample), (key, value) in zip(places, asked, strict=True)
    ]
    return HaystackReading(
        intro=words.intro,
        filler=_repeated(words.filler, random),
        inserts=tuple(inserts),
        questions=tuple(questions),
    )


def _keys(words: NeedleWords, random: Random, count: int, task: str) -> Sequence[str]:
    _require_enough("keys", len(words.keys) or KEY_COUNT, count, task)
    return random.sample(words.keys, count) if words.keys else made_keys(random, count)


def _values(words: NeedleWords, random: Random, count: int, task: str) -> Sequence[str]:
    if not words.values:
        return numbers(random, count, _VALUE_DIGITS)
    _require_enough("values", len(words.values), count, task)
    return random.sample(words.values, count)


def _require_enough(what: str, there: int, count: int, task: str) -> None:
    if count > there:
        raise RequestError(
            f"{task} needs {count} {what} for its needles, and there are {there}: choose fewer --depths or --samples"
        )


def _variable_tracking(length: int, options: TaskOptions, random: Random) -> list[HaystackReading]:
    """A text with a chain of assignments for every sample. The links of all chains lie between each other."""
    links, samples = _HOPS + 1, options.samples
    names, starts = variables(random, links * samples), numbers(random, samples, _CHAIN_DIGITS)
    inserts, questions = [], []
    for sample, start in enumerate(starts):
        chain = names[sample * links : (sample + 1) * links]
        for link, (name, source) in enumerate(zip(chain, [start, *chain], strict=False)):
            depth = (link + (sample + 0.5) / samples) / links
            inserts.append(Insert(depth=depth, text=f"VAR {name} = {source}."))
        questions.append(
            Question(
                depth=None,
                sample=sample,
                text=f"Which variables in the text above have the value {start}? A variable may have it from another "
                f"one. There are {links}. Answer with their names.",
                answer=f"These variables have the value {start}:",
                expected=tuple(chain),
            )
        )
    intro = (
        "Below is a long text. Between its sentences there are assignments to variables, such as VAR NAME = 123. "
        "Read all of it and remember which variable gets which value."
    )
    filler = _repeated(options.words.filler, random)
    return [HaystackReading(intro=intro, filler=filler, inserts=tuple(inserts), questions=tuple(questions))]


def _aggregation(length: int, options: TaskOptions, random: Random) -> list[HaystackReading]:
    """For every sample a list of words, of which a few come ten times as often as each of the others."""
    return [_word_list(sample, random) for sample in range(options.samples)]


def _word_list(sample: int, random: Random) -> HaystackReading:
    words = nouns(random)
    frequent, others = words[:_FREQUENT], words[_FREQUENT:]
    # So that the rounds take as many others as frequent words, and each of them in every tenth round.
    others = others[: _FREQUENT * _RARITY]
    question = Question(
        depth=None,
        sample=sample,
        text=f"Which {_FREQUENT} words come most often in the list above? Answer with the {_FREQUENT} words.",
        answer=f"The {_FREQUENT} words that come most often are:",
        expected=tuple(frequent),
    )
    intro = "Below is a long list of words. Some of them come more often than others. Remember those."
    return HaystackReading(
        intro=intro,
        filler=_repeated(lambda drawn: _rounds(frequent, others, drawn), random),
        inserts=(),
        questions=(question,),
    )


def _rounds(frequent: Sequence[str], others: Sequence[str], random: Random) -> Iterator[str]:
    """Yield words, in rounds that each have every frequent word once."""
    while True:
        turn = random.sample(others, len(others))
        for start in range(0, len(turn), _FREQUENT):
            words = [*frequent, *turn[start : start + _FREQUENT]]
            random.shuffle(words)
            yield from words


_TASKS: dict[str, Callable[[int, TaskOptions, Random], list[HaystackReading]]] = {
    PASSKEY: _passkey,
    MULTI_KEY: _multi_key,
    VARIABLES: _variable_tracking,
    AGGREGATION: _aggregation,
}

TASKS = tuple(_TASKS)
"""Names of the retrieval tasks."""
