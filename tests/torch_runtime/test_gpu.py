"""The torch runtime on a GPU: compiled kernels, the captured decode step, memory as it was predicted."""

from __future__ import annotations

import threading
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from support.calibration import quantized_tiny
from support.closeness import assert_close
from support.golden import GOLDEN_CHECKPOINT, golden
from support.passkey import in_pieces, needle_positions, passkey_config, passkey_prompt, write_passkey_checkpoint
from support.small_models import write_small_checkpoint
from support.torch_batches import outcomes_of, require_alike
from support.torch_sessions import greedy, logits_of_calls, remember_executions, torch_model

from sala_export.benchmark.gate import require_agreement
from sala_export.benchmark.measure import BenchmarkRequest, measure
from sala_export.building.planned_graph import planned_graph, planned_memory
from sala_export.engine.recipe import load_target
from sala_export.engine.request import EngineRequest
from sala_export.errors import RunError
from sala_export.machine import GpuMemory
from sala_export.runtime.session import Session
from sala_export.specs import Precision
from sala_export.torch_runtime.engine import LIBRARY_BYTES, TorchExecution
from sala_export.torch_runtime.load import TorchModel, load_random, load_torch

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
MIXERS = ("lightning-attn", "minicpm4", "minicpm4", "lightning-attn")
SPARSE = {
    "kernel_size": 32,
    "kernel_stride": 16,
    "block_size": 64,
    "topk": 4,
    "window_size": 128,
    "init_blocks": 1,
    "dense_len": 512,
}
LENGTH = 1500
PAGE_BYTES = 2 << 20
"""Of a GPU's memory, as the caches take it."""
PARTS_OF_THE_CACHES = 9
"""Of the first two layers of 9B: two heads of keys, values and both kinds of compressed keys, and the state. Each
begins and ends within a page."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_checkpoint(
        # The head size of which every GPU holds the tiles in fp32.
        tmp_path_factory.mktemp("gpu") / "checkpoint",
        MIXERS,
        sparse_config=SPARSE,
        head_dim=32,
    )


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> TorchModel:
    return load_torch(checkpoint, device=DEVICE, precision="bf16")


def random_ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 97, count).tolist()


def as_tensor(logits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(logits)


@pytest.fixture
def executions(monkeypatch: pytest.MonkeyPatch) -> list[TorchExecution]:
    """Those that a test's sessions make, in order."""
    return remember_executions(monkeypatch)


def test_kernels_in_fp32_give_the_reference_logits(checkpoint: Path) -> None:
    small = [random_ids(1000), random_ids(333), *([token] for token in random_ids(6))]
    expected = logits_of_calls(checkpoint, small, kernels=False, context_length=LENGTH)
    actual = logits_of_calls(checkpoint, small, kernels=True, context_length=LENGTH, device=DEVICE)
    for ours, theirs in zip(actual, expected, strict=True):
        # A selection that rounding decides would be another order of error.
        assert_close(as_tensor(ours), as_tensor(theirs), 1e-4)


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_sixteen_bits_agree_with_the_reference_on_the_same_weights(checkpoint: Path, precision: Precision) -> None:
    model = load_torch(checkpoint, device=DEVICE, precision=precision)
    agreement = require_agreement(model, model.source)
    assert agreement.error < agreement.bound


def test_published_logits_come_out_of_the_gpu() -> None:
    vectors = golden("golden")
    model = torch_model(GOLDEN_CHECKPOINT, kernels=True, device=DEVICE)
    session = model.session(max_context=2048, chunk_tokens=333)
    assert_close(as_tensor(session.prefill(vectors["input_ids"].numpy())), vectors["prefill_logits"][-1], 1e-4)
    for token, expected in zip(vectors["decode_ids"].tolist(), vectors["decode_logits"], strict=True):
        assert_close(as_tensor(session.prefill([token])), expected, 1e-4)


def test_logits_of_any_tokens_come_out_of_the_gpu() -> None:
    vectors = golden("golden")
    session = torch_model(GOLDEN_CHECKPOINT, kernels=True, device=DEVICE).session(max_context=2048, chunk_tokens=333)
    logits = session.prefill(vectors["input_ids"].numpy(), logits="all")
    expected = vectors["prefill_logits"]
    assert_close(as_tensor(logits[-len(expected) :]), expected, 1e-4)


