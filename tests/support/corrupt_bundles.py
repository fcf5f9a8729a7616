"""One corrupt bundle for every rule of sala_export/bundle/FORMAT.md, and what refuses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.checkpoints import edit_json

from sala_export.bundle.manifest import MANIFEST_FILE, SCHEMA_VERSION

Fields = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Corruption:
    """A change of a valid bundle."""

    spoil: Callable[[Path], object]
    error: str
    """Name of the runtime's error code."""
    says: str
    """In the runtime's message, of C, C++ and `sala_export.load` alike."""
    reader_says: str | None = None
    """In that of `Bundle.open`, which `inspect` uses; None: only running needs the rule."""


def _manifest(change: Callable[[Fields], object], says: str, reader_says: str | None, **options: str) -> Corruption:
    return Corruption(
        spoil=lambda bundle: edit_json(bundle / MANIFEST_FILE, change),
        error=options.get("error", "BundleDamaged"),
        says=says,
        reader_says=reader_says,
    )


def _set(path: str, value: object, says: str, reader_says: str | None, **options: str) -> Corruption:
    """Sets the field at `path`, dotted, with numbers for elements."""

    def change(fields: Fields) -> None:
        *parents, last = (int(part) if part.isdecimal() else part for part in path.split("."))
        target: Any = fields
        for parent in parents:
            target = target[parent]
        target[last] = value

    return _manifest(change, says, reader_says, **options)


def _quantised(change: Fields, says: str, reader_says: str) -> Corruption:
    """Says of the first weight that it is quantised, with a wrong field."""
    plain = {"file": "graph/cpu.onnx", "offset": 0, "bytes": 4, "dtype": "float32", "dequantization": None}
    fields = {"precision": "int8", "columns": 4, "scale": plain, "scale_shape": [1, 1], "global_scale": 1.0}
    return _set("graph.cpu.weights.0.parts.0.dequantization", fields | change, says, reader_says)


def _drop(path: str, says: str, reader_says: str) -> Corruption:
    def change(fields: Fields) -> None:
        *parents, last = path.split(".")
        target: Any = fields
        for parent in parents:
            target = target[int(parent) if parent.isdecimal() else parent]
        del target[last]

    return _manifest(change, says, reader_says)


def _two_shards(fields: Fields, **changes: object) -> None:
    """Cuts the one shard in two that fit, then changes the second."""
    shard = fields["engine"]["shards"][0]
    stream = {"name": "hidden_states.2", "dtype": "bfloat16", "shape": ["batch", "tokens", 64]}
    layers = shard["num_layers"]
    first = {**shard, "num_layers": 2, "outputs": [stream]}
    second = {**shard, "first_layer": 2, "num_layers": layers - 2, "inputs": [stream], **changes}
    fields["engine"]["shards"] = [first, second]


def _change_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _unlist(name: str) -> Callable[[Fields], None]:
    def change(fields: Fields) -> None:
        fields["files"] = [entry for entry in fields["files"] if entry["path"] != name]

    return change


def _leave_out_weights(fields: Fields) -> None:
    fields["graph"]["weights_included"] = False
    fields["files"] = [entry for entry in fields["files"] if not entry["path"].endswith(".safetensors")]


_STREAM = {"name": "hidden_states.2", "dtype": "float16", "shape": ["batch", "tokens", 64]}

