"""What config.json alone shows is refused before weights are fetched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.checkpoints import copy_checkpoint, edit_json, tiny_checkpoint

from sala_export.building import requests
from sala_export.building.pipeline import build_bundle, export_onnx, quantize_for_build
from sala_export.building.requests import BuildRequest, ModelRequest
from sala_export.cli.app import cli
from sala_export.engine.recipe import load_target
from sala_export.engine.request import EngineRequest
from sala_export.errors import RequestError, SalaError, UnsupportedError
from sala_export.specs import Precision

MODEL = "acme/sala"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Make `acme/sala` a model of which only config.json may be asked for."""

    def serve(checkpoint: Path) -> None:
        snapshot = tmp_path / "snapshot"
        snapshot.mkdir()
        shutil.copy(checkpoint / "config.json", snapshot)

        def resolve(model: str, revision: str | None = None, *, config_only: bool = False) -> Path:
            assert config_only, "the weights are downloaded"
            return snapshot

        monkeypatch.setattr(requests, "resolve_model", resolve)

    return serve


def request(output: Path, **options: object) -> BuildRequest:
    engine = EngineRequest.from_options(load_target("rtx5090"), **{"max_context": 4096, **options})  # type: ignore[arg-type]
    return BuildRequest(model=ModelRequest(model=MODEL), engine=engine, output=output)


def test_context_that_does_not_fit(hub: Callable[[Path], None], tmp_path: Path) -> None:
    hub(tiny_checkpoint())
    said: list[str] = []
    with pytest.raises(RequestError, match="the largest that fits is --max-context"):
        build_bundle(request(tmp_path / "out.sala", max_context=1 << 30))
    with pytest.raises(RequestError, match="the largest that fits is --max-context"):
        quantize_for_build(request(tmp_path / "out.sala", max_context=1 << 33, precision="int8"), None, said.append)
    assert said == [], "work begins"


def test_precision_that_the_model_is_not_in(hub: Callable[[Path], None], tmp_path: Path) -> None:
    hub(tiny_checkpoint())
    message = f"{MODEL} is not quantised; run sala-export quantize --precision fp8"
    with pytest.raises(RequestError, match=message):
        build_bundle(request(tmp_path / "out.sala", precision="fp8"))
    with pytest.raises(RequestError, match=message):
        export_onnx(ModelRequest(model=MODEL), tmp_path / "out", Precision.FP8)


def test_precision_that_the_gpu_has_not_is_refused_before_the_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(requests, "resolve_model", lambda *_, **__: pytest.fail("the hub is asked"))
    arguments = ["build", "--gpu", "a6000", "--precision", "nvfp4", "-o", str(tmp_path / "out.sala")]
    error = CliRunner().invoke(cli, arguments).exception
    assert isinstance(error, SalaError)
    assert "has no NVFP4" in str(error)


def test_model_that_no_kernel_serves(hub: Callable[[Path], None], tmp_path: Path) -> None:
    other = copy_checkpoint(tiny_checkpoint(), tmp_path / "other")
    edit_json(other / "config.json", lambda fields: fields.update(head_dim=8, lightning_head_dim=8))
    hub(other)
    with pytest.raises(UnsupportedError, match="sala-export export"):
        build_bundle(request(tmp_path / "out.sala"))


def test_quantised_model_on_a_gpu_without_its_precision(hub: Callable[[Path], None], tmp_path: Path) -> None:
    """No advice leads to another precision of a model that has one."""
    hub(tiny_checkpoint(1, Precision.NVFP4))
    arguments = ["build", "--model", MODEL, "-o", str(tmp_path / "out.sala"), "--gpu"]
    alone, several = (CliRunner().invoke(cli, [*arguments, gpu]).exception for gpu in ("a6000", "a6000,rtx5090"))
    assert isinstance(alone, SalaError)
    assert isinstance(several, SalaError)
    assert str(alone).startswith("the model is quantised to nvfp4, but NVIDIA RTX A6000 (SM86) has no NVFP4, it runs ")
    assert "; choose another --gpu, or take the original model, which can be built in bf16, " in str(alone)
    assert "; build with --gpu rtx5090, or take the original model" in str(several)
    assert "--precision" not in str(alone) + str(several)
