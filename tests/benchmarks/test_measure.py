"""Benchmarks of a tiny model: what is measured and reported, and what is refused. Speed itself is asserted nowhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.checkpoints import tiny_checkpoint
from support.runtime_bundles import tiny_cpu_bundle

from benchmarks import ttft
from benchmarks.figures import read_figures
from sala_export import loading, machine
from sala_export.benchmark import gate, measure, report
from sala_export.benchmark.measure import BenchmarkRequest, Measurement, Runs
from sala_export.benchmark.report import Report, describe, find_recipe, table
from sala_export.checkpoint.presets import PRESETS
from sala_export.checkpoint.random_checkpoint import write_random_checkpoint
from sala_export.cli.app import run
from sala_export.engine.recipe import read_recipe
from sala_export.errors import RequestError, RunError, SessionError
from sala_export.machine import Machine
from sala_export.runtime.session import Session
from sala_export.specs import Precision
from sala_export.torch_runtime.load import TorchModel, load_torch

Capture = pytest.CaptureFixture[str]
H100 = Path(__file__).parents[2] / "benchmarks" / "h100.toml"
TORCH = ["--runtime", "torch", "--device", "cpu"]


def test_bench_of_a_bundle_prints_a_row_for_each_context(capsys: Capture) -> None:
    arguments = ["bench", str(tiny_cpu_bundle()), "--context", "1K,64", "--new-tokens", "3", "--repeats", "2"]
    assert run(arguments) == 0
    captured = capsys.readouterr()
    head, settings, columns, *rows, last = captured.out.splitlines()
    assert " in fp32 on onnxruntime, " in head
    assert settings.endswith("3 new tokens, median of 2")
    assert columns.split("  ")[:4] == ["context", "first token", "spread", "tokens/s"]
    assert "floor" not in columns, "no row has one"
    assert max(len(line) for line in (columns, *rows)) <= 80
    assert [row.split()[0] for row in rows] == ["64", "1K"], "ascending"
    assert last == "no floor is known for a CPU"
    assert "1K: 2 runs will take about" in captured.err
    assert "1K: run 2 of 2" in captured.err
    (warning,) = [line for line in captured.err.splitlines() if line.startswith("warning: ")]
    assert warning == (
        "warning: a context of 1K with --new-tokens 3 is beyond the 1K that the engine of this bundle serves: "
        "runtime onnxruntime takes it, tensorrt would refuse it"
    )


def test_table_says_what_quantised_weights_are_computed_in(capsys: Capture) -> None:
    arguments = [*TORCH, "--context", "64", "--new-tokens", "2", "--repeats", "1"]
    assert run(["bench", str(tiny_checkpoint(precision=Precision.INT8)), *arguments]) == 0
    captured = capsys.readouterr()
    told = "int8 computed in fp32"
    assert f"runs on PyTorch on the CPU, {told}\n" in captured.err
    assert f", {told} on torch, " in captured.out.splitlines()[0]
    assert "64: 1 run will take about" in captured.err
    assert "beyond" not in captured.err, "a checkpoint has no engine"


def test_bench_of_a_checkpoint_gives_json(capsys: Capture) -> None:
    arguments = [*TORCH, "--context", "70", "--new-tokens", "2", "--repeats", "3", "--chunk-tokens", "32", "--json"]
    assert run(["bench", str(tiny_checkpoint()), *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["runtime"], told["precision"], told["chunk_tokens"]) == ("torch", "fp32", 32)
    assert told["model"]["source"] == tiny_checkpoint().name, "no path of this machine"
    assert told["model"]["shapes"]["vocab_size"] == 512
    assert told["machine"]["cores"] >= 1
    assert told["machine"]["processor"]
    (row,) = told["contexts"]
    assert row["context"] == 70
    for name in ("first_token_seconds", "token_seconds"):
        runs = row[name]["runs"]
        assert len(runs) == 3
        assert sorted(runs)[1] == row[name]["median"]
        assert row[name]["spread"] == pytest.approx((max(runs) - min(runs)) / row[name]["median"])
        assert row[name]["floor"] is None
    assert row["host_memory_bytes"] > 2**20
    assert row["device_memory_bytes"] is None


@pytest.mark.parametrize("runtime", [[], TORCH], ids=["onnxruntime", "torch"])
def test_bench_of_other_weights_names_them(capsys: Capture, tmp_path: Path, runtime: list[str]) -> None:
    write_random_checkpoint(tmp_path / "fine-tune", "tiny", seed=1)
    arguments = [*runtime, "--weights", str(tmp_path / "fine-tune"), "--context", "5", "--new-tokens", "1", "--json"]
    assert run(["bench", str(tiny_cpu_bundle()), *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["source"] == "fine-tune"


def test_one_new_token_has_no_decode_rate(capsys: Capture) -> None:
    arguments = ["--context", "5", "--new-tokens", "1", "--repeats", "1", "--json"]
    assert run(["bench", str(tiny_cpu_bundle()), *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["contexts"][0]["token_seconds"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--context", "0"], ["--context", "'0' is not a token count"]),
        (["--context", "64K,"], ["--context", "'' is not a token count"]),
        (["--new-tokens", "0"], ["--new-tokens", "0"]),
        (["--context", "1900M"], ["--context 1900M needs", "GiB are free: choose a smaller --context"]),
        (["--context", "64", "--chunk-tokens", "1M"], ["chunk_tokens is 1048576"]),
        (["--context", "64", "--runtime", "abacus"], ["--runtime", "abacus", "onnxruntime", "torch"]),
        (["--context", "64", "--device", "cpu"], ["device cpu is for the torch runtime"]),
        (["--context", "64", "--gpu-recipe", "rtx5090"], ["--gpu-recipe rtx5090: no floor is known for a CPU"]),
        (["--context", "64", "--gpu-recipe", "none.toml"], ["--gpu-recipe none.toml: cannot read the recipe"]),
        (["--context", "64", "--gpu-recipe", "rtx"], ["--gpu-recipe rtx: name one GPU of these: a6000, rtx4090"]),
        (["--context", "64", "--gpu-recipe", "abacus"], ["--gpu-recipe abacus: unknown GPU"]),
    ],
)
def test_bad_option_is_one_line(capsys: Capture, arguments: list[str], words: list[str]) -> None:
    assert run(["bench", str(tiny_cpu_bundle()), *arguments]) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line
    assert captured.out == ""


def test_checkpoint_without_the_torch_runtime_is_refused(capsys: Capture) -> None:
    assert run(["bench", str(tiny_checkpoint()), "--context", "64"]) == 2
    assert "choose --runtime torch" in capsys.readouterr().err


@pytest.mark.parametrize("fields", [{"contexts": ()}, {"contexts": (0,)}, {"new_tokens": 0}, {"repeats": 0}])
def test_request_of_nothing_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="--"):
        BenchmarkRequest(**{"contexts": (5,), "new_tokens": 1, **fields})  # type: ignore[arg-type]


def imaginary(**fields: object) -> Report:
    """A run of the published model on an H100, as no machine has made it."""
    rows = tuple(
        Measurement(
            context=context,
            first_token=Runs((2.0 * seconds, 2.2 * seconds, 1.9 * seconds)),
            token=Runs((0.006, 0.007, 0.0065)),
            device_bytes=30 << 30,
            predicted_device_bytes=29 << 30,
            host_bytes=4 << 30,
        )
        for context, seconds in ((131072, 2.5), (1000, 0.02))
    )
    gpu = {"name": "NVIDIA H100 80GB HBM3"}
    here = Machine(processor="Imaginary CPU", cores=1, system="", python="", sala_export="", commit=None, gpus=(gpu,))
    made = Report(
        model="openbmb/MiniCPM-SALA",
        config=PRESETS["9b"].config,
        runtime="torch",
        precision="bf16",
        request=BenchmarkRequest(contexts=(1000, 131072), new_tokens=128),
        chunk_tokens=8192,
        machine=here,
        recipe=read_recipe(H100),
        why_no_floor=None,
        rows=rows,
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def test_floor_of_an_h100_and_published_figures_stand_beside_the_measured() -> None:
    made = imaginary()
    floor = made.floor(131072)
    assert floor is not None
    # Computed independently of this code: 2.5 s and 22.6 s; decode reads 18.35 GB of weights.
    assert floor.first_token == pytest.approx(2.5, abs=0.1)
    assert made.floor(1 << 20).first_token == pytest.approx(22.6, rel=0.03)  # type: ignore[union-attr]
    assert 0.0054 < floor.token < 0.0057
    head, _, columns, long, short = table(made).splitlines()
    assert "NVIDIA H100 80GB HBM3" in head
    assert columns.split("published ")[1:] == ["a6000d  ", "rtx5090"]
    assert "5.000 s" in long
    assert "25.2 s" in long
    assert "22.3 s" in long
    assert short.split()[-2:] == ["-", "-"], "nothing was published for 1000 tokens"
    told = describe(made)["contexts"][0]
    assert told["published_first_token_seconds"] == {"rtx5090": 22.3, "a6000d": 25.2}
    assert told["first_token_seconds"]["floor"] == floor.first_token


def test_other_models_have_no_published_figures() -> None:
    assert imaginary(config=PRESETS["9b"].config.truncated(4)).published(131072) == {}


def test_recipe_is_that_of_the_gpu_by_name() -> None:
    recipe = find_recipe(None, [{"name": "NVIDIA GeForce RTX 5090"}])
    assert recipe is not None
    assert recipe.name == "rtx5090"
    assert find_recipe(None, [{"name": "NVIDIA H100 80GB HBM3"}]) is None
    assert find_recipe(None, [{"name": "NVIDIA H100 80GB HBM3"}], [H100]) == read_recipe(H100)
    assert find_recipe(str(H100), []) == read_recipe(H100)


def test_gpu_without_a_recipe_is_told_how_to_get_a_floor() -> None:
    class OnGpu:
        on_gpu, precision = True, "bf16"

    known, reason = report._floor_recipe(OnGpu(), None)  # type: ignore[arg-type]
    assert known is None
    assert "give one with --gpu-recipe" in str(reason)
    recipe = read_recipe(H100)
    OnGpu.precision = "int4"
    assert report._floor_recipe(OnGpu(), recipe) == (recipe, None), "int4 runs at the rate of bf16"  # type: ignore[arg-type]
    OnGpu.precision = "fp32"
    assert "no rate for fp32" in str(report._floor_recipe(OnGpu(), recipe)[1])  # type: ignore[arg-type]


def test_gpu_memory_is_what_was_taken_since(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "NVIDIA H100 80GB HBM3, GPU-1, 575.1, 1980, 2619, 1980, 700.00, 31, 81559, {}, 9.0"
    monkeypatch.setattr(machine, "_output", lambda _: line.format(500))
    memory = machine.GpuMemory()
    monkeypatch.setattr(machine, "_output", lambda _: line.format(1524))
    assert memory.taken_bytes() == 1 << 30
    (gpu,) = machine.gpus()
    assert (gpu["name"], gpu["driver"], gpu["sm_clock_mhz"]) == ("NVIDIA H100 80GB HBM3", "575.1", "1980")


def test_context_that_does_not_fit_the_gpu_is_refused_before_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_torch(tiny_checkpoint(), device="cpu")
    monkeypatch.setattr(TorchModel, "on_gpu", True)

    def refuse(_: Session, tokens: int) -> None:
        raise RunError(f"{tokens} is too much")

    monkeypatch.setattr(Session, "require_room", refuse)
    request = BenchmarkRequest(contexts=(64, 512), new_tokens=8)
    with pytest.raises(RequestError, match="--context 512 with --new-tokens 8: 520 is too much"):
        measure.require_room(model, model.source.config, request)


def test_context_that_the_engine_does_not_serve_is_refused_before_the_others() -> None:
    def session(**sizes: int | None) -> None:
        raise SessionError(f"max_context is {sizes['max_context']}, expected 1 to 1024")

    model = SimpleNamespace(on_gpu=True, session=session)
    request = BenchmarkRequest(contexts=(64, 1024), new_tokens=8)
    with pytest.raises(RequestError, match="--context 1K with --new-tokens 8: max_context is 1032, expected 1 to 1024"):
        measure.require_room(model, PRESETS["tiny"].config, request)  # type: ignore[arg-type]


@pytest.fixture
def ttft_main(capsys: Capture) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = ttft.main([*arguments, "--contexts", "40", "--new-tokens", "2", "--repeats", "1"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_ttft_writes_json_and_plot(ttft_main: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    picture, numbers = tmp_path / "a.png", tmp_path / "a.json"
    code, out, _ = ttft_main(str(tiny_checkpoint()), *TORCH, "--json", str(numbers), "--plot", str(picture))
    assert code == 0
    assert "agrees with the reference" in out
    told = json.loads(numbers.read_text(encoding="utf-8"))
    assert 0 <= told["agreement"]["error"] < told["agreement"]["bound"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_ttft_measures_nothing_of_a_runtime_that_is_wrong(
    ttft_main: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = gate.load_packed

    def spoiled(*arguments: object) -> object:
        packed = load(*arguments)  # type: ignore[arg-type]
        packed.mlp_in[2].mul_(1.01)
        return packed

    monkeypatch.setattr(gate, "load_packed", spoiled)
    code, out, err = ttft_main(str(tiny_cpu_bundle()), "--json", str(tmp_path / "a.json"))
    assert code == RunError.exit_code
    assert "the onnxruntime runtime disagrees with the reference model by" in err
    assert "nothing was measured" in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_bundle_agrees_with_the_reference_on_another_runtime(
    ttft_main: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, _ = ttft_main(str(tiny_cpu_bundle()))
    assert code == 0
    assert "agrees with the reference" in out


def test_ttft_of_a_preset_needs_no_checkpoint(ttft_main: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    preset = ["--preset", "tiny", "--layers", "2", "--seed", "3", "--device", "cpu", "--precision", "bf16"]
    code, out, _ = ttft_main(*preset, "--figures", str(path), "--step", "D")
    assert code == 0
    assert out.startswith("random tiny of 2 layers in bf16 on torch")
    (figure,) = read_figures(path)[1:]
    assert (figure["kind"], figure["step"], figure["context"], figure["layers"]) == ("first_token", "D", 40, 2)
    assert (figure["runtime"], figure["precision"]) == ("torch", "bf16")
    assert figure["first_token_seconds"]["spread"] == 0.0, "of one run"
    assert figure["prefill_tokens_per_second"] == pytest.approx(40 / figure["first_token_seconds"]["median"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: give either MODEL or --preset, and not both"),
        (["model", "--preset", "tiny"], "error: give either MODEL or --preset, and not both"),
        (["model", "--layers", "2"], "error: --layers 2 is for --preset"),
        (["--preset", "10b", "--device", "cpu"], "error: preset '10b' is unknown"),
        (["--preset", "tiny", "--device", "cpu", "--runtime", "tensorrt"], "error: random weights are for the torch"),
        (["--preset", "tiny"], "error: no CUDA device here"),
        (["model", "--runtime", "torch"], "error: no CUDA device here"),
    ],
)
def test_ttft_says_in_one_line_what_is_wrong(
    arguments: list[str],
    message: str,
    ttft_main: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "figures.jsonl"
    code, out, err = ttft_main(*arguments, "--figures", str(path))
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1
    (problem,) = read_figures(path)[1:]
    assert err == f"error: {problem['message']}\n"


def test_ttft_with_figures_goes_on_without_what_cannot_be_measured(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    common = ["--preset", "tiny", "--layers", "2", "--device", "cpu", "--new-tokens", "2", "--repeats", "1"]
    assert ttft.main([*common, "--contexts", "30,1900M,20", "--figures", str(path)]) == 1
    *rows, problem = read_figures(path)[1:]
    assert [row["context"] for row in rows] == [20, 30]
    assert (problem["kind"], problem["where"]) == ("problem", "first token after 1900M")
    assert "GiB are free" in problem["message"]
    assert "1900M: left out: --context 1900M needs" in capsys.readouterr().err
    assert ttft.main([*common, "--contexts", "30,1900M"]) == 2
    assert "error: --context 1900M needs" in capsys.readouterr().err
    assert ttft.main([*common, "--contexts", "1900M", "--figures", str(path)]) == 1
    assert "error: nothing was measured: every context was left out" in capsys.readouterr().err


def test_ttft_begins_nothing_that_would_not_end_in_the_budget(capsys: Capture) -> None:
    common = ["--preset", "tiny", "--layers", "2", "--device", "cpu", "--new-tokens", "2", "--repeats", "1"]
    assert ttft.main([*common, "--contexts", "20,30,40", "--budget-seconds", "0"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[3].split()[0] == "20", "of the first nothing is known"
    left_out = [line for line in captured.err.splitlines() if "left out" in line]
    assert [line.partition(":")[0] for line in left_out] == ["30", "40"]
    assert all(re.search(r"would take about \d+ s, and 0 s of the time are left", line) for line in left_out)


def test_time_of_a_longer_context_follows_from_a_shorter_one() -> None:
    row = imaginary().rows[0]
    request = BenchmarkRequest(contexts=(131072, 1 << 20), new_tokens=101, repeats=2)
    found = measure.expected_seconds(row, 1 << 20, request, 8192)
    # 128K took 5 s; eight times as many tokens take more than eight times as long, in each of two runs.
    assert 2 * 8 * 5.0 < found < 3 * 8 * 5.0
    once = replace(request, repeats=1)
    more = replace(request, new_tokens=1001)
    assert measure.expected_seconds(row, 1 << 20, once, 8192) < found
    assert measure.expected_seconds(row, 1 << 20, more, 8192) - found == pytest.approx(2 * 900 * 0.0065)


def test_disagreement_can_be_told_and_measured_all_the_same(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gate.BOUNDS, Precision.FP32, -1.0)
    path = tmp_path / "figures.jsonl"
    common = ["--preset", "tiny", "--layers", "2", "--device", "cpu", "--new-tokens", "2", "--repeats", "1"]
    options = [*common, "--contexts", "20", "--figures", str(path)]
    assert ttft.main(options) != 0
    assert [figure["kind"] for figure in read_figures(path)] == ["run", "problem"]
    assert "nothing was measured" in capsys.readouterr().err
    assert ttft.main([*options, "--gate", "report"]) == 1
    problem, row = read_figures(path)[2:]
    assert (problem["kind"], row["kind"]) == ("problem", "first_token")
    assert problem["message"].startswith("the torch runtime disagrees with the reference model by")
    captured = capsys.readouterr()
    assert "DISAGREES with the reference by" in captured.out
    assert f"error: {problem['message']}\n" in captured.err


def test_default_contexts_are_those_of_the_device() -> None:
    request = BenchmarkRequest(contexts=None, new_tokens=1)
    assert request.contexts_on(SimpleNamespace(on_gpu=True)) == (64 << 10, 128 << 10)  # type: ignore[arg-type]
    assert request.contexts_on(SimpleNamespace(on_gpu=False)) == (1 << 10, 2 << 10)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reason", "gpus", "line", "is_warning"),
    [
        ("", [], "runs on ONNX Runtime on the CPU, fp32", False),
        ("no driver", [], "runs on ONNX Runtime on the CPU, fp32: this machine has no NVIDIA GPU", False),
        ("too old", [{}], "warning: runs on ONNX Runtime on the CPU, fp32, not on TensorRT: too old", True),
    ],
)
def test_first_line_says_what_runs_and_why(
    reason: str, gpus: list[object], line: str, is_warning: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SimpleNamespace(runtime="onnxruntime", on_gpu=False, precision="fp32", runtime_reason=reason)
    source = SimpleNamespace(quantized=lambda: None)
    monkeypatch.setattr(loading, "gpus", lambda: gpus)
    text, leaves_gpu_unused = loading.runs_on(model, source)  # type: ignore[arg-type]
    assert text == line.removeprefix("warning: ")
    assert leaves_gpu_unused == is_warning


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (99, "99 s"), (101, "2 min"), (5990, "100 min"), (7200, "2.0 h")]
)
def test_times_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert measure.format_seconds(seconds) == text