CORRUPTIONS: dict[str, Corruption] = {
    # The directory and the manifest as a whole.
    "no manifest": Corruption(
        spoil=lambda bundle: (bundle / MANIFEST_FILE).unlink(),
        error="BundleMissing",
        says="has no bundle.json: it is not a bundle",
        reader_says="has no bundle.json: it is not a bundle",
    ),
    "manifest cut off": Corruption(
        spoil=lambda bundle: _shorten_to_half(bundle / MANIFEST_FILE),
        error="BundleDamaged",
        says="is not a JSON object",
        reader_says="is not a JSON object",
    ),
    "older schema": _set(
        "schema_version",
        1,
        f"has schema_version 1, this release reads {SCHEMA_VERSION}: build it again",
        "build it again",
        error="BundleSchema",
    ),
    "newer schema, unknown fields": _manifest(
        lambda m: (m.update(schema_version=SCHEMA_VERSION + 1, new_field={}), m.pop("engine")),
        f"has schema_version {SCHEMA_VERSION + 1}, this release reads {SCHEMA_VERSION}: update sala-export",
        f"this release reads {SCHEMA_VERSION}: update sala-export",
        error="BundleSchema",
    ),
    "no schema": _drop("schema_version", "schema_version: is missing", "has schema_version None"),
    # Fields: unknown, missing, of another type.
    "unknown field": _set("extra", 1, "extra: is not a field of this schema", "extra: "),
    "unknown field of the model": _set("model.config.extra", 1, "model.config.extra: is not a field", "config.extra: "),
    "unknown field of a file": _set("files.0.mode", 7, "files[0].mode: is not a field", "files.0.mode: "),
    "missing field": _drop("engine.shards.0.plan", "engine.shards[0].plan: is missing", "engine.shards.0.plan: "),
    "created_by is a number": _set("created_by", 3, "created_by: expected a string", "created_by: "),
    "source is missing": _drop("model.source", "model.source: is missing", "model.source: "),
    "fingerprint is a number": _set("model.fingerprint", 3, "model.fingerprint: expected a string", "fingerprint: "),
    "text is no list": _set("text", {}, "text: expected an array", "text: "),
    # The model.
    "mixer of another model": _set(
        "model.config.mixer_types.0", "mamba", "model.config.mixer_types[0]: is not a mixer", "mixer_types.0: "
    ),
    "blocks that windows do not fill": _set(
        "model.config.sparse_config.window_size",
        100,
        "window_size: is not a multiple of block_size",
        "model.config: sparse_config: window_size 100 is not a multiple",
    ),
    "frequency beyond fp32": _set("model.inv_freq.1", 0.1, "model.inv_freq[1]: is not an fp32 number", None),
    "one frequency too few": _manifest(
        lambda m: m["model"]["inv_freq"].pop(), "model.inv_freq: expected head_dim / 2 numbers", "expected head_dim / 2"
    ),
    "end token outside the vocabulary": _set(
        "model.config.eos_token_id.0", 512, "eos_token_id[0]: is not a token of the vocabulary", None
    ),
    "unknown precision": _set("precision", "fp7", "precision: is not a precision", "precision: "),
    # The graph.
    "unknown element type": _set(
        "graph.inputs.0.dtype", "float8", "graph.inputs[0].dtype: is not an element type", "graph.inputs.0.dtype: "
    ),
    "operator without a layer": _drop(
        "graph.operators.0.layer", "graph.operators[0].layer: is missing", "graph.operators.0.layer: "
    ),
    "weights were left out": _manifest(_leave_out_weights, "--no-weights", None, error="WeightsMissing"),
    "part beyond the end of its file": _set(
        "graph.cpu.weights.0.parts.0.offset", 10**12, "ends behind the end of", "ends behind the end of"
    ),
    "part at a negative offset": _set(
        "graph.cpu.weights.0.parts.0.offset", -2, "parts[0].offset: expected an integer of at least 0", "has offset -2"
    ),
    "part that ends within an element": _manifest(
        lambda m: m["graph"]["cpu"]["weights"][0]["parts"][0].update(
            bytes=m["graph"]["cpu"]["weights"][0]["parts"][0]["bytes"] - 1
        ),
        "ends within an element",
        None,
    ),
    "weight with too few elements": _manifest(
        lambda m: m["graph"]["cpu"]["weights"][0]["parts"][0].update(
            bytes=m["graph"]["cpu"]["weights"][0]["parts"][0]["bytes"] - 2
        ),
        "stored elements for the shape",
        None,
    ),
    "weight that is no input of the graph": _set(
        "graph.cpu.weights.0.spec.name", "renamed", "has other inputs than bundle.json says", None
    ),
    "cache that does not come out": _manifest(
        lambda m: m["graph"]["cpu"]["outputs"].pop(), "the engine has no tensor present.", None, error="InvalidArgument"
    ),
    # The engine.
    "no shard": _set("engine.shards", [], "engine.shards: does not hold every layer", "hold the layers none"),
    "layer left out": _set(
        "engine.shards.0.num_layers", 4, "engine.shards: does not hold every layer", "hold the layers 4 from 0"
    ),
    "shards out of order": _manifest(
        lambda m: _two_shards(m, first_layer=1), "first_layer: does not follow the shard before", "hold the layers"
    ),
    "shard that takes nothing from the one before": _manifest(
        lambda m: _two_shards(m, inputs=[]),
        "inputs: does not take the hidden_states",
        "does not take the hidden_states.2",
    ),
    "residual stream of another type": _manifest(
        lambda m: _two_shards(m, inputs=[_STREAM]),
        "inputs: does not take the hidden_states",
        "does not take the hidden_states.2",
    ),
    "plugin library in the second shard": _manifest(
        lambda m: _two_shards(m, plugin_library_serialized=True),
        "engine.shards[1].plugin_library_serialized: only the first shard",
        "only the first shard",
    ),
    "unknown flavour": _set(
        "engine.tensorrt_flavour",
        "trt",
        "engine.tensorrt_flavour: is neither rtx nor tensorrt",
        "tensorrt_flavour is 'trt'",
    ),
    "profile that descends": _set(
        "engine.profiles",
        {"prefill": {"tokens": {"min": 1, "opt": 9, "max": 8}}},
        "engine.profiles.prefill.tokens: min, opt and max do not ascend",
        "min 1, opt 9, max 8 do not ascend",
    ),
    "memory in words": _set(
        "engine.device_memory_bytes",
        {"weights": "much"},
        "device_memory_bytes.weights: expected an integer",
        "device_memory_bytes.weights: ",
    ),
    # The files.
    "path out of the bundle": _set(
        "files.0.path", "../x", "files[0].path: names a file outside", "lies outside the bundle"
    ),
    "absolute path": _set(
        "files.0.path", "/etc/hostname", "files[0].path: names a file outside", "lies outside the bundle"
    ),
    "report not listed": _set(
        "engine.shards.0.report",
        "engine/other.json",
        "needs engine/other.json, which is not among files",
        "needs 'engine/other.json', which is not among its files",
    ),
    "text not listed": _set(
        "text", ["text/tokenizer.json"], "needs text/tokenizer.json, which is not", "needs 'text/tokenizer.json'"
    ),
    "graph not listed": _manifest(_unlist("graph/cpu.onnx"), "needs graph/cpu.onnx, which", "needs 'graph/cpu.onnx'"),
    "codes of a precision without": _quantised(
        {"precision": "bf16"}, "precision: is not a quantised precision", "the precision bf16, which has no codes"
    ),
    "codes in rows of nothing": _quantised({"columns": 0}, "columns: expected an integer of at least 1", "0 columns"),
    "scale for no rows": _quantised({"scale_shape": [0, 1]}, "scale_shape[0]: expected", "the scale_shape [0, 1]"),
    "global scale of nothing": _quantised({"global_scale": 0.0}, "global_scale: is no scale", "the global_scale 0.0"),
    "negative size": _set("files.0.bytes", -1, "files[0].bytes: expected an integer of at least 0", "says -1"),
    "file missing": Corruption(
        spoil=lambda bundle: (bundle / "graph" / "model.onnx").unlink(),
        error="BundleDamaged",
        says="model.onnx cannot be opened",
        reader_says="model.onnx is missing: copy the bundle again",
    ),
    "file of another size": Corruption(
        spoil=lambda bundle: _shorten(bundle / "engine" / "shard-00.plan"),
        error="BundleDamaged",
        says="bundle.json says",
        reader_says="bundle.json says",
    ),
    "folder in place of a file": Corruption(
        spoil=lambda bundle: _replace_by_folder(bundle / "graph" / "model.onnx"),
        error="BundleDamaged",
        says="model.onnx is not a file",
        reader_says="model.onnx is missing",
    ),
    "changed graph": Corruption(
        spoil=lambda bundle: _change_byte(bundle / "graph" / "cpu.onnx"),
        error="BundleDamaged",
        says="cpu.onnx has another SHA-256 than bundle.json says",
    ),
}


def _shorten_to_half(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8")[: path.stat().st_size // 2], encoding="utf-8")


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_bundle(source: Path, target: Path) -> Path:
    """A copy of a bundle that may be changed, but for its weights, which are hard links."""
    for path in source.rglob("*"):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            copy.hardlink_to(path)
        else:
            copy.write_bytes(path.read_bytes())
    return target
