"""The Python face: prompts of all kinds, interruptions, and errors as exceptions that say what to do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sala_export.errors import SessionError, UnsupportedError
from sala_export.runtime.model import Model
from sala_export.runtime.session import PrefillProgress, Session

IDS = np.random.default_rng(0).integers(3, 512, 700)
DENSE_LEN = 512
"""Of the tiny model: shorter contexts are dense."""
BEGIN = 3


class ByteTokenizer:
    """Every byte is a token; the encoder keeps three bytes back, as one that merges would."""

    class Encoder:
        def __init__(self) -> None:
            self.waiting = b""

        def push(self, data: bytes) -> Sequence[int]:
            known = (self.waiting + data)[:-3]
            self.waiting = (self.waiting + data)[len(known) :]
            return list(known)

        def finish(self) -> Sequence[int]:
            return list(self.waiting)

    class Decoder:
        def __init__(self) -> None:
            self.count = 0

        def push(self, token_id: int) -> str:
            self.count += 1
            return "" if self.count % 2 else f"<{token_id}>"

        def finish(self) -> str:
            return "!"

    stop_token_ids = (1,)

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        return [BEGIN] * add_special_tokens + list(text.encode())

    def stream_encoder(self, *, add_special_tokens: bool) -> Encoder:
        encoder = self.Encoder()
        encoder.waiting = bytes([BEGIN] * add_special_tokens)
        return encoder

    def stream_decoder(self) -> Decoder:
        return self.Decoder()


@pytest.fixture
def session(model: Model) -> Session:
    return model.session(max_context=1024, chunk_tokens=64)


@pytest.fixture
def text_session(model: Model) -> Session:
    return Model(model._native, ByteTokenizer()).session(max_context=1024, chunk_tokens=64)


LENGTHS = pytest.mark.parametrize("length", [DENSE_LEN - 1, DENSE_LEN, DENSE_LEN + 1, len(IDS)])


@LENGTHS
def test_prompt_of_ids_gives_the_same_logits_however_it_comes(model: Model, length: int) -> None:
    ids = IDS[:length]
    pieces = iter([ids[:100].tolist(), ids[100:].tolist()])
    prompts = (ids.tolist(), iter(ids.tolist()), iter(np.array_split(ids, 9)), pieces)
    expected = model.session(max_context=1024, chunk_tokens=64).prefill(ids)
    for prompt in prompts:
        session = model.session(max_context=1024, chunk_tokens=64)
        np.testing.assert_array_equal(session.prefill(prompt), expected)
        np.testing.assert_array_equal(session.tokens, ids)


@LENGTHS
def test_prompt_of_text_gives_the_same_logits_however_it_comes(model: Model, tmp_path: Path, length: int) -> None:
    text = "".join(chr(32 + i * i % 90) for i in range(length - 1))
    (tmp_path / "prompt.txt").write_text(text)
    expected = model.session(max_context=1024, chunk_tokens=64).prefill([BEGIN, *text.encode()])
    with (tmp_path / "prompt.txt").open("rb") as file:
        prompts = (text, text.encode(), iter(text), (text[i : i + 97] for i in range(0, length, 97)), file)
        for prompt in prompts:
            session = Model(model._native, ByteTokenizer()).session(max_context=1024, chunk_tokens=64)
            np.testing.assert_array_equal(session.prefill(prompt), expected)


def test_short_prompt_after_a_long_context_is_sparse_however_it_comes(model: Model) -> None:
    answers = []
    for prompt in (IDS[500:520], iter(IDS[500:520].tolist())):
        session = model.session(max_context=1024, chunk_tokens=64)
        session.prefill(IDS[:500])
        answers.append(session.prefill(prompt))
    np.testing.assert_array_equal(answers[0], answers[1])


def test_context_length_shorter_than_the_context_is_refused(session: Session) -> None:
    session.prefill(IDS[:40])
    for prompt in (IDS[:2], iter(IDS[:2].tolist())):
        with pytest.raises(SessionError, match="context_length is 41"):
            session.prefill(prompt, context_length=41)
    assert session.position == 40


def test_prompt_runs_while_it_is_still_being_read_once_it_is_known_to_be_sparse(session: Session) -> None:
    positions = []

    def stream() -> Iterator[int]:
        for token in IDS.tolist():
            positions.append(session.position)
            yield token

    session.prefill(stream())
    assert positions == [fed // 64 * 64 if fed >= DENSE_LEN else 0 for fed in range(len(IDS))]
    assert session.position == len(IDS)


@pytest.mark.parametrize(("fed", "saved"), [(300, 0), (600, 576)])
def test_state_saved_in_the_middle_of_a_stream_goes_on_from_its_position(
    session: Session, model: Model, tmp_path: Path, fed: int, saved: int
) -> None:
    def stream() -> Iterator[int]:
        yield from IDS[:fed].tolist()
        session.save(tmp_path / "middle.state")
        yield from IDS[fed:].tolist()

    expected = session.prefill(stream())
    restored = model.restore(tmp_path / "middle.state", max_context=1024, chunk_tokens=64)
    assert restored.position == saved
    np.testing.assert_array_equal(restored.prefill(IDS[saved:]), expected)


def test_text_bytes_and_ids_may_be_mixed_in_a_stream(text_session: Session) -> None:
    text_session.prefill(iter(["Wer ", b"da\xc3", b"\xa4", 7, [8, 9], "x"]))
    assert text_session.tokens.tolist() == [BEGIN, *"Wer daä".encode(), 7, 8, 9, ord("x")]


@pytest.mark.parametrize("prompt", ["hello", b"hello"])
def test_whole_text_is_tokenized(text_session: Session, prompt: str | bytes) -> None:
    text_session.prefill(prompt)
    text_session.prefill(prompt)
    assert text_session.tokens.tolist() == [BEGIN, *b"hello", *b"hello"], "only the first text begins the context"


def test_generated_text_is_what_the_decoder_makes_of_the_tokens(text_session: Session, session: Session) -> None:
    for each in (text_session, session):
        each.prefill(IDS[:50])
    tokens = list(session.generate_tokens(max_new_tokens=5, stop_tokens=[]))
    assert list(text_session.generate(max_new_tokens=5, stop_tokens=[])) == [f"<{tokens[1]}>", f"<{tokens[3]}>", "!"]


def test_text_without_a_tokenizer_is_refused(session: Session) -> None:
    for use in (lambda: session.prefill("hello"), lambda: session.prefill(iter([b"hello"])), session.generate):
        with pytest.raises(UnsupportedError, match="no tokenizer"):
            use()


def test_generation_left_early_goes_on_from_what_it_gave(session: Session, model: Model) -> None:
    session.prefill(IDS[:50])
    stream = session.generate_tokens(max_new_tokens=10, temperature=1.5, seed=3, stop_tokens=[])
    tokens = [next(stream) for _ in range(3)]
    tokens += session.generate_tokens(max_new_tokens=7, temperature=1.5, seed=3, stop_tokens=[])
    other = model.session(max_context=1024)
    other.prefill(IDS[:50])
    assert tokens == list(other.generate_tokens(max_new_tokens=10, temperature=1.5, seed=3, stop_tokens=[]))
    assert session.finish_reason == "max_new_tokens"
    assert session.position == 60


def test_stop_token_ends_generation_and_joins_the_context(session: Session, model: Model) -> None:
    session.prefill(IDS[:50])
    first = next(session.generate_tokens(stop_tokens=[]))
    other = model.session(max_context=1024)
    other.prefill(IDS[:50])
    assert list(other.generate_tokens(stop_tokens=[first])) == []
    assert other.finish_reason == "stop_token"
    assert other.tokens[-1] == first


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        pytest.param([], "no tokens", id="empty"),
        pytest.param(iter([]), "no tokens", id="empty stream"),
        pytest.param([1, 512], "0 to 511", id="id behind the vocabulary"),
        pytest.param([-1], "0 to 511", id="negative id"),
        pytest.param([2**31], "exceeds", id="id beyond int32"),
        pytest.param(np.zeros(3), "expected integers", id="floats"),
        pytest.param(np.zeros((2, 3), np.int64), "a batch of 2 rows", id="two rows"),
        pytest.param(np.zeros((1, 1, 3), np.int64), "expected integers", id="three dimensions"),
        pytest.param([True, False], "expected integers", id="truth values"),
        pytest.param(np.zeros(1025, np.int64), "at least 1025 tokens, max_context is 1024", id="one too long"),
    ],
)
def test_wrong_prompt_is_refused_and_leaves_the_session_usable(session: Session, prompt: object, message: str) -> None:
    with pytest.raises(SessionError, match=message):
        session.prefill(prompt)  # type: ignore[arg-type]
    assert session.position == 0
    session.prefill(IDS[:3])


def test_half_a_surrogate_pair_in_a_stream_is_refused(text_session: Session) -> None:
    for stream in (iter(["ab\ud800"]), ["ab\ud800", 1], iter([1, "ab\ud800"])):
        with pytest.raises(SessionError, match="surrogate pair at character 2"):
            text_session.prefill(stream)
    assert text_session.position == 0


@pytest.mark.parametrize(
    "prompt",
    [
        [[1, 2], [[3]]],
        [[1], 2, [3, [4]]],
        {1: 2},
        None,
        True,
        1.5,
        [1.5],
        [2**70],
        pytest.param(object(), id="object"),
        np.array([True]),
        np.array([1, None]),
    ],
    ids=repr,
)
def test_wrong_piece_of_a_stream_is_refused_like_a_wrong_prompt(text_session: Session, prompt: object) -> None:
    for wrong in (prompt, iter([prompt]), iter(["a", prompt])):
        with pytest.raises(SessionError) as error:
            text_session.prefill(wrong)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    assert text_session.position == 0
    text_session.prefill("a")


def test_progress_counts_tokens_and_time(session: Session) -> None:
    seen: list[PrefillProgress] = []
    session.prefill(IDS[:150], on_progress=seen.append)
    assert [(p.tokens_done, p.tokens_total) for p in seen] == [(64, 150), (128, 150), (150, 150)]
    assert all(a.seconds < b.seconds for a, b in pairwise(seen))
    assert seen[-1].seconds_left == 0
    assert seen[0].tokens_per_second == pytest.approx(64 / seen[0].seconds)
    session.prefill(iter(IDS[:10].tolist()), on_progress=seen.append)
    assert seen[-1].tokens_total is None
    assert seen[-1].seconds_left is None


def test_exception_in_progress_stops_at_the_chunk_border_and_comes_out(session: Session) -> None:
    def fail(progress: PrefillProgress) -> None:
        if progress.tokens_done == 128:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        session.prefill(IDS, on_progress=fail)
    assert session.position == 128
    session.prefill(IDS[128:])


@pytest.mark.parametrize(("fed", "ran"), [(100, 0), (600, 576)])
def test_exception_of_the_iterator_leaves_the_chunks_that_ran(session: Session, fed: int, ran: int) -> None:
    def stream() -> Iterator[int]:
        yield from IDS[:fed].tolist()
        raise ConnectionResetError("the pipe broke")

    with pytest.raises(ConnectionResetError, match="the pipe broke"):
        session.prefill(stream())
    assert session.position == ran
    session.prefill(IDS[ran:])


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also in a test run that was started in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_interrupts_a_prefill_at_a_chunk_border(session: Session) -> None:
    timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012  (the timer must not fire outside)
        timer.start()
        while True:
            session.reset()
            session.prefill(IDS)
    assert session.position % 64 == 0 or session.position == len(IDS)
    if session.position < len(IDS):
        session.prefill(IDS[session.position :])
    assert session.position == len(IDS)


def test_stop_from_another_thread_ends_a_prefill(session: Session) -> None:
    def stop(progress: PrefillProgress) -> None:
        other = threading.Thread(target=session.stop)
        other.start()
        other.join()

    with pytest.raises(SessionError, match="stopped after 64 tokens"):
        session.prefill(IDS, on_progress=stop)


def test_stop_holds_when_a_second_prefill_is_refused(session: Session) -> None:
    def stop(progress: PrefillProgress) -> None:
        session.stop()
        with pytest.raises(SessionError, match="already at work"):
            session.prefill([1])

    with pytest.raises(SessionError, match="stopped after 64 tokens"):
        session.prefill(IDS, on_progress=stop)


def test_stop_sent_before_a_prefill_ends_it_before_its_first_chunk(session: Session) -> None:
    session.stop()
    for refused in ([], [10**6], IDS.reshape(2, -1)):
        with pytest.raises(SessionError):
            session.prefill(refused)
    with pytest.raises(SessionError, match="stopped after 0 tokens: the session holds 0"):
        session.prefill(IDS)
    session.prefill(IDS)
    assert session.position == len(IDS)


def test_stopped_stream_loses_no_token_of_the_context(session: Session) -> None:
    session.prefill(IDS[:10])
    drawn = next(session.generate_tokens(stop_tokens=[]))

    def stream() -> Iterator[int]:
        yield from IDS[10:40].tolist()
        session.stop()

    with pytest.raises(SessionError, match="the session holds 11"):
        session.prefill(stream())
    assert session.tokens.tolist() == [*IDS[:10].tolist(), drawn]
    session.prefill(IDS[10:40])
    assert session.position == 41


def test_session_refuses_to_be_entered_twice(session: Session) -> None:
    reads = (lambda: session.tokens, lambda: session.logits)
    for enter in (session.reset, session.generate_tokens, lambda: session.prefill([1]), *reads):
        with pytest.raises(SessionError, match="already at work"):
            session.prefill(IDS[:64], on_progress=lambda _, enter=enter: enter())


@pytest.mark.parametrize("options", [{"max_context": 0}, {"max_context": 2**31}, {"chunk_tokens": 0}])
def test_session_sizes_out_of_range_are_refused(model: Model, options: dict[str, int]) -> None:
    with pytest.raises(SessionError, match=next(iter(options))):
        model.session(**options)


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -2}, {"max_new_tokens": -1}])
def test_wrong_generate_option_is_refused_at_once(session: Session, options: dict[str, float]) -> None:
    session.prefill(IDS[:3])
    with pytest.raises(SessionError, match=next(iter(options))):
        session.generate_tokens(**options)  # type: ignore[arg-type]


def test_generate_before_prefill_is_refused(session: Session) -> None:
    with pytest.raises(SessionError, match="prefill a prompt"):
        session.generate_tokens()
