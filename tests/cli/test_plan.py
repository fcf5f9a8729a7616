"""`sala-export plan` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.checkpoints import tiny_checkpoint
from support.quantized_checkpoints import write_quantized_checkpoint

from sala_export.cli import cmd_plan, plan_cpu
from sala_export.cli.app import run
from sala_export.cli.output import table_console
from sala_export.engine.recipe import recipe_paths
from sala_export.specs import Precision

Capture = pytest.CaptureFixture[str]


def test_tables_name_every_part(capsys: Capture) -> None:
    assert run(["plan", "--gpu", "rtx5090", "--compare", "qwen3-8b"]) == 0
    text = capsys.readouterr().out
    for expected in (
        "a context of 1M fits the NVIDIA GeForce RTX 5090; the largest that fits is",
        "key value",
        "Qwen3-8B in bf16, NVIDIA GeForce RTX 5090",
        '"no" stands for out of memory',
        "22.3 s",
        "published, bf16",
        "a6000d",
        "building on this machine",
        "All times are predicted",
        "s on two cores",
        "where weights take no room",
    ):
        assert expected in text
    assert text.count("rtx5090 ") >= 5
    rows = [line.split() for line in text.splitlines()]
    assert ["128K", "35.08", "GiB", "no", "no", "-", "no", "no"] in rows
    assert "NVIDIA GeForce RTX 5090 has  34,190,917,632  31.84 GiB" in text


def test_memory_is_one_figure_in_every_table(capsys: Capture, tmp_path: Path) -> None:
    assert run(["plan", "--gpu", "rtx5090"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["reserve", "1,073,741,824", "1.00", "GiB"] in rows
    assert [row[2:] for row in rows if row[:1] == ["total"]] == [["27.96", "GiB"]]
    assert ["27.96", "GiB"] in [row[1:3] for row in rows if row[:1] == ["1M"]]
    mine = tmp_path / "mine.toml"
    text = recipe_paths()["rtx4090"].read_text(encoding="utf-8")
    mine.write_text(text.replace("reserve_bytes = 1_073_741_824", "reserve_bytes = 2_147_483_648"), encoding="utf-8")
    assert run(["plan", "--gpu", f"rtx5090,{mine}"]) == 0
    text = capsys.readouterr().out
    assert "total, NVIDIA GeForce RTX 5090    30,023,331,752" in text
    assert "total, NVIDIA GeForce RTX 4090    31,097,073,576" in text


def test_nothing_is_cut_in_a_terminal_of_80_columns(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cmd_plan, "table_console", lambda: table_console(80))
    assert run(["plan", "--gpu", "rtx", "--compare", "qwen3-8b"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    heads = [line.split() for line in text.splitlines() if line.startswith(" context")]
    assert heads == 8 * [["context", "memory", "first", "token", "floor", "published", "ms", "per", "token", "floor"]]


def test_json_holds_what_the_tables_show(capsys: Capture) -> None:
    assert run(["plan", "--gpu", "a6000", "--max-context", "256K", "--compare", "Qwen3-8B", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (gpu,) = told["gpus"]
    assert (gpu["recipe"], gpu["fits"]) == ("a6000", True)
    parts = dict(told["device_memory_bytes"])
    assert parts.pop("total") == sum(parts.values())
    assert [row["context"] for row in gpu["contexts"]] == [1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20]
    assert all(row["ttft_seconds"]["published"] is None for row in gpu["contexts"]), "none for this GPU"
    assert [row["fits"] for row in gpu["baseline"]["contexts"]] == [True, True, False, False, False]
    assert len(told["published"]) == 10
    assert all(row["predicted_to_published"] > 0 for row in told["published"])


def test_several_gpus_are_told_one_by_one(capsys: Capture) -> None:
    assert run(["plan", "--gpu", "rtx"]) == 0
    text = capsys.readouterr().out
    assert "a context of 1M does not fit the NVIDIA GeForce RTX 4090; the largest that fits is 534K" in text
    assert "a context of 1M fits the NVIDIA RTX A6000; the largest that fits is" in text
    assert text.count("ms per token") == 4
    assert text.count("reserve ") == text.count("total ") == 1, "all reserve as much"
    assert run(["plan", "--gpu", "rtx", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["compute_capabilities"] == ["8.6", "8.9", "12.0"]
    assert {gpu["recipe"]: gpu["fits"] for gpu in told["gpus"]} == {
        "a6000": True,
        "rtx4090": False,
        "rtx5090": True,
        "a6000d": True,
    }
    assert told["gpus"][1]["largest_context"] == 534 << 10


def test_model_of_a_directory_is_planned_from_its_config(capsys: Capture) -> None:
    arguments = ["plan", "--gpu", "rtx5090", "--model", str(tiny_checkpoint()), "--max-context", "16K"]
    assert run([*arguments, "--prefill-chunk", "1K", "--precision", "fp16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["precision"] == "fp16"
    assert told["published"] == []
    assert told["device_memory_bytes"]["weights"] < 1 << 25


def test_modules_that_a_checkpoint_quantises_decide(capsys: Capture, tmp_path: Path) -> None:
    weights = []
    for name, ignore in (("default", ("re:.*z_proj", "re:.*o_gate", "lm_head")), ("gates too", ("lm_head",))):
        source = write_quantized_checkpoint(tmp_path / name, Precision.INT8, ignore=ignore)
        arguments = ["--model", str(source), "--max-context", "16K", "--prefill-chunk", "1K", "--json"]
        assert run(["plan", "--gpu", "rtx5090", *arguments]) == 0
        weights.append(json.loads(capsys.readouterr().out)["device_memory_bytes"]["weights"])
    # Each of two gates [2048, 256] takes a byte less for each number, and 4 bytes for each scale of its output.
    assert weights[0] - weights[1] == 2 * (2048 * 256 - 4 * 2048)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpu", "rtx9999"], ["rtx9999", "rtx5090"]),
        (["--gpu", "rtx5090", "--compare", "llama"], ["--compare llama", "qwen3-8b"]),
        (["--gpu", "rtx5090", "--plot", "plan.txt"], ["--plot plan.txt", ".png, .svg, .pdf"]),
        (["--gpu", "a6000", "--precision", "fp8"], ["fp8", "use --precision int8"]),
        (["--gpu", "rtx", "--precision", "nvfp4"], ["A6000 (SM86)", "4090 (SM89)", "or --gpu rtx5090,a6000d"]),
        (["--gpu", "a6000,"], ["--gpu a6000,: a name is missing"]),
        (["--gpu", "rtx5090", "--model", "/nowhere/model"], ["/nowhere/model: there is no such directory"]),
        (["--gpu", "rtx5090", "--layers", "33"], ["33"]),
    ],
)
def test_bad_input_is_one_line(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["plan", *options]) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_directory_without_config_is_refused(capsys: Capture, tmp_path: Path) -> None:
    assert run(["plan", "--gpu", "rtx5090", "--model", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err


def test_empty_options_are_no_defaults(capsys: Capture) -> None:
    for option, told in (
        ("--precision", "--precision is empty: expected bf16"),
        ("--compare", "--compare : unknown model"),
        ("--model", "the name of the model is empty: give"),
    ):
        assert run(["plan", "--gpu", "rtx5090", option, ""]) == 2
        assert capsys.readouterr().err.startswith(f"error: {told}")


def test_directory_of_the_process_that_was_removed_is_named(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_checkpoint()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for name, *arguments in (
        ("a.png", "plan", "--gpu", "rtx5090", "--plot", "a.png"),
        ("here", "export", "--model", str(model), "-o", "here"),
        ("here", "random-checkpoint", "here", "--preset", "tiny"),
    ):
        assert run([*arguments]) == 2
        assert capsys.readouterr().err.startswith(f"error: {name}: the current directory was removed: change to")


def test_cpu_is_measured_and_every_figure_says_where_it_comes_from(capsys: Capture) -> None:
    assert run(["plan", "--gpu", "cpu", "--memory", "16G", "--max-context", "32K", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["machine"]["memory_bytes"] == {"value": 16 << 30, "source": "given"}
    assert told["machine"]["bytes_per_second"]["source"] == "measured here"
    rates = told["machine"]["operations_per_second"]
    assert {name: rate["source"] for name, rate in rates.items()} == {
        "float32": "measured here",
        "bfloat16": "predicted",
        "bfloat16_attention": "predicted",
        "int8": "predicted",
    }
    assert len(told["forms"]) == 12
    assert {form["source"] for form in told["forms"]} == {"predicted"}
    for form in told["forms"]:
        (row,) = (row for row in form["contexts"] if row["context"] == 32 << 10)
        assert row["fits"] is (form["precision"] != "bf16")
        assert row["fits"] is ((form["largest_context"] or 0) >= 32 << 10)


def test_cpu_tables_fit_a_terminal_of_80_columns(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cpu, "table_console", lambda: table_console(80))
    assert run(["plan", "--gpu", "cpu", "--memory", "16G", "--bandwidth", "51.2", "--max-context", "1M"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert ["bandwidth", "51.2", "GB/s", "given"] in rows
    assert ["bf16", "exact", "17.65", "GiB", *rows_of(rows, "bf16", "exact")[4:6], "no", "no", "no", "no"] in rows
    assert rows_of(rows, "int4", "fast")[-1].endswith("/s")


def rows_of(rows: list[list[str]], precision: str, math: str) -> list[str]:
    (row,) = (row for row in rows if row[:2] == [precision, math])
    return row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "cpu", "--compare", "qwen3-8b"], "plan --gpu cpu takes no --compare: leave it out"),
        (["--gpu", "cpu", "--max-batch", "2", "--prefill-chunk", "1K"], "takes no --prefill-chunk and no --max-batch"),
        (["--gpu", "rtx5090", "--memory", "16G"], "plan --gpu rtx5090 takes no --memory: leave it out"),
        (["--gpu", "cpu", "--precision", "int3"], "--precision int3: unknown"),
        (["--gpu", "cpu", "--bandwidth", "0"], "--bandwidth"),
        (["--gpu", "cpu", "--bandwidth", "inf"], "inf is not a finite number"),
        (["--gpu", "rtx5090, CPU"], "--gpu rtx5090, CPU: cpu stands alone, give it without other names"),
        (["--gpu", "CPU", "--compare", "x", "--max-batch", "2"], "leave them out"),
        (["--gpu", "cpu", "--memory", "much"], "is not a size in bytes"),
    ],
)
def test_options_that_do_not_apply_are_refused(arguments: list[str], message: str, capsys: Capture) -> None:
    assert run(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err