@pytest.mark.parametrize("length", [100, 490, 700])
def test_drafts_do_not_change_an_answer(checkpoint: Path, length: int) -> None:
    model = torch_model(checkpoint, kernels=True, device=DEVICE)
    prompt = (random_ids(70) * 10)[:length]
    answers = []
    for speculation in (None, 8):
        session = model.session(max_context=LENGTH)
        session.prefill(prompt)
        answers.append(list(session.generate_tokens(max_new_tokens=60, stop_tokens=[], speculation=speculation)))
    assert answers[0] == answers[1]


def test_one_graph_replays_at_every_position_and_through_dense_len(
    checkpoint: Path, executions: list[TorchExecution]
) -> None:
    ids = random_ids(1500)
    theirs = torch_model(checkpoint, kernels=False).session(max_context=LENGTH)
    ours = torch_model(checkpoint, kernels=True, device=DEVICE).session(max_context=LENGTH)
    steps = 0
    # The context turns sparse at 512 tokens; positions far apart, and back to the beginning.
    for start, end in ((490, 530), (1100, 1110), (0, 8)):
        if start < ours.position:
            ours.reset()
            theirs.reset()
        for session in (ours, theirs) if start else ():
            session.prefill(ids[session.position : start])
        for token in ids[start:end]:
            assert_close(as_tensor(ours.prefill([token])), as_tensor(theirs.prefill([token])), 1e-4)
            steps += 1
    assert executions[1].replays == steps - 1, "all but the first, which compiles"


def test_steps_of_each_batch_replay_a_graph_and_give_what_sequences_get_alone(checkpoint: Path) -> None:
    engine = torch_model(checkpoint, kernels=True, device=DEVICE).engine
    # The context turns sparse at 512 tokens.
    sizes = [3, 2, 3, 3, 1, 2, 3, 8, 8, 8]
    found = outcomes_of(engine, (510, 1100, 0, 30, 127, 128, 700, 1), sizes, capacity=LENGTH)
    require_alike(found, partial(assert_close, tolerance=1e-4))
    assert found.replays == {3: 3, 2: 1, 1: 0, 8: 2}, "all but the first of each, which compiles"


@pytest.mark.parametrize("cuts", [(1, 8, 900, 1499), tuple(range(1480, LENGTH))], ids=["uneven", "token by token"])
def test_chunks_do_not_change_logits(checkpoint: Path, cuts: tuple[int, ...]) -> None:
    ids = random_ids(LENGTH, seed=1)
    model = torch_model(checkpoint, kernels=True, device=DEVICE)
    expected = model.session(max_context=LENGTH, chunk_tokens=LENGTH).prefill(ids)
    session = model.session(max_context=LENGTH, chunk_tokens=LENGTH)
    for start, end in pairwise((0, *cuts, LENGTH)):
        logits = session.prefill(ids[start:end], context_length=LENGTH)
    assert_close(as_tensor(logits), as_tensor(expected))


def test_state_of_the_gpu_goes_on_with_the_reference_on_the_cpu(
    checkpoint: Path, model: TorchModel, tmp_path: Path
) -> None:
    elsewhere = load_torch(checkpoint, device="cpu", precision="bf16")
    ids = random_ids(300, seed=2)
    session = model.session(max_context=400)
    session.prefill(ids[:290])
    session.save(tmp_path / "a.state")
    restored = elsewhere.restore(tmp_path / "a.state", max_context=400)
    assert_close(as_tensor(restored.prefill(ids[290:])), as_tensor(session.prefill(ids[290:])), 16 * 2.0**-8)
    restored.save(tmp_path / "b.state")
    back = model.restore(tmp_path / "b.state", max_context=400)
    assert greedy(back, 5) == greedy(model.restore(tmp_path / "b.state", max_context=400), 5)


def test_restored_session_goes_on_with_the_same_tokens(model: TorchModel, tmp_path: Path) -> None:
    session = model.session(max_context=LENGTH)
    session.prefill(random_ids(700, seed=3))
    before = greedy(session, 5)
    session.save(tmp_path / "a.state")
    assert greedy(model.restore(tmp_path / "a.state", max_context=LENGTH), 8) == greedy(session, 8)
    assert len(before) == 5


