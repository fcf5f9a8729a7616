"""Loading bundles: what is refused, with an exception that says what to do."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.bundles import copy_bundle
from support.checkpoints import edit_json, tiny_checkpoint
from support.runtime_bundles import tiny_cpu_bundle

import sala_export
from sala_export.bundle.reader import Bundle
from sala_export.errors import BundleError, RequestError, SessionError, UnsupportedError
from sala_export.runtime.model import Model


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return copy_bundle(tiny_cpu_bundle(), tmp_path / "copy.sala")


def change_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def drop_weights(bundle: Path) -> None:
    for path in bundle.glob("graph/*.safetensors"):
        path.unlink()
    edit_json(bundle / "bundle.json", lambda fields: fields["weights"].update(included=False))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda path: change_byte(path / "graph" / "cpu.onnx"), "another SHA-256", id="changed graph"),
        pytest.param(lambda path: (path / "graph" / "cpu.onnx").unlink(), "does not exist: copy", id="missing graph"),
        pytest.param(
            lambda path: (path / "bundle.json").write_text(json.dumps({"schema_version": 7})),
            "schema_version 7, this release reads 6: update",
            id="newer schema",
        ),
        pytest.param(drop_weights, r"--weights DIR", id="no weights"),
        pytest.param(lambda path: (path / "bundle.json").unlink(), "not a bundle", id="no manifest"),
    ],
)
def test_damaged_bundle_is_refused(bundle: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(bundle)
    with pytest.raises(BundleError, match=message):
        sala_export.load(bundle)


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_changed_weights_are_found_when_they_are_loaded(bundle: Path, runtime: str) -> None:
    tensor = Bundle.open(bundle).manifest.weights.tensors["model.norm.weight"]
    content = bytearray((bundle / tensor.file).read_bytes())
    content[tensor.offset] ^= 1
    (bundle / tensor.file).write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.norm\.weight.* has another SHA-256"):
        sala_export.load(bundle, runtime=runtime)


def test_model_tells_what_it_is(model: Model) -> None:
    assert (model.runtime, model.precision, model.eos_token_ids) == ("onnxruntime", "fp32", (2, 504))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        pytest.param({"runtime": "cuda"}, SessionError, "tensorrt, onnxruntime or torch", id="unknown runtime"),
        pytest.param({"threads": -1}, SessionError, "threads is -1", id="negative threads"),
        pytest.param({"cpu_math": "quick"}, RequestError, "cpu_math is 'quick', expected exact or fast", id="no math"),
        pytest.param(
            {"cpu_math": "fast", "runtime": "tensorrt"},
            RequestError,
            "cpu_math fast is for the runtime onnxruntime, not tensorrt: leave it out",
            id="math of a GPU",
        ),
        pytest.param({"onnxruntime_library": Path("none.so")}, UnsupportedError, "none.so", id="no ONNX Runtime"),
        pytest.param({"operators_library": Path("none.so")}, UnsupportedError, "none.so", id="no operators"),
    ],
)
def test_wrong_load_option_is_refused(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sala_export.load(tiny_cpu_bundle(), **options)  # type: ignore[arg-type]


def test_bundle_without_text_files_has_no_tokenizer(model: Model) -> None:
    assert model.tokenizer is None


def test_tokenizer_of_the_bundle_is_used(bundle: Path) -> None:
    def name_text_files(fields: dict[str, Any]) -> None:
        fields["text"] = ["text/tokenizer.json"]
        path = bundle / "text" / "tokenizer.json"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        fields["files"].append({"path": "text/tokenizer.json", "bytes": path.stat().st_size, "sha256": digest})

    (bundle / "text").mkdir()
    shutil.copyfile(tiny_checkpoint() / "tokenizer.json", bundle / "text" / "tokenizer.json")
    edit_json(bundle / "bundle.json", name_text_files)
    llm = sala_export.load(bundle, threads=1)
    assert llm.tokenizer is not None
    session = llm.session(max_context=64)
    session.prefill("Call me Ishmael.")
    assert session.tokens.tolist() == list(llm.tokenizer.encode("Call me Ishmael.", add_special_tokens=True))
    assert "".join(session.generate(max_new_tokens=4, stop_tokens=[]))
