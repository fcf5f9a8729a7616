"""What a bundle holds, and how a damaged one is refused."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bundles import copy_bundle, tiny_bundle
from support.checkpoints import edit_json, tiny_checkpoint

from sala_export.bundle.manifest import MANIFEST_FILE, Manifest
from sala_export.bundle.reader import Bundle
from sala_export.checkpoint.reader import Checkpoint
from sala_export.errors import BundleError


def test_manifest_lists_every_file_and_hashes_them() -> None:
    bundle = Bundle.open(tiny_bundle("rtx5090"))
    on_disk = {path.relative_to(bundle.directory).as_posix() for path in bundle.directory.rglob("*") if path.is_file()}
    weights = {file.path for file in bundle.manifest.weights.files}
    assert {entry.path for entry in bundle.manifest.files} | weights == on_disk - {MANIFEST_FILE}
    assert not any(path.is_symlink() for path in bundle.directory.rglob("*"))
    bundle.verify_hashes()


def test_manifest_reads_back_equal() -> None:
    manifest = Bundle.open(tiny_bundle("rtx5090")).manifest
    assert Manifest.from_json(manifest.to_json(), "again") == manifest
    assert manifest.model.config == Checkpoint.open(tiny_checkpoint()).config


def stored(bundle: Bundle, name: str) -> bytes:
    tensor = bundle.manifest.weights.tensors[name]
    return (bundle.directory / tensor.file).read_bytes()[tensor.offset : tensor.offset + tensor.bytes]


def test_tensors_are_the_checkpoints_bytes_with_their_hashes() -> None:
    bundle = Bundle.open(tiny_bundle("rtx5090"))
    checkpoint = Checkpoint.open(tiny_checkpoint())
    assert set(bundle.manifest.weights.tensors) == set(checkpoint.locations)
    for name, tensor in bundle.manifest.weights.tensors.items():
        assert stored(bundle, name) == checkpoint.tensor(name).view(torch.uint8).numpy().tobytes()
        assert tensor.sha256 == hashlib.sha256(stored(bundle, name)).hexdigest()
        assert not tensor.fixed


@pytest.mark.parametrize("form", ["cpu", "engine"])
def test_weight_inputs_take_every_tensor_once_and_are_filled(form: str) -> None:
    bundle = Bundle.open(tiny_bundle("rtx5090"))
    manifest = bundle.manifest
    inputs = manifest.graph.cpu.weights if form == "cpu" else manifest.engine.weights
    used = [part.tensor for weight in inputs for part in weight.parts]
    assert sorted(used) == sorted(manifest.weights.tensors)
    for weight in inputs:
        elements = sum(math.prod(manifest.weights.tensors[part.tensor].shape) for part in weight.parts)
        assert elements == math.prod(int(extent) for extent in weight.spec.shape)


def test_a_bundle_says_what_fits_each_of_its_gpus() -> None:
    engine = Bundle.open(tiny_bundle("a6000,rtx5090")).manifest.engine
    assert engine.compute_capabilities == ("8.6", "12.0")
    assert [(gpu.recipe, gpu.max_context) for gpu in engine.gpus] == [("a6000", 16384), ("rtx5090", 16384)]


def test_bundles_of_one_model_share_the_fingerprint_whatever_the_gpu() -> None:
    first, second = (Bundle.open(tiny_bundle(gpu)).manifest.model for gpu in ("rtx5090", "a6000"))
    assert first.fingerprint == second.fingerprint


def test_no_file_names_a_path_of_the_building_machine() -> None:
    bundle = Bundle.open(tiny_bundle("rtx5090"))
    for path in (
        "bundle.json",
        "engine/report.json",
        "engine/engine.onnx",
        "graph/model.onnx",
        "graph/cpu.onnx",
        "graph/cpu_fast.onnx",
    ):
        content = (bundle.directory / path).read_bytes()
        for local in (bundle.directory.parent, tiny_checkpoint().parent, Path(torch.__file__).parent):
            assert str(local).encode() not in content, path


def remove(name: str) -> Callable[[Path], object]:
    return lambda bundle: (bundle / name).unlink()


def truncate(name: str) -> Callable[[Path], object]:
    return lambda bundle: (bundle / name).write_bytes((bundle / name).read_bytes()[:-1])


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda bundle: edit_json(bundle / MANIFEST_FILE, change)


DAMAGE = {
    "no manifest": (remove(MANIFEST_FILE), r"has no bundle\.json: it is not a bundle"),
    "manifest is not JSON": (truncate(MANIFEST_FILE), None),
    "newer schema": (
        edit(lambda m: m.update(schema_version=7)),
        r"bundle\.json has schema_version 7, this release reads 6: update sala-export",
    ),
    "older schema": (
        edit(lambda m: m.update(schema_version=5, engine={"gpu": "a6000", "shards": []}, precision="fp16")),
        r"schema_version 5, this release reads 6: build it again: "
        r"sala-export build --gpu a6000 --model \S+ --precision fp16$",
    ),
    "words of an older schema that a shell would run": (
        edit(lambda m: m.update(schema_version=4, engine={"gpu": "a6000; rm"}, precision="$(x)\n")),
        r"build it again: sala-export build --gpu GPU --model \S+ --precision bf16$",
    ),
    "no schema": (edit(lambda m: m.pop("schema_version")), r"has schema_version None, this release reads 6: build"),
    "unknown field": (edit(lambda m: m.update(extra=1)), r"bundle\.json: extra: "),
    "missing field": (edit(lambda m: m["engine"].pop("plan")), r"bundle\.json: engine\.plan: "),
    "wrong type": (edit(lambda m: m["files"][0].update(bytes="many")), r"bundle\.json: files\.0\.bytes: "),
    "path out of the bundle": (
        edit(lambda m: m["files"][0].update(path="../secret")),
        r"bundle\.json: files\.0\.path: '\.\./secret' lies outside the bundle",
    ),
    "engine for no GPU": (
        edit(lambda m: m["engine"].update(compute_capabilities=[])),
        r"engine\.compute_capabilities is empty",
    ),
    "tensor that is nowhere": (
        edit(lambda m: m["weights"]["tensors"].pop("model.norm.weight")),
        r"weight model\.norm\.weight needs model\.norm\.weight, which is not among weights\.tensors",
    ),
    "file outside the list": (
        edit(lambda m: m["engine"].update(report="etc/hostname")),
        r"needs 'etc/hostname', which is not among files",
    ),
    "file missing": (remove("engine/engine.plan"), r"engine\.plan does not exist: copy the bundle again"),
    "file truncated": (truncate("graph/model.onnx"), r"model\.onnx has \d+ bytes, bundle\.json says \d+"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_bundle_is_refused_with_its_own_error(tmp_path: Path, damage: str) -> None:
    spoil, message = DAMAGE[damage]
    bundle = copy_bundle(tiny_bundle("rtx5090"), tmp_path / "copy.sala")
    if damage == "manifest is not JSON":
        (bundle / MANIFEST_FILE).write_text("{", encoding="utf-8")
        message = r"bundle\.json is not a JSON object"
    else:
        spoil(bundle)
    with pytest.raises(BundleError, match=message) as error:
        Bundle.open(bundle)
    assert "\n" not in str(error.value)


def test_changed_byte_is_found_by_its_hash(tmp_path: Path) -> None:
    bundle = copy_bundle(tiny_bundle("rtx5090"), tmp_path / "copy.sala")
    plan = bundle / "engine" / "engine.plan"
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    opened = Bundle.open(bundle)
    with pytest.raises(BundleError, match=r"engine\.plan has another SHA-256 than bundle\.json says"):
        opened.verify_hashes()


def test_changed_weight_is_found_by_the_hash_of_its_tensor(tmp_path: Path) -> None:
    bundle = copy_bundle(tiny_bundle("rtx5090"), tmp_path / "copy.sala")
    tensor = Bundle.open(bundle).manifest.weights.tensors["model.norm.weight"]
    content = bytearray((bundle / tensor.file).read_bytes())
    content[tensor.offset] ^= 1
    (bundle / tensor.file).write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.norm\.weight in \S+ has another SHA-256 than bundle\.json says"):
        Bundle.open(bundle).verify_hashes()


def test_no_bundle_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="file is not a directory: a bundle is the directory that `build` writes"):
        Bundle.open(tmp_path / "file")
    with pytest.raises(BundleError, match=r"none\.sala does not exist: a bundle is the directory that `build` writes"):
        Bundle.open(tmp_path / "none.sala")


def test_manifest_is_plain_json() -> None:
    fields = json.loads((tiny_bundle("rtx5090") / MANIFEST_FILE).read_text(encoding="utf-8"))
    assert fields["schema_version"] == 6
    assert fields["engine"]["compute_capabilities"] == ["12.0"]