def test_sessions_in_threads_of_their_own_give_what_they_give_alone(model: TorchModel) -> None:
    def tokens(seed: int, found: dict[int, list[int]]) -> None:
        session = model.session(max_context=LENGTH, chunk_tokens=100 + seed)
        session.prefill(random_ids(600, seed))
        found[seed] = greedy(session, 20)

    alone: dict[int, list[int]] = {}
    for seed in range(3):
        tokens(seed, alone)
    together: dict[int, list[int]] = {}
    threads = [threading.Thread(target=tokens, args=(seed, together)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def ask(session: Session, question: np.ndarray, context: int) -> int:
    return int(session.prefill(question, context_length=context).argmax())


@pytest.mark.parametrize("length", [8192, 131072, 1 << 20])
def test_needles_at_all_depths_are_found(tmp_path: Path, length: int) -> None:
    model = load_torch(write_passkey_checkpoint(tmp_path / "passkey", passkey_config()), device=DEVICE)
    assert model.precision == "bf16"
    tokens, needles = passkey_prompt(length, needle_positions(length))
    context = length + 2 * len(needles)
    session = model.session(max_context=context)
    session.prefill(in_pieces(tokens, (1, 777, 50000, 64)))
    assert [ask(session, needle.question(), context) for needle in needles] == [needle.value for needle in needles]


@pytest.fixture
def nine() -> tuple[TorchModel, int]:
    """The first two layers of 9B, one of each kind, and what was allocated before them."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return load_random("9b", layers=2, device=DEVICE), before


def test_memory_is_what_was_predicted(nine: tuple[TorchModel, int]) -> None:
    model, before = nine
    context, chunk = 1 << 20, 1024
    session = model.session(max_context=context, chunk_tokens=chunk)
    session.prefill(random_ids(5 * chunk))
    greedy(session, 4)
    # Torch has no part in the caches, which take pages for the tokens that are there.
    taken = torch.cuda.max_memory_allocated() - before
    account = model.memory(context, chunk)
    assert 0 <= taken - (account.total_bytes - account.cache_bytes) <= LIBRARY_BYTES
    held = model.memory(session.position, chunk).cache_bytes
    assert 0 <= model.cache_bytes - held <= PARTS_OF_THE_CACHES * 2 * PAGE_BYTES
    request = EngineRequest.from_options(
        load_target("rtx5090"), precision="bf16", max_context=context, prefill_chunk=chunk, max_batch=1
    )
    config = model.source.config
    planned = planned_memory(planned_graph(config, request.precision), config, request)
    assert taken + account.cache_bytes == pytest.approx(planned.total_bytes, rel=0.03)


def test_random_9b_answers_after_64k_in_the_memory_accounted(nine: tuple[TorchModel, int]) -> None:
    model, before = nine
    request = BenchmarkRequest(contexts=(65536,), new_tokens=8, repeats=1)
    (row,) = measure(model, model.source.config, request, GpuMemory(), lambda line: None)
    taken = torch.cuda.max_memory_allocated() - before
    account = model.memory(65536 + request.new_tokens)
    assert row.predicted_device_bytes == account.total_bytes
    # The caches, of which torch knows nothing, went with their session.
    assert 0 <= taken - (account.total_bytes - account.cache_bytes) <= LIBRARY_BYTES
    assert model.cache_bytes == 0
    assert row.token is not None
    assert 0 < row.token.median < row.first_token.median
    # After the peak: the reference holds a prompt in other memory.
    agreement = require_agreement(model, model.source)
    assert agreement.error < agreement.bound


def test_prompt_that_does_not_fit_says_how_many_tokens_would_and_leaves_the_others_alone(
    nine: tuple[TorchModel, int],
) -> None:
    model, _ = nine
    session = model.session(max_context=LENGTH)
    expected = session.prefill(random_ids(100))
    # 1 KiB of keys and values a token: more than any GPU has. Addresses alone take no memory.
    tokens = 1 << 28
    large = model.session(max_context=tokens)
    taken = model.cache_bytes
    with pytest.raises(RunError, match=rf"values of {tokens} tokens take .* are free, which is enough for \d+") as told:
        large.prefill(np.zeros(tokens, np.int32))
    assert told.value.code == "OutOfMemory"
    assert large.position == 0
    assert model.cache_bytes == taken
    session.reset()
    np.testing.assert_array_equal(session.prefill(random_ids(100)), expected)


def test_fork_of_a_long_context_shares_its_memory_and_goes_on_as_its_parent_after_it_is_gone(
    nine: tuple[TorchModel, int],
) -> None:
    model, _ = nine
    length = 1 << 17
    book = model.session(max_context=length + 1000)
    book.prefill(random_ids(length))
    held = model.cache_bytes
    assert held >= length << 10, "1 KiB of keys and values a token"
    fork = book.fork()
    questions = [random_ids(300, seed=1), random_ids(7, seed=2), [5]]
    expected = [book.prefill(ids) for ids in questions[:1]]
    np.testing.assert_array_equal(fork.prefill(questions[0]), expected[0])
    assert model.cache_bytes - held < held // 3, "each has its own states and last pages, the others are shared"
    expected += [book.prefill(ids) for ids in questions[1:]]
    generated = greedy(book, 8)
    del book
    for ids, logits in zip(questions[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(fork.prefill(ids), logits)
    assert greedy(fork, 8) == generated
    assert model.cache_bytes < held + held // 3
    del fork
    assert model.cache_bytes == 0


def test_rewound_session_answers_again_with_the_same_tokens(model: TorchModel) -> None:
    session = model.session(max_context=LENGTH, chunk_tokens=200)
    session.prefill(random_ids(700, seed=4))
    end, middle = session.position, session.checkpoints[1]
    answers = []
    for _ in range(2):
        answers.append(greedy(session, 10))
        assert session.rewind(end) == end
    assert answers[0] == answers[1]
    assert session.rewind(middle) == middle
    again = model.session(max_context=LENGTH, chunk_tokens=200)
    again.prefill(random_ids(700, seed=4)[:middle], context_length=end)
    ids = random_ids(300, seed=5)
    np.testing.assert_array_equal(session.prefill(ids), again.prefill(ids))


@pytest.mark.parametrize("precision", [Precision.INT4, Precision.INT8])
def test_quantised_layers_in_a_replayed_graph_are_those_of_the_cpu(
    precision: Precision, executions: list[TorchExecution]
) -> None:
    checkpoint = quantized_tiny(precision)
    theirs = load_torch(checkpoint, device="cpu", precision="bf16").session(max_context=128)
    ours = load_torch(checkpoint, device=DEVICE, precision="bf16").session(max_context=128)
    ids = random_ids(75, seed=6)
    for piece in (ids[:70], *([token] for token in ids[70:])):
        expected, found = as_tensor(theirs.prefill(piece)), as_tensor(ours.prefill(piece))
        assert float((found - expected).norm() / expected.norm()) < 0.1
    assert executions[1].replays == 4, "all but the first, which compiles"


def test_sessions_that_draw_together_draw_what_each_does_alone(model: TorchModel) -> None:
    sessions = []
    for place, length in enumerate((1, 31, 700, 511, 512, 64, 1000, 200)):
        sessions.append(model.session(max_context=LENGTH))
        sessions[-1].prefill(random_ids(length, seed=place))
    expected = [greedy(session.fork(), 12) for session in sessions]
    steps = list(model.generate_batch_tokens(sessions, max_new_tokens=12, stop_tokens=[]))
    found = [[step[place] for step in steps if step[place] is not None] for place in range(len(sessions))]
    # In bf16 the products of eight rows may round another way than those of one, and two tokens be as likely.
    same = sum(ours == theirs for ours, theirs in zip(found, expected, strict=True))
    assert same >= 6
    assert all(ours[0] == theirs[0] for ours, theirs in zip(found, expected, strict=True))


def test_requests_side_by_side_draw_what_each_session_does_alone(model: TorchModel) -> None:
    """The scheduler's thread captures and replays graphs of its own while this one makes sessions."""
    lengths = (1, 31, 700, 511, 512, 64, 1000, 200)
    prompts = [random_ids(length, seed=place) for place, length in enumerate(lengths)]
    expected = []
    for prompt in prompts:
        session = model.session(max_context=LENGTH, chunk_tokens=200)
        session.prefill(prompt)
        expected.append(greedy(session, 12))
    with model.scheduler() as scheduler:
        answers = []
        for prompt in prompts:
            session = model.session(max_context=LENGTH, chunk_tokens=200)
            answers.append(scheduler.submit_tokens(session, prompt, max_new_tokens=12, stop_tokens=[]))
        found = [list(answer) for answer in answers]
    assert [len(each) for each in found] == [12] * len(prompts)
    # As above: products of several rows may round another way.
    assert sum(ours == theirs for ours, theirs in zip(found, expected, strict=True)) >= 6
    assert all(ours[0] == theirs[0] for ours, theirs in zip(found, expected, strict=True))
