"""What a bundle holds, and how a damaged one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
    assert {entry.path for entry in bundle.manifest.files} == on_disk - {MANIFEST_FILE}
    assert not any(path.is_symlink() for path in bundle.directory.rglob("*"))
    bundle.verify_hashes()


def test_manifest_reads_back_equal() -> None:
    manifest = Bundle.open(tiny_bundle("rtx5090")).manifest
    assert Manifest.from_json(manifest.to_json(), "again") == manifest
    assert manifest.model.config == Checkpoint.open(tiny_checkpoint()).config


def test_cpu_weights_are_made_of_the_checkpoints_bytes() -> None:
    """Every part, read as the manifest says, is the checkpoint's tensor; together they are all of it."""
    bundle = Bundle.open(tiny_bundle("rtx5090"))
    checkpoint = Checkpoint.open(tiny_checkpoint())
    by_place = {(w.file.name, w.offset): name for name, w in checkpoint.locations.items()}
    used = []
    for weight in bundle.manifest.graph.cpu.weights:
        rows = []
        for part in weight.parts:
            name = by_place[Path(part.file).name, part.offset]
            used.append(name)
            raw = np.fromfile(bundle.directory / part.file, np.uint8, part.bytes, offset=part.offset)
            rows.append(torch.from_numpy(raw).view(torch.bfloat16).view(checkpoint.locations[name].shape))
            assert torch.equal(rows[-1], checkpoint.tensor(name))
        assert torch.cat(rows).shape == weight.spec.shape
    assert sorted(used) == sorted(checkpoint.locations)


def test_bundles_of_one_model_share_the_fingerprint_whatever_the_gpu() -> None:
    first, second = (Bundle.open(tiny_bundle(gpu)).manifest.model for gpu in ("rtx5090", "a6000"))
    assert first.fingerprint == second.fingerprint


def test_no_file_names_a_path_of_the_building_machine() -> None:
    bundle = Bundle.open(tiny_bundle("rtx5090"))
    for path in ("bundle.json", "engine/shard-00.json", "graph/model.onnx", "graph/cpu.onnx"):
        content = (bundle.directory / path).read_bytes()
        for local in (bundle.directory.parent, tiny_checkpoint().parent, Path(torch.__file__).parent):
            assert str(local).encode() not in content, path


def remove(name: str) -> Callable[[Path], object]:
    return lambda bundle: (bundle / name).unlink()


def truncate(name: str) -> Callable[[Path], object]:
    return lambda bundle: (bundle / name).write_bytes((bundle / name).read_bytes()[:-1])


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda bundle: edit_json(bundle / MANIFEST_FILE, change)


def cut_in_two(shard: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**shard, "num_layers": 2}, {**shard, "first_layer": 2, "num_layers": 3}]


DAMAGE = {
    "no manifest": (remove(MANIFEST_FILE), r"has no bundle\.json: it is not a bundle"),
    "manifest is not JSON": (truncate(MANIFEST_FILE), None),
    "newer schema": (
        edit(lambda m: m.update(schema_version=4)),
        r"bundle\.json has schema_version 4, this release reads 3: update sala-export",
    ),
    "no schema": (edit(lambda m: m.pop("schema_version")), r"has schema_version None, this release reads 3: build"),
    "unknown field": (edit(lambda m: m.update(extra=1)), r"bundle\.json: extra: "),
    "missing field": (edit(lambda m: m["engine"]["shards"][0].pop("plan")), r"bundle\.json: engine\.shards\.0\.plan: "),
    "wrong type": (edit(lambda m: m["files"][0].update(bytes="many")), r"bundle\.json: files\.0\.bytes: "),
    "path out of the bundle": (
        edit(lambda m: m["files"][0].update(path="../secret")),
        r"names the file '\.\./secret', which lies outside the bundle",
    ),
    "layer left out": (
        edit(lambda m: m["engine"]["shards"][0].update(num_layers=4)),
        r"engine\.shards hold the layers 4 from 0, expected each of 5 once and in order",
    ),
    "no shard": (edit(lambda m: m["engine"].update(shards=[])), r"engine\.shards hold the layers none, expected"),
    "shard that takes nothing from the one before": (
        edit(lambda m: m["engine"].update(shards=cut_in_two(m["engine"]["shards"][0]))),
        r"engine/shard-00\.plan does not take the hidden_states\.2 that engine/shard-00\.plan gives",
    ),
    "file outside the list": (
        edit(lambda m: m["engine"]["shards"][0].update(report="../../etc/hostname")),
        r"needs '\.\./\.\./etc/hostname', which is not among its files",
    ),
    "file missing": (remove("engine/shard-00.plan"), r"shard-00\.plan is missing: copy the bundle again"),
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
    plan = bundle / "engine" / "shard-00.plan"
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    opened = Bundle.open(bundle)
    with pytest.raises(BundleError, match=r"shard-00\.plan has another SHA-256 than bundle\.json says"):
        opened.verify_hashes()


def test_no_bundle_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a directory"):
        Bundle.open(tmp_path / "none.sala")


def test_manifest_is_plain_json() -> None:
    fields = json.loads((tiny_bundle("rtx5090") / MANIFEST_FILE).read_text(encoding="utf-8"))
    assert fields["schema_version"] == 3
    assert fields["engine"]["compute_capability"] == "12.0"
