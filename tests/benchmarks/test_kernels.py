"""What of `benchmarks/kernels.py` needs no GPU: options, inputs, arithmetic, tables; all of it with a stub timer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support.benchmark_flow import (
    SMALL_CASES,
    SPARSE_SMALL,
    CountingTimer,
    measure_with_faults,
    run_small_flow,
    settings,
    tune_small,
)
from support.closeness import assert_close
from support.fla_oracle import fla_naive_recurrent_simple_gla
from support.triton_compiler import call_compiling
from support.triton_interpreter import call_interpreting
from torch import Tensor

from benchmarks import kernel_account, kernel_cases, kernels
from benchmarks.figures import FigureWriter, read_figures
from benchmarks.gpu_machine import find_rates, rates_of
from benchmarks.kernel_cases import LIGHTNING, SPARSE, Case, make_inputs, published_cases
from benchmarks.kernel_compilation import examine
from benchmarks.kernel_measure import OPERATOR, OPERATOR_GRAPH, Row, account, missing_memory, rows
from benchmarks.kernel_peers import linear_operands, make_peer
from benchmarks.kernel_tables import GOALS, goal_lines, results_table
from benchmarks.kernel_timing import LEAST_ROUNDS, WARM_UPS, Step, Times, alternate
from benchmarks.kernel_tuning import job_of, refusal, trials, tunable, tuning_cases, tuning_table
from benchmarks.kernel_ways import Way
from sala_export.errors import RequestError
from sala_export.ops.common.expr import evaluate
from sala_export.ops.infllmv2_attention.torch_op import infllmv2_attention_
from sala_export.ops.kernel_sets import KERNEL_SETS
from sala_export.ops.lightning_attention.reference import decay_slopes, lightning_attention
from sala_export.specs import DType

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_without_a_gpu_it_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.main(["--quick"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: no CUDA device here: this can only be measured on an NVIDIA GPU\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nothing of that name"], "no call has that in its name; there are 'Lightning, chunk of 8K'"),
        (["--rounds", "2"], "needs at least 3"),
        (["--tune", "no_kernel"], "invalid choice"),
        (["--dtype", "fp32"], "invalid choice"),
        (["--seconds", "0"], "give more than 0"),
        (["--shipped", "--sm80-path"], "not allowed with argument"),
        (["--shipped", "--tune", "lightning_attention"], "leave --shipped out"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        kernels.parse(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_options_choose_the_calls() -> None:
    assert kernels.parse([]).rounds == 20
    assert kernels.parse(["--quick"]).rounds == 5
    names = [case.name for case in kernels.chosen_cases(kernels.parse(["--only", "ONE token"]))]
    assert names == ["Lightning, one token", *(f"InfLLM-v2, one token after {n}" for n in ("32K", "128K", "1M"))]


def test_calls_keep_their_contracts_and_every_context_is_there() -> None:
    for case in published_cases():
        shapes = [[evaluate(e, case.sizes) for e in tensor.shape] for tensor in case.contract.inputs]
        dtypes = [tensor.dtype.replace("X", "bfloat16") for tensor in case.contract.inputs]
        assert case.contract.bind(shapes, dtypes, case.attributes)["T"] == case.tokens
    sparse = [case for case in published_cases() if case.operator == SPARSE and case.batch == 1]
    for context in kernel_cases.CONTEXTS:
        assert {1, 8192} <= {case.tokens for case in sparse if case.context == context}


@pytest.mark.parametrize(("gibibytes", "fit"), [(79, True), (23, True), (4, False)])
def test_calls_fit_the_memory_of_an_h100_and_of_a_4090(gibibytes: int, fit: bool) -> None:
    reasons = [missing_memory(case, DType.BFLOAT16, gibibytes << 30) for case in published_cases()]
    assert (reasons == [None] * len(reasons)) is fit
    if not fit:
        assert "of device memory, 4.00 GiB are free" in str(reasons[-1])


def test_what_does_not_fit_is_left_out_loudly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(kernels, "free_bytes", lambda device: 1 << 30)
    calls = [(SMALL_CASES[0], DType.BFLOAT16)]
    figures = FigureWriter(tmp_path / "figures.jsonl", "E")
    assert kernels.measure_all(calls, CPU, CountingTimer(), settings(), figures) == ([], False)
    assert "SKIPPED chunk, bfloat16: needs 2.00 GiB" in capsys.readouterr().err
    (figure,) = read_figures(tmp_path / "figures.jsonl")
    assert (figure["step"], figure["kind"], figure["where"]) == ("E", "problem", "SKIPPED chunk, bfloat16")


def test_a_failing_call_and_a_missing_peer_leave_the_others(tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    found, has_failed = call_interpreting(measure_with_faults, path)
    assert has_failed
    assert [row.what for row in found[:2]] == [OPERATOR, OPERATOR_GRAPH]
    assert {row.case for row in found} == {"token"}
    assert goal_lines(found) == []
    failed, no_peer, *measured = read_figures(path)
    assert failed["where"] == "FAILED sparse token, float16"
    assert failed["message"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert no_peer["where"] == "NO PEER token, float16"
    assert no_peer["message"] == "ModuleNotFoundError: No module named 'fla'"
    assert [figure["what"] for figure in measured] == [row.what for row in found]
    assert all(figure["seconds"] == 1.0 and figure["way"] == "jit" for figure in measured)


def sparse_case(**changes: int) -> Case:
    sizes = {"tokens": 40, "past_length": 360, "batch": 2, **changes}
    return Case(name="sparse", operator=SPARSE, attributes=SPARSE_SMALL, **sizes)


def test_caches_hold_what_the_operator_leaves_there() -> None:
    case = sparse_case()
    inputs = make_inputs(case, torch.float32, CPU)
    before = [x.clone() for x in inputs[3:]]
    infllmv2_attention_(*inputs, **case.attributes)
    for ours, left in zip(before, inputs[3:], strict=True):
        assert_close(ours, left)


def test_dense_peer_computes_what_the_operator_does_densely() -> None:
    for case in (sparse_case(), sparse_case(tokens=1)):
        inputs = make_inputs(case, torch.float32, CPU)
        heads, width = case.sizes["num_heads"], case.sizes["num_heads"] * case.sizes["head_dim"]
        inputs[0][..., -width:] = 100.0  # the gate is open
        y = infllmv2_attention_(*inputs, **{**case.attributes, "dense_len": 1 << 20})
        theirs = make_peer(case, inputs)()
        assert isinstance(theirs, Tensor)
        assert theirs.shape[1] == heads
        assert_close(theirs.transpose(1, 2).reshape(y.shape), y)


def test_linear_peer_gets_the_operands_of_our_recurrence() -> None:
    case = Case(name="l", operator=LIGHTNING, tokens=37, attributes={**SMALL_CASES[0].attributes, "num_heads": 4})
    inputs = make_inputs(case, torch.float32, CPU)
    q, k, v = linear_operands(case, inputs)
    decays = (-decay_slopes(4)).expand(1, 37, 4)
    scale, state = float(case.attributes["scale"]), inputs[-1]
    o, state_out = fla_naive_recurrent_simple_gla()(
        q, k, v, decays, scale=scale, initial_state=state, output_final_state=True
    )
    y, ours = lightning_attention(*inputs, **case.attributes)
    normed = torch.nn.functional.rms_norm(o.reshape(1, 37, -1), (128,), inputs[3], float(case.attributes["eps"]))
    assert_close(normed * inputs[0][..., -128:].sigmoid(), y)
    assert_close(state_out, ours)


def constant(seconds: float) -> Times:
    return Times(seconds=(seconds,) * 5)


def test_rows_stand_beside_floor_and_roofline() -> None:
    """Decode of Lightning on an H100: 2 x 2 MiB of state at 3350 GB/s, and little more."""
    case = next(case for case in published_cases() if case.name == "Lightning, one token")
    times = {
        OPERATOR: [constant(4e-6)],
        OPERATOR_GRAPH: [constant(2e-6)],
        "fla fused_recurrent_simple_gla": [constant(8e-6)],
        "launches": [constant(2.5e-6)],
    }
    names = ["lightning_decode_kernel"]
    found = rows(case, DType.BFLOAT16, times, names, rates_of("h100"))
    assert [row.what for row in found] == [OPERATOR, OPERATOR_GRAPH, "fla fused_recurrent_simple_gla", *names]
    floor = (4 * 2**20 + 5 * 8192) / 3350e9
    assert found[1].of_floor == pytest.approx(floor / 2e-6, rel=0.01)
    assert found[3].of_roofline == pytest.approx(floor / 2.5e-6, rel=0.02)
    assert found[2].of_floor is None
    table = results_table(found).splitlines()
    assert len(table) == 2 + len(found)
    assert table[2] == "| Lightning, one token | bfloat16 | operator | 4 us | 0 % | 32 % | 32 % | 2.00 x |"
    assert goal_lines(found) == ["met: Lightning decode over its floor: 1.58 x, at most 2"]
    with pytest.raises(ValueError, match=r"cost\.py accounts for"):
        rows(case, DType.BFLOAT16, times, [], rates_of("h100"))


def test_rows_are_accounted_by_the_architecture_whose_tiles_ran() -> None:
    """On an H200 with the tiles of SM86, selection has one launch more, which makes the codes of keys."""
    case = next(case for case in published_cases() if case.name == "InfLLM-v2, last 8K of 32K")
    names = [cost.kernel for cost in account(case, DType.BFLOAT16, 86)[0]]
    assert "infllmv2_quantize_keys_kernel" in names
    times = {OPERATOR: [constant(1.0)], OPERATOR_GRAPH: [constant(1.0)]}
    found = rows(case, DType.BFLOAT16, times, names, rates_of("h200"), Way.JIT_SM86)
    assert [row.what for row in found] == [OPERATOR, OPERATOR_GRAPH]
    with pytest.raises(ValueError, match=r"cost\.py accounts for"):
        rows(case, DType.BFLOAT16, times, names, rates_of("h200"), Way.JIT)


def test_calls_in_a_row_have_as_many_floors() -> None:
    one, four = (
        next(case for case in published_cases() if case.name == name)
        for name in ("Lightning, chunk of 8K", "Lightning, 32K in chunks of 8K")
    )
    names = ["lightning_carry_kernel", "lightning_prefill_kernel", "lightning_output_kernel"]
    times = {name: [constant(1.0)] for name in (OPERATOR, OPERATOR_GRAPH, "fla chunk_simple_gla")}
    of_one, of_four = (rows(case, DType.FLOAT16, times, names, rates_of("h100")) for case in (one, four))
    assert [row.what for row in of_one] == list(times)
    assert of_four[0].floor_seconds == pytest.approx(4 * of_one[0].floor_seconds)
    assert of_four[0].roofline_seconds == pytest.approx(4 * of_one[0].roofline_seconds)


def test_every_goal_belongs_to_a_call() -> None:
    assert {goal.case for goal in GOALS} <= {case.name for case in published_cases()}


def test_missed_goals_are_said_to_be() -> None:
    case = "InfLLM-v2, 128K at once"
    row = Row(
        case=case,
        dtype="bfloat16",
        what="infllmv2_select_kernel",
        seconds=0.021,
        spread=0.0,
        rounds=3,
        floor_seconds=None,
        roofline_seconds=0.0055,
    )
    assert goal_lines([row]) == ["MISSED: stage 1 of a prompt of 128K: 21 ms per layer, at most 20"]


class ScriptedTimer(CountingTimer):
    """Notes the order of the sides."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[Step] = []

    def run(self, steps: Sequence[Step]) -> list[float]:
        self.order += steps
        return super().run(steps)


