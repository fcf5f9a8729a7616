"""`verify --polygraphy`: figures of Polygraphy's comparator for each layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.calibration import LAYERS
from support.checkpoints import tiny_checkpoint
from support.runtime_bundles import write_cpu_bundle

from sala_export.cli.app import run
from sala_export.interop.polygraphy.layer_judge import LayerJudge

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cpu_bundle(tiny_checkpoint(LAYERS), tmp_path_factory.mktemp("judged") / "out.sala")


def test_layers_have_the_figures_of_verify(bundle: Path, capsys: Capture) -> None:
    command = ["verify", str(bundle), "--model", str(tiny_checkpoint(LAYERS)), "--tokens", "40", "--polygraphy"]
    assert run([*command, "--json", "--atol", "1e-3"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [layer["layer"] for layer in found["polygraphy"]["layers"]] == list(range(LAYERS))
    for own, theirs in zip(found["layers"], found["polygraphy"]["layers"], strict=True):
        assert theirs["max_absdiff"] == pytest.approx(own["errors"]["max_error"], rel=1e-6)
    assert "Comparing Output: 'hidden_states.1'" in captured.err
    # Its tolerances alone fail now.
    assert run([*command, "--atol", "0", "--rtol", "0"]) == 1
    report = capsys.readouterr().out
    failed = ", ".join(map(str, range(LAYERS)))
    assert f"\npasses\nfails: Polygraphy, layers {failed}: check_error_stat max, atol 0.0, rtol 0.0\n" in report


def test_verdict_names_the_layers_that_failed(capsys: Capture) -> None:
    judge = LayerJudge("mean", atol=0.1, rtol=0)
    rows = torch.ones(3, 4)
    judge(0, rows, rows + 0.05)
    judge(1, rows, rows + torch.tensor([0.0, 0, 0, 1]))
    assert [layer["passed"] for layer in judge.layers] == [True, False]
    assert judge.layers[1]["mean_absdiff"] == pytest.approx(0.25)
    assert judge.verdict() == "Polygraphy, layers 1: check_error_stat mean, atol 0.1, rtol 0"
    assert "'hidden_states.2'" in capsys.readouterr().out
    assert all(isinstance(value, bool | int | float | None) for layer in judge.layers for value in layer.values())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--atol", "1"], "--atol 1.0 is for Polygraphy: add --polygraphy, or leave it out"),
        (["--polygraphy", "--runtime", "torch"], "--polygraphy: --runtime torch runs the model whole"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(options: list[str], line: str, capsys: Capture) -> None:
    assert run(["verify", "out.sala", "--model", str(tiny_checkpoint()), *options]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert line in captured.err
