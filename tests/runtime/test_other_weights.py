"""Weights of another checkpoint on a bundle: the same as a bundle that was built from them, or refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.checkpoints import copy_checkpoint, edit_header, edit_json, tiny_checkpoint
from support.quantized_checkpoints import write_quantized_checkpoint
from support.runtime_bundles import tiny_cpu_bundle, write_cpu_bundle

import sala_export
from sala_export.bundle.manifest import MANIFEST_FILE
from sala_export.checkpoint.random_checkpoint import write_random_checkpoint
from sala_export.errors import BundleError, RequestError, SalaError, StateError
from sala_export.model_source import ModelSource
from sala_export.runtime.model import Model
from sala_export.specs import Precision

PROMPT = [1, 5, 300, 7, 7, 42, 500, 11, 3]


def logits(model: Model) -> NDArray[np.float32]:
    return model.session(max_context=64).prefill(PROMPT)


@pytest.fixture(scope="module")
def fine_tune(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny preset's configuration with weights of its own."""
    path = tmp_path_factory.mktemp("fine-tune") / "mine"
    write_random_checkpoint(path, "tiny", seed=1)
    return path


def other_of(precision: Precision, folder: Path) -> Path:
    """Two layers with other weights and scales, in int8 by channel where the first has one for all."""
    if precision is Precision.INT8:
        return write_quantized_checkpoint(folder / "other", precision, per_channel=True)
    write_random_checkpoint(folder / "other", "tiny", layers=2, seed=1, precision=precision)
    return folder / "other"


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP8, Precision.INT8])
def test_other_weights_answer_as_a_bundle_built_from_them(precision: Precision, tmp_path: Path) -> None:
    first, other = tiny_checkpoint(2, precision), other_of(precision, tmp_path)
    bundle = write_cpu_bundle(first, tmp_path / "first.sala")
    built = sala_export.load(write_cpu_bundle(other, tmp_path / "other.sala"))
    swapped = sala_export.load(bundle, weights=other)
    assert swapped.fingerprint == built.fingerprint != sala_export.load(bundle).fingerprint
    np.testing.assert_array_equal(logits(swapped), logits(built))
    assert np.abs(logits(swapped) - logits(sala_export.load(bundle))).max() > 0.01


def test_bundle_without_weights_runs_with_those_it_is_given(tmp_path: Path) -> None:
    bundle = write_cpu_bundle(tiny_checkpoint(), tmp_path / "code.sala", include_weights=False)
    assert not list(bundle.glob("graph/*.safetensors"))
    with pytest.raises(BundleError, match=r"was built with --no-weights: give .* \(--weights DIR\)"):
        sala_export.load(bundle)
    own, given = sala_export.load(tiny_cpu_bundle()), sala_export.load(bundle, weights=tiny_checkpoint())
    np.testing.assert_array_equal(logits(given), logits(own))
    assert given.fingerprint == own.fingerprint


def test_state_belongs_to_the_weights_that_made_it(fine_tune: Path, tmp_path: Path) -> None:
    mine = sala_export.load(tiny_cpu_bundle(), weights=fine_tune)
    session = mine.session(max_context=64)
    session.prefill(PROMPT)
    session.save(tmp_path / "state")
    np.testing.assert_array_equal(mine.restore(tmp_path / "state").prefill([9, 8]), session.prefill([9, 8]))
    with pytest.raises(StateError, match="was saved from another model"):
        sala_export.load(tiny_cpu_bundle()).restore(tmp_path / "state")


def test_torch_takes_them_too(fine_tune: Path) -> None:
    native = sala_export.load(tiny_cpu_bundle(), weights=fine_tune)
    torch = sala_export.load(tiny_cpu_bundle(), runtime="torch", device="cpu", weights=fine_tune)
    assert torch.fingerprint == native.fingerprint == ModelSource.open(fine_tune).fingerprint()
    np.testing.assert_allclose(logits(torch), logits(native), atol=2e-4 * np.abs(logits(native)).max())


