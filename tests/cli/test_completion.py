"""What a shell completes: GPUs, one or several, and bundles and the folders on the way to them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from support.documents import ROOT

from sala_export.cli.app import cli


def completed(*words: str) -> list[str]:
    """The completions of the last of these words."""
    completion = ShellComplete(cli, {}, "sala-export", "_SALA_EXPORT_COMPLETE")
    return [item.value for item in completion.get_completions([*words[:-1]], words[-1])]


def test_gpus_are_completed_behind_every_comma() -> None:
    assert completed("build", "--gpu", "rtx509") == ["rtx5090"]
    assert completed("plan", "--gpu", "rtx5090,a6000") == ["rtx5090,a6000", "rtx5090,a6000d"]
    assert {"a6000", "rtx", "rtx5090"} <= set(completed("build", "--gpu", ""))


@pytest.mark.parametrize("option", [("kernels", "--gpu"), ("bench", "--gpu-recipe")])
def test_single_gpus_alone_are_completed_where_one_is_taken(option: tuple[str, str]) -> None:
    assert completed(*option, "") == sorted(
        path.stem for path in (ROOT / "engines").glob("*.toml") if path.stem != "rtx"
    )
    assert completed(*option, "rtx5090,") == []


def test_bundles_and_folders_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one.sala", "only", ".hidden", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "one.sala" / "bundle.json").touch()
    (tmp_path / "on.txt").touch()
    monkeypatch.chdir(tmp_path)
    for command in ("generate", "bench", "eval"):
        assert completed(command, "on") == ["one.sala", "only/"]
    assert completed("inspect", f"{tmp_path}/") == [f"{tmp_path}/{name}" for name in ("one.sala", "only/", "other/")]
    assert completed("chat", "none/") == []


def test_precisions_and_commands_are_completed() -> None:
    assert completed("export", "--precision", "fp") == ["fp32", "fp16", "fp8"]
    for command in ("build", "plan"):
        assert completed(command, "--precision", "") == ["bf16", "fp16", "fp8", "mxfp8", "int8", "int4", "nvfp4"]
    assert completed("bench", "--precision", "") == ["fp32", "bf16", "fp16"]
    assert completed("ge") == ["generate"]
    assert completed("eval", "--task", "p") == ["passkey", "perplexity"]


@pytest.mark.parametrize("command", ["plan", "build"])
def test_folders_of_checkpoints_are_left_to_the_shell(command: str) -> None:
    completion = ShellComplete(cli, {}, "sala-export", "_SALA_EXPORT_COMPLETE")
    (item,) = completion.get_completions([command, "--model"], "check")
    assert (item.type, item.value) == ("dir", "check")