def test_sides_take_turns_and_change_their_order() -> None:
    def ours() -> None: ...

    def peer() -> None: ...

    timer = ScriptedTimer()
    times = alternate(timer, {"ours": [ours, ours], "peer": [peer]}, rounds=4, budget_seconds=100)
    assert timer.order[3 * WARM_UPS :] == [ours, ours, peer, peer, ours, ours] * 2
    assert [len(of_step.seconds) for of_step in times["ours"]] == [4, 4]
    few = alternate(timer, {"ours": [ours]}, rounds=20, budget_seconds=1)
    assert len(few["ours"][0].seconds) == LEAST_ROUNDS


def test_spread_is_half_the_middle_half() -> None:
    times = Times(seconds=(1.0, 2.0, 3.0, 4.0, 5.0))
    assert times.median == 3.0
    assert times.spread == pytest.approx(0.5)


def test_small_calls_go_from_inputs_to_rows() -> None:
    found, steps = call_interpreting(run_small_flow)
    assert {row.case for row in found} == {case.name for case in SMALL_CASES}
    # Operator, graph and peer of every call, and each launch where one call is measured.
    assert len(found) == 3 * len(SMALL_CASES) + 2 + 1 + 5 + 4
    assert steps == (1 + LEAST_ROUNDS) * len(found)
    assert {row.seconds for row in found} == {1.0}


