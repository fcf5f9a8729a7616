"""One context of a model: a thin face on the C++ session (runtime/include/sala/session.h).

Chunking, sampling and state files happen there; Python adds text and iterators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from ..errors import SessionError, StateError
from ..specs import MOST_TOKENS
from .answer import StoppingDecoder, answer_decoder, decoded, up_to_stop
from .logprobs import DrawnIds, LastLogprobs, TokenLogprobs, each_afresh
from .options import (
    MOST_LOGPROBS,
    GenerateOptions,
    file_path,
    generate_options,
    optional_number,
    shown,
    stop_strings,
    whole_number,
)
from .prompt import DecoderLike, Prompt, TokenizerLike, require_tokenizer, streamed_prompt, whole_prompt
from .scores import Scores, WantedLogits, WantedRows
from .speculation import SpeculationCounts

if TYPE_CHECKING:
    from . import _native
    from .batch import BatchAnswer
    from .state_index import StoredSegments


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillProgress:
    """The progress of a prefill, reported after every chunk."""

    tokens_done: int
    """Tokens of this call that have run."""
    tokens_total: int | None
    """Tokens of this call in all. None while a stream goes on."""
    seconds: float
    """Seconds since the call began."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_done / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the rate so far. None for a stream."""
        if self.tokens_total is None or self.tokens_done == 0:
            return None
        return self.seconds * (self.tokens_total - self.tokens_done) / self.tokens_done