def test_symbolic_links_are_followed_as_hub_snapshots_are(fine_tune: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in fine_tune.iterdir():
        (snapshot / file.name).symlink_to(file)
    linked = sala_export.load(tiny_cpu_bundle(), weights=snapshot)
    assert linked.fingerprint == sala_export.load(tiny_cpu_bundle(), weights=fine_tune).fingerprint


def set_config(**fields: Any) -> Callable[[Path], object]:
    return lambda checkpoint: edit_json(checkpoint / "config.json", lambda config: config.update(fields))


def in_header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Changes the header of the file that the final norm is in."""

    def spoil(checkpoint: Path) -> None:
        for file in checkpoint.glob("*.safetensors"):
            if b'"model.norm.weight"' in file.read_bytes():
                edit_header(file, change)

    return spoil


def shorten(checkpoint: Path) -> None:
    file = sorted(checkpoint.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-10])


def as_float16(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["dtype"] = "F16"


def as_matrix(header: dict[str, Any]) -> None:
    (size,) = header["model.norm.weight"]["shape"]
    header["model.norm.weight"]["shape"] = [2, size // 2]


UNSUITABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "another rope_theta": (set_config(rope_theta=500000.0), r"config\.json.*rope_theta"),
    "another norm": (set_config(rms_norm_eps=1e-5), r"config\.json.*rms_norm_eps"),
    "another choice of blocks": (
        lambda path: edit_json(path / "config.json", lambda config: config["sparse_config"].update(topk=9)),
        r"config\.json.*sparse_config\.topk is 9",
    ),
    "other mixers": (
        lambda path: edit_json(path / "config.json", lambda config: config["mixer_types"].reverse()),
        r"config\.json.*mixer_types",
    ),
    "more layers": (
        lambda path: edit_json(
            path / "config.json",
            lambda config: config.update(num_hidden_layers=6, mixer_types=[*config["mixer_types"], "minicpm4"]),
        ),
        r"config\.json: num_hidden_layers is 6, .* was built for 5",
    ),
    "no configuration": (lambda path: (path / "config.json").unlink(), r"spoiled has no config\.json: weights are a"),
    "a tensor of another type": (in_header(as_float16), r"model\.norm\.weight"),
    "a tensor of another shape": (in_header(as_matrix), r"model\.norm\.weight"),
    "a tensor less": (
        in_header(lambda header: header.update(other=header.pop("model.norm.weight"))),
        r"model\.norm\.weight",
    ),
    "a truncated file": (shorten, r"\.safetensors"),
    "a file that is none": (
        lambda path: sorted(path.glob("*.safetensors"))[0].write_bytes(b"<html>not found</html>"),
        r"\.safetensors",
    ),
}


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
@pytest.mark.parametrize("name", UNSUITABLE)
def test_unsuitable_weights_are_refused_by_name(name: str, runtime: str, fine_tune: Path, tmp_path: Path) -> None:
    spoil, message = UNSUITABLE[name]
    spoiled = copy_checkpoint(fine_tune, tmp_path / "spoiled")
    spoil(spoiled)
    with pytest.raises(SalaError, match=message) as error:
        sala_export.load(tiny_cpu_bundle(), runtime=runtime, weights=spoiled)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_no_directory_at_all_is_refused(runtime: str, tmp_path: Path) -> None:
    with pytest.raises(SalaError, match=r"nowhere .*: weights are a checkpoint's directory"):
        sala_export.load(tiny_cpu_bundle(), runtime=runtime, weights=tmp_path / "nowhere")


def test_quantised_weights_on_a_plain_bundle_and_the_reverse_are_refused(tmp_path: Path) -> None:
    plain = write_cpu_bundle(tiny_checkpoint(2), tmp_path / "plain.sala")
    with pytest.raises(BundleError, match=r"_proj\.weight is float8_e4m3fn .* built for bfloat16"):
        sala_export.load(plain, weights=tiny_checkpoint(2, Precision.FP8))
    quantised = write_cpu_bundle(tiny_checkpoint(2, Precision.FP8), tmp_path / "quantised.sala")
    with pytest.raises(BundleError, match=r"_proj\.(weight|weight_scale|input_scale)"):
        sala_export.load(quantised, weights=tiny_checkpoint(2))


@pytest.mark.parametrize("precision", [Precision.INT4, Precision.NVFP4])
def test_weights_whose_constants_differ_are_refused_by_name(precision: Precision, tmp_path: Path) -> None:
    """What is a constant of the engine must have the same bytes; everything else may differ."""
    source = tiny_checkpoint(2, precision)
    bundle = write_cpu_bundle(source, tmp_path / "bundle.sala")
    fix_scales(bundle)
    same = copy_checkpoint(source, tmp_path / "same")
    np.testing.assert_array_equal(logits(sala_export.load(bundle, weights=same)), logits(sala_export.load(bundle)))
    write_random_checkpoint(tmp_path / "other", "tiny", layers=2, seed=1, precision=precision)
    with pytest.raises(BundleError, match=r"model\.layers\.\d\.\S+\.weight_scale"):
        sala_export.load(bundle, weights=tmp_path / "other")


def fix_scales(bundle: Path) -> None:
    def change(fields: dict[str, Any]) -> None:
        for name, tensor in fields["weights"]["tensors"].items():
            tensor["fixed"] = bool(re.search(r"weight_scale$", name))

    edit_json(bundle / MANIFEST_FILE, change)


def test_weights_are_for_bundles_not_for_checkpoints(fine_tune: Path) -> None:
    with pytest.raises(RequestError, match="is a checkpoint itself"):
        sala_export.load(tiny_checkpoint(), runtime="torch", weights=fine_tune)


def test_progress_is_told_in_bytes_up_to_the_end(fine_tune: Path) -> None:
    told: list[tuple[int, int]] = []
    sala_export.load(tiny_cpu_bundle(), weights=fine_tune, on_progress=lambda *step: told.append(step))
    (total,) = {total for _, total in told}
    assert told[0][0] < told[-1][0] == total
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_what_stops_the_progress_stops_the_load(fine_tune: Path) -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sala_export.load(tiny_cpu_bundle(), weights=fine_tune, on_progress=stop)
