"""Inputs of word columns: what a manifest may say of them, and the words that Python makes of their tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import edit_json
from support.corrupt_bundles import link_bundle
from support.documents import ROOT
from support.runtime_bundles import tiny_cpu_bundle
from support.weight_inputs import assemble

from sala_export.bundle.manifest import MANIFEST_FILE, Manifest, WeightInput, WeightLayout
from sala_export.bundle.reader import Bundle
from sala_export.errors import BundleError
from sala_export.verification.bundle_weights import BundleWeights

WORDS = ROOT / "runtime" / "fuzz" / "corpus" / "manifest" / "words.json"
"""A manifest whose input `s`, int32 [2, 2], is made of `s` and `e`, uint8 [1, 8]."""


def test_a_layout_is_written_where_it_is_given() -> None:
    manifest = Manifest.from_json(WORDS.read_bytes(), "words")
    assert [weight.layout for weight in manifest.engine.weights] == [None, WeightLayout.WORD_COLUMNS]
    assert Manifest.from_json(manifest.to_json(), "again") == manifest
    written = json.loads(manifest.to_json())["engine"]["weights"]
    assert [weight.get("layout", "none") for weight in written] == ["none", "word_columns"]


def of_input(**fields: Any) -> Callable[[Any], object]:
    return lambda manifest: manifest["engine"]["weights"][1].update(fields)


def of_spec(**fields: Any) -> Callable[[Any], object]:
    return lambda manifest: manifest["engine"]["weights"][1]["spec"].update(fields)


def of_tensor(**fields: Any) -> Callable[[Any], object]:
    return lambda manifest: manifest["weights"]["tensors"]["e"].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_input(layout="columns"), r"engine\.weights\.1\.layout: .*'word_columns'"),
        (of_spec(dtype="uint8"), r"weight s is uint8 \[2, 2\], word columns are an int32 matrix"),
        (of_spec(shape=[4]), r"weight s is int32 \[4\], word columns are an int32 matrix"),
        (of_spec(shape=[1, 2]), r"weight s has word columns of uint8 \[2, 4\], of which s cannot be rows: it is uint8"),
        (of_spec(shape=[2, 3]), r"weight s has word columns of 3 rows, its tensors have 2"),
        (of_input(parts=[{"tensor": "s"}]), r"word columns of 2 rows, its tensors have 1"),
        (of_input(parts=[{"tensor": "s"}, {"tensor": "e", "rows": 1}]), r"e .* is uint8 \[1, 8\], as scales of rows"),
        (of_tensor(dtype="int8"), r"of which e cannot be rows: it is int8 \[1, 8\]"),
        (of_tensor(shape=[8]), r"of which e cannot be rows: it is uint8 \[8\]"),
        (of_tensor(shape=[1, 6], bytes=6), r"of which e cannot be rows: it is uint8 \[1, 6\]"),
    ],
)
def test_tensors_that_do_not_fill_word_columns_are_refused(change: Callable[[Any], object], message: str) -> None:
    manifest = json.loads(WORDS.read_bytes())
    change(manifest)
    with pytest.raises(BundleError, match=message) as error:
        Manifest.from_json(json.dumps(manifest), "words")
    assert str(error.value).endswith("(build the bundle again)")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One with inputs of one, two and three tensors, of 128 and of 384 numbers in a row."""
    path = link_bundle(tiny_cpu_bundle(), tmp_path_factory.mktemp("words") / "words.sala")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{blocks}.{rows}": torch.randint(0, 256, (rows, blocks), generator=generator, dtype=torch.uint8)
        for blocks in (4, 12)
        for rows in (1, 7, 40)
    }
    file = path / "graph" / "scales.safetensors"
    save_file(tensors, file)
    content = file.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:data])

    def entry(name: str) -> dict[str, Any]:
        begin, end = (data + offset for offset in header[name]["data_offsets"])
        digest = hashlib.sha256(content[begin:end]).hexdigest()
        place = {"file": "graph/scales.safetensors", "offset": begin, "bytes": end - begin, "sha256": digest}
        return {**place, "dtype": "uint8", "shape": header[name]["shape"]}

    def weight(blocks: int, rows: tuple[int, ...]) -> dict[str, Any]:
        name = ".".join(str(number) for number in (blocks, *rows, "words"))
        spec = {"name": name, "dtype": "int32", "shape": [blocks // 4, sum(rows)]}
        parts = [{"tensor": f"{blocks}.{count}"} for count in rows]
        return {"spec": spec, "parts": parts, "layout": "word_columns"}

    def change(manifest: dict[str, Any]) -> None:
        manifest["weights"]["files"].append({"path": "graph/scales.safetensors", "bytes": len(content)})
        manifest["weights"]["tensors"] |= {name: entry(name) for name in tensors}
        manifest["engine"]["weights"] = [weight(b, rows) for b in (4, 12) for rows in ((7,), (40, 7), (1, 40, 7))]

    edit_json(path / MANIFEST_FILE, change)
    return Bundle.open(path)


def test_words_are_those_of_the_format(bundle: Bundle) -> None:
    inputs: tuple[WeightInput, ...] = bundle.manifest.engine.weights
    weights, expected = BundleWeights(bundle, inputs), assemble(bundle.directory / "graph", inputs)
    for weight in inputs:
        found = weights.tensor(weight.spec.name)
        assert (found.dtype, tuple(found.shape)) == (torch.int32, weight.spec.shape)
        np.testing.assert_array_equal(found.numpy(), expected[weight.spec.name])


def test_a_changed_byte_is_named_by_its_tensor(bundle: Bundle) -> None:
    file = bundle.directory / "graph" / "scales.safetensors"
    content = file.read_bytes()
    at = bundle.manifest.weights.tensors["12.7"].offset + 5
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    opened = Bundle.open(bundle.directory)
    try:
        with pytest.raises(BundleError, match=r"12\.7 in .* has another SHA-256"):
            BundleWeights(opened, opened.manifest.engine.weights).tensor("12.40.7.words")
    finally:
        file.write_bytes(content)