class StateTarget:
    """A path that a state will be saved to, taken before the work whose result it will hold.

    Open it before a long prefill, with `with`: what would make a save fail shows at once. Until `Session.save`
    succeeds, what was at the path stays there untouched. Leaving the block without a save leaves everything as it was.

    Raises: StateError for a directory, FIFO, device or socket, for a missing or read-only folder, and while another
        process writes to the path. A link is written through.
    """

    def __init__(self, path: str | Path) -> None:
        from . import _native

        self.path = file_path("the state", path, StateError)
        """The path as it was given."""
        self._native = _native.StateTarget.open(self.path)

    def require_room(self, size: int) -> None:
        """Compare a size in bytes, `Model.state_bytes` for example, with what may be written here.

        Raises: StateError if the disk has less room, or if this process may not write so large a file.
        """
        self._native.require_room(whole_number("size", size, 0, 2**63 - 1))

    def close(self) -> None:
        """Let the path go. Other processes can then write to it."""
        self._native.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class Session:
    """One context, which grows by `prefill` and `generate`. Use it from one thread at a time, except `stop`.

    It takes the memory of the tokens that it holds. After a SessionError you can go on: the session is as it was, or at
    the border of the last chunk that ran. The same holds for a RunError whose `code` is `OutOfMemory`. After another
    RunError of a step its context is lost, and only `reset` helps. A BundleError of a step says that a file of the
    weights changed while a CPU computed from it: load the model again.
    """

    def __init__(
        self,
        native: _native.Session,
        model: _native.Model,
        tokenizer: TokenizerLike | None,
        default_stop_tokens: Sequence[int],
        segments: Mapping[str, StoredSegments] = MappingProxyType({}),
    ) -> None:
        """Args: segments: what state stores have of the context, by the identity of the store."""
        self._native = native
        self._model = model
        self._segments = dict(segments)
        self._tokenizer = tokenizer
        self._default_stop_tokens = default_stop_tokens
        self._generation: _native.Generation | _native.Answer | BatchAnswer | None = None
        self._stopping: StoppingDecoder | None = None
        self._logprobs = LastLogprobs()

    @property
    def position(self) -> int:
        """Number of tokens in the context, generated ones included."""
        return self._native.position

    @property
    def past_length(self) -> int:
        """Number of tokens that have run: all of the context, but for a token that was generated last."""
        return self._native.past_length

    @property
    def max_context(self) -> int:
        """Number of tokens that the session can hold."""
        return self._native.max_context

    @property
    def chunk_tokens(self) -> int:
        """Number of tokens per prefill step."""
        return self._native.chunk_tokens

    @property
    def tokens(self) -> NDArray[np.int32]:
        """A copy of the context's ids, int32 [position]."""
        return self._native.tokens

    @property
    def logits(self) -> NDArray[np.float32] | None:
        """A copy of the last token's logits, fp32 [vocab_size]. None before a prefill and after generating."""
        return self._native.logits

    @property
    def finish_reason(self) -> str | None:
        """Why the last generation ended. None while it runs.

        It is `stop_token`, `stop_string`, `max_new_tokens` or `max_context`.
        """
        if self._stopping is not None and self._stopping.found:
            return "stop_string"
        return None if self._generation is None else self._generation.finish_reason

    @property
    def speculation(self) -> SpeculationCounts | None:
        """What drafts did for the last generation of this session. None before one, and for answers of a scheduler."""
        from . import _native

        if not isinstance(self._generation, _native.Generation):
            return None
        tokens, drafted, accepted = self._generation.speculation
        return SpeculationCounts(tokens=tokens, drafted=drafted, accepted=accepted)

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """Log-probabilities of the tokens behind the last piece of the last generation, or behind its last id.

        A piece of text may come of several tokens. The list has none if the generation was not asked for `logprobs`.
        """
        return list(self._logprobs.of_tokens)

    def prefill(
        self,
        prompt: Prompt,
        *,
        logits: WantedLogits = "last",
        context_length: int | None = None,
        on_progress: Callable[[PrefillProgress], None] | None = None,
    ) -> NDArray[np.float32]:
        """Append to the context; logits of the last token, fp32 [vocab_size], or of more tokens.

        Args:
            prompt: text, token ids, or an iterator of pieces of either, with the same result. From the model's
                `dense_len` tokens on, the pieces of an iterator run as they fill chunks, so a prompt of any length
                takes the memory of its cache alone.
            logits: `last`, or `all` for fp32 [tokens, vocab_size], or indices of the prompt's tokens for fp32
                [indices, vocab_size] in their order. Negative indices count from the end. An iterator has `last` alone.
            context_length: only for one prompt that you cut over several calls, to read logits in between: the length
                of the context after the last of them. By default the prompt ends with this call.
            on_progress: called after every chunk. What it raises ends the prefill at that chunk's border and comes out
                here; so do Ctrl-C and what an iterator raises. Tokens that have not run by then are dropped: go on
                from `position`.
        Raises: SessionError if the prompt is empty, too long, of another type or has ids outside the vocabulary;
            RunError.
        """
        if not (isinstance(logits, str) and logits == "last"):
            return self._prefill_rows(self._whole(prompt, "logits"), logits, context_length, on_progress)
        begins = self.position == 0
        whole = whole_prompt(prompt, self._tokenizer, begins=begins)
        prefiller = _prefiller(self._native, context_length, None if whole is None else len(whole), on_progress)
        for ids in streamed_prompt(prompt, self._tokenizer, begins=begins) if whole is None else (whole,):
            prefiller.feed(ids)
        return prefiller.finish()

    def _whole(self, prompt: Prompt, purpose: str) -> NDArray[np.int32]:
        """Token ids of a prompt whose length must be known, int32 [tokens]. Raises: SessionError for an iterator."""
        begins = self.position == 0
        if isinstance(prompt, bytes | bytearray | memoryview):
            return np.concatenate([*streamed_prompt(prompt, self._tokenizer, begins=begins)])
        whole = whole_prompt(prompt, self._tokenizer, begins=begins)
        if whole is None:
            raise SessionError(
                f"a prompt is of type {type(prompt).__name__}, and {purpose} of its tokens need it whole: "
                "give text or token ids"
            )
        return whole

    def _prefill_rows(
        self,
        ids: NDArray[np.int32],
        logits: WantedLogits,
        context_length: int | None,
        on_progress: Callable[[PrefillProgress], None] | None,
    ) -> NDArray[np.float32]:
        """Prefill a whole prompt; logits of the wanted tokens, fp32 [rows, vocab_size]."""
        wanted = WantedRows.of(logits, len(ids))
        rows = wanted.new_rows(self._model.vocab_size)
        prefiller = _prefiller(self._native, context_length, len(ids), on_progress, wanted.tokens, rows)
        prefiller.feed(ids)
        prefiller.finish()
        return wanted.as_asked(rows)

    def score(
        self,
        prompt: Prompt,
        *,
        top: int = 0,
        context_length: int | None = None,
        on_progress: Callable[[PrefillProgress], None] | None = None,
    ) -> Scores:
        """Append to the context as `prefill` does, and tell how probable the model found each token.

        The first token's probability comes from what the context held before. For example, the perplexity of a text:

            llm.session().score(text).perplexity

        Args:
            prompt: text or token ids, no iterator.
            top: how many of the likeliest tokens to list at each place, 0 to 20.
            context_length: as in `prefill`.
            on_progress: as in `prefill`.
        Raises: as `prefill`. If it ends early, the session holds the chunks that ran.
        """
        ids = self._whole(prompt, "scores")
        logprobs, top_ids, top_logprobs = self._native.score(
            ids,
            top=whole_number("top", top, 0, MOST_LOGPROBS),
            context_length=optional_number("context_length", context_length, 1, MOST_TOKENS),
            on_progress=_report_to(on_progress),
        )
        return Scores(token_ids=ids, logprobs=logprobs, top_ids=top_ids, top_logprobs=top_logprobs)

    def generate(self, **options: Unpack[GenerateOptions]) -> Iterator[str]:
        """Yield generated text, each piece as soon as it is certain. `GenerateOptions` has the options.

        A stop token joins the context but not the text. You may leave the iterator at any point. The context then holds
        what it gave out.

        The text ends before the first place where one of `stop_strings` begins. What may become one is held back until
        that is decided. The context keeps every token that was generated, those of the stop string too.
        Raises: SessionError for a wrong option or before the first prefill; UnsupportedError without a tokenizer.
        """
        decoder = answer_decoder(require_tokenizer(self._tokenizer), options.get("stop_strings"))
        ids = self._generated(options, decoder, are_pieces=False)
        return each_afresh(decoded(ids, decoder), self._logprobs)

    def generate_tokens(self, **options: Unpack[GenerateOptions]) -> Iterator[int]:
        """Yield generated token ids. Everything else is as in `generate`.

        With `stop_strings`, which need a tokenizer, the last id is that of the token that completes the stop string.
        """
        strings = stop_strings(options.get("stop_strings"))
        if strings is None:
            return self._generated(options, None, are_pieces=True)
        decoder = StoppingDecoder(require_tokenizer(self._tokenizer).stream_decoder(), strings)
        return up_to_stop(self._generated(options, decoder, are_pieces=True), decoder)

    def _begin_answer(
        self,
        answer: _native.Generation | _native.Answer | BatchAnswer,
        decoder: DecoderLike | None,
        logprobs: LastLogprobs,
    ) -> None:
        """Let `finish_reason` and `logprobs` tell of this answer from now on."""
        self._generation = answer
        self._logprobs = logprobs
        self._stopping = decoder if isinstance(decoder, StoppingDecoder) else None

    def _generated(self, options: GenerateOptions, decoder: DecoderLike | None, *, are_pieces: bool) -> Iterator[int]:
        """Begin a generation, which ends early if `decoder` finds a stop string. Returns its ids."""
        generation = self._native.generate(generate_options(options, self._default_stop_tokens))
        self._begin_answer(generation, decoder, LastLogprobs())
        return DrawnIds(generation, self._logprobs, are_pieces=are_pieces)

    def save(self, target: str | Path | StateTarget) -> None:
        """Write a state file. It appears whole or not at all, and keeps the mode of a file that it replaces.

        Raises: StateError if it cannot be written. What was at the path is then untouched, and you can try again.
        """
        if isinstance(target, StateTarget):
            self._native.save_to(target._native)
        else:
            self._native.save(file_path("the state", target, StateError))

    def require_room(self, tokens: int) -> None:
        """Refuse a number of further tokens that the memory is known to have no room for.

        A GPU's memory is known. `prefill` asks this itself if it knows the length of the prompt.
        Raises: RunError that says how many tokens fit; SessionError for more than `max_context` leaves.
        """
        self._native.require_room(whole_number("tokens", tokens, 0, MOST_TOKENS))

    def fork(self) -> Session:
        """Make a session with the same context, which goes on by itself.

        The two share the memory of the keys and values that both have. For example, read a book once and ask two
        questions side by side:

            book.prefill(text)
            who, where = book.fork(), book.fork()
            who.prefill("Who is Natasha?")
            where.prefill("Where does it begin?")

        Raises: RunError if there is no memory, or if a step of this session failed.
        """
        native = self._native.fork()
        return Session(native, self._model, self._tokenizer, self._default_stop_tokens, self._segments)

    def take_stored(self, fork: Session) -> None:
        """Take note of what a fork has saved to state stores, so that this session does not write it again.

        For example, save a fork in another thread while this session goes on. Args: fork: of this session, which has
        not been rewound since.
        """
        for store, segments in fork._segments.items():
            known = self._segments.get(store)
            if known is None or len(known.hashes) < len(segments.hashes):
                self._segments[store] = segments

    @property
    def checkpoints(self) -> list[int]:
        """Positions that `rewind` can reach, in order.

        There is one where a prompt ended, one where the next began, and some within a long prompt. Each takes the bytes
        of the Lightning states in the host's memory, 48 MiB for 9B. When there are more than `max_checkpoints` of
        `Model.session`, those within prompts go first, and the further back, the fewer are kept.
        """
        return self._native.checkpoints

    def checkpoint(self) -> None:
        """Keep a checkpoint here. A token that was generated last has not run yet and is not in it."""
        self._native.checkpoint()

    def rewind(self, position: int) -> int:
        """Go back to the last checkpoint at or before `position`. Returns where that is.

        The tokens behind it are forgotten. For example, ask again after the same book:

            book.prefill(text)
            end = book.position
            print(*book.generate(max_new_tokens=50))
            book.rewind(end)

        Raises: SessionError, naming the nearest, if no checkpoint lies there; RunError.
        """
        reached = self._native.rewind(whole_number("position", position, 0, MOST_TOKENS))
        self._segments = {store: segments.up_to(reached) for store, segments in self._segments.items()}
        return reached

    def reset(self) -> None:
        """Forget the context and its checkpoints, and begin with an empty one."""
        self._segments = {}
        self._native.reset()

    def stop(self) -> None:
        """End a prefill that runs in another thread, at its next chunk border. It raises SessionError there."""
        self._native.stop()


def require_session(value: object) -> Session:
    """The value, if it is a session. Raises: SessionError."""
    if isinstance(value, Session):
        return value
    raise SessionError(f"session is {shown(value)}, expected a session of this model: make one with Model.session")


def _prefiller(
    session: _native.Session,
    context_length: int | None,
    tokens_total: int | None,
    on_progress: Callable[[PrefillProgress], None] | None,
    logit_tokens: NDArray[np.int64] | None = None,
    rows: NDArray[np.float32] | None = None,
) -> _native.Prefiller:
    from . import _native

    return _native.Prefiller(
        session,
        context_length=optional_number("context_length", context_length, 1, MOST_TOKENS),
        tokens_total=tokens_total,
        on_progress=_report_to(on_progress),
        logit_tokens=logit_tokens,
        rows=rows,
    )


def _report_to(
    on_progress: Callable[[PrefillProgress], None] | None,
) -> Callable[[int, int | None, float], None] | None:
    """The callback as the native module calls it."""
    if on_progress is None:
        return None

    def report(tokens_done: int, total: int | None, seconds: float) -> None:
        on_progress(PrefillProgress(tokens_done=tokens_done, tokens_total=total, seconds=seconds))

    return report