def test_tuned_constants_give_a_table_and_figures(tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    table = call_interpreting(tune_small, path).splitlines()
    told = [(figure["kernel"], figure["case"], figure["seconds"]) for figure in read_figures(path)]
    assert told == [("lightning_attention", "Lightning, chunk of 20", 1.0)] * 5
    assert table[0] == "| SM120, float16 | registers | relative time | Lightning, chunk of 20 |"
    assert len(table) == 2 + 5
    assert '| `{"LEAST_PART": 256}` |  | 1.000 | 1 s +- 0 % |' in table


@pytest.mark.parametrize("name", tunable())
def test_candidates_can_be_compiled_and_hold_the_present_tile(name: str) -> None:
    """The jobs are made, which checks their constants; compiling them all would take minutes."""
    assert tuning_cases(name)
    candidates = trials(name, 86)
    assert len({trial.text for trial in candidates}) == len(candidates)
    if name in KERNEL_SETS:
        return
    jobs = [job_of(name, trial, DType.BFLOAT16, 86) for trial in candidates]
    assert len(set(jobs)) == len(jobs)
    launch = next(x for s in KERNEL_SETS.values() for x in s.launches if x.name == name)
    present = launch.tiles[86]
    assert (dict(present.constexprs), present.num_warps, present.num_stages) in [
        (dict(tile.constexprs), tile.num_warps, tile.num_stages)
        for trial in candidates
        for tile in (next(x for x in trial.kernel_set.launches if x.name == name).tiles[86],)
    ]


def test_candidates_that_spill_or_do_not_fit_are_refused() -> None:
    name = "infllmv2_gather_kernel"
    spilling, fitting = (
        next(t for t in trials(name, 90) if t.text.endswith(f'"BLOCK_N": {n}}}, num_warps=1, num_stages=3)'))
        for n in (64, 16)
    )
    found = [call_compiling(examine, job_of(name, trial, DType.BFLOAT16, 90), 90) for trial in (spilling, fitting)]
    assert str(refusal(found[0])).startswith("spills: ")
    assert refusal(found[1]) is None
    name = "infllmv2_attend_kernel"
    wide = next(t for t in trials(name, 86) if '"BLOCK_N": 128' in t.text and "num_stages=3" in t.text)
    reason = refusal(call_compiling(examine, job_of(name, wide, DType.BFLOAT16, 86), 86))
    assert "bytes of shared memory, SM86 has 101376" in str(reason)


def test_tuning_table_puts_the_best_over_all_calls_first() -> None:
    times = {
        "short": {"a": constant(1e-3), "b": constant(2e-3)},
        "long": {"a": constant(8e-3), "b": constant(2e-3)},
    }
    lines = tuning_table("SM90", times, {"a": 100, "b": 200}, [("c", "spills")]).splitlines()
    assert lines[2] == "| `b` | 200 | 1.500 | 2 ms +- 0 % | 2 ms +- 0 % |"
    assert lines[3].startswith("| `a` | 100 | 2.500 ")
    assert lines[4] == "refused: c: spills"


def test_rates_are_found_by_the_name_of_the_gpu() -> None:
    assert find_rates(None, "NVIDIA H100 80GB HBM3").memory_gigabytes_per_second == 3350
    assert find_rates(None, "NVIDIA GeForce RTX 5090").name == "rtx5090"
    assert find_rates("a6000", "anything").name == "a6000"
    with pytest.raises(RequestError, match=r"no rates of Tesla T4 among .*h100.*: give those of your GPU"):
        find_rates(None, "Tesla T4")


def test_account_in_the_document_is_that_of_the_code() -> None:
    assert kernel_account.page() in (ROOT / "docs" / "kernel_predictions.md").read_text(encoding="utf-8")
