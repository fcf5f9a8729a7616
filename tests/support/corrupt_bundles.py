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


def _part(change: Fields, says: str, reader_says: str | None) -> Corruption:
    """Changes the first part of the first weight of the CPU graph."""
    return _manifest(lambda m: m["graph"]["cpu"]["weights"][0]["parts"][0].update(change), says, reader_says)


def _tensor(change: Callable[[Fields], object], says: str, reader_says: str | None) -> Corruption:
    """Changes the entry of the final norm's weight."""
    return _manifest(lambda m: change(m["weights"]["tensors"]["model.norm.weight"]), says, reader_says)


def _drop(path: str, says: str, reader_says: str) -> Corruption:
    def change(fields: Fields) -> None:
        *parents, last = path.split(".")
        target: Any = fields
        for parent in parents:
            target = target[int(parent) if parent.isdecimal() else parent]
        del target[last]

    return _manifest(change, says, reader_says)


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
    fields["weights"]["included"] = False


def _text(old: bytes, new: bytes, says: str, *, last: bool = False) -> Corruption:
    """Replaces the first, or the last, occurrence in the text of the manifest."""

    def spoil(bundle: Path) -> None:
        before, found, after = (bytes.rpartition if last else bytes.partition)(
            (bundle / MANIFEST_FILE).read_bytes(), old
        )
        assert found
        (bundle / MANIFEST_FILE).write_bytes(before + new + after)

    return Corruption(spoil=spoil, error="BundleDamaged", says=says, reader_says=MANIFEST_FILE)


def _caches_of_codes(fields: Fields) -> None:
    for spec in (*fields["graph"]["cpu"]["fast"]["inputs"][5:], *fields["graph"]["cpu"]["fast"]["outputs"][1:]):
        spec["dtype"] = "int8"


def _first_cache(step: Fields, dtype: str) -> None:
    """Gives the first cache of a step another type."""
    step["inputs"][5]["dtype"] = step["outputs"][1]["dtype"] = dtype


def _halve(tensor: Fields) -> None:
    """Leaves a tensor of half as many elements."""
    tensor.update(bytes=tensor["bytes"] // 2, shape=[tensor["shape"][0] // 2])


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
    "field twice": _text(b'"created_by"', b'"created_by": "me", "created_by"', "is not a JSON object"),
    "byte order mark": _text(b"{", b"\xef\xbb\xbf{", "is not a JSON object"),
    "text behind the end": _text(b"}\n", b"}\n\0", "is not a JSON object", last=True),
    "half a character": _text(b'"created_by": "', b'"created_by": "\\ud800', "is not a JSON object"),
    "too many levels": _text(b'"created_by": ', b'"created_by": ' + b"[" * 10**6, "is not a JSON object"),
    "older schema": _set(
        "schema_version",
        1,
        f"schema_version 1, this release reads {SCHEMA_VERSION}: build it again: sala-export build --gpu GPU --model",
        "build it again: sala-export build --gpu GPU --model",
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
    "missing field": _drop("engine.plan", "engine.plan: is missing", "engine.plan: "),
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
    "frequency beyond fp32": _set(
        "model.inv_freq.1", 0.1, "model.inv_freq[1]: is not an fp32 number", "0.1 is not an fp32"
    ),
    "one frequency too few": _manifest(
        lambda m: m["model"]["inv_freq"].pop(), "model.inv_freq: expected head_dim / 2 numbers", "expected head_dim / 2"
    ),
    "end token outside the vocabulary": _set(
        "model.config.eos_token_id.0", 512, "eos_token_id[0]: is not a token of the vocabulary", "token 512 is not in"
    ),
    "unknown precision": _set("precision", "fp7", "precision: is not a precision", "precision: "),
    "precision that no engine has": _set("precision", "fp32", "precision: is not a precision", "precision is fp32"),
    "sparse layers without their sizes": _manifest(
        lambda m: m["model"]["config"].update(sparse_config={}),
        "sparse_config.",
        "sparse_config.kernel_size is missing",
    ),
    "RoPE without a base": _set("model.config.rope_theta", 0, "rope_theta: is not positive", "rope_theta is 0"),
    "size that is a float": _set(
        "model.config.hidden_size", 256.0, "hidden_size: expected an integer", "hidden_size: "
    ),
    "flag that is a number": _set("weights.included", 1, "weights.included: expected true", "weights.included: "),
    "size beyond 64 bits": _set("files.0.bytes", 2**64, "files[0].bytes: expected an integer", "files.0.bytes: "),
    "hash in capitals": _set("model.fingerprint", "A" * 64, "fingerprint: expected a SHA-256", "model.fingerprint: "),
    # The graph.
    "unknown element type": _set(
        "graph.inputs.0.dtype", "float8", "graph.inputs[0].dtype: is not an element type", "graph.inputs.0.dtype: "
    ),
    "operator without a layer": _drop(
        "graph.operators.0.layer", "graph.operators[0].layer: is missing", "graph.operators.0.layer: "
    ),
    "weights were left out": _manifest(_leave_out_weights, "--no-weights", None, error="WeightsMissing"),
    "tensor beyond the end of its file": _tensor(
        lambda t: t.update(offset=10**12), "ends behind the end of", "ends behind the end of"
    ),
    "tensor at a negative offset": _tensor(
        lambda t: t.update(offset=-2), "offset: expected an integer of at least 0", "norm.weight.offset: "
    ),
    "tensor whose bytes are not its shape's": _tensor(
        lambda t: t.update(bytes=t["bytes"] - 1), "bytes: is not what its type and shape take", "which is not what"
    ),
    "tensor in a file that is not listed": _tensor(
        lambda t: t.update(file="graph/other.safetensors"), "not among weights.files", "not among weights.files"
    ),
    "tensor of an unknown type": _tensor(
        lambda t: t.update(dtype="float7"), "is not an element type", "weights.tensors.model.norm.weight.dtype: "
    ),
    "tensor without a hash": _tensor(lambda t: t.pop("sha256"), "sha256: is missing", "sha256: "),
    "weight file out of the bundle": _set(
        "weights.files.0.path", "../x", "weights.files[0].path: names a file outside", "lies outside the bundle"
    ),
    "part of an unknown tensor": _part(
        {"tensor": "model.other"}, "needs model.other, which is not among", "needs model.other, which is not among"
    ),
    "scales for no rows": _part({"rows": 0}, "rows: expected an integer of at least 1", "parts.0.rows: "),
    "factor of no scales": _part({"factor": "model.norm.weight"}, "factor", "has rows None, factor"),
    "weight with too few elements": _tensor(_halve, "for the shape", None),
    "weight that is no input of the graph": _set(
        "graph.cpu.weights.0.spec.name", "renamed", "has other inputs than bundle.json says", None
    ),
    "cache that does not come out": _manifest(
        lambda m: m["graph"]["cpu"]["exact"]["outputs"].pop(),
        "has no tensor present.",
        "graph.cpu.exact: the step has no output present.",
    ),
    "cache that comes out as another type": _set(
        "graph.cpu.fast.outputs.8.dtype",
        "int8",
        "another type or shape",
        "graph.cpu.fast: the step has no output present.",
    ),
    "caches of codes": _manifest(_caches_of_codes, "past_key_values.0.key is int8", "past_key_values.0.key is int8"),
    "logits of another vocabulary": _set(
        "graph.outputs.0.shape.1", 511, "tensor logits has another", "graph: the step has no output logits"
    ),
    "input of an unknown size": _set(
        "graph.inputs.0.shape.1", "words", "inputs[0].shape[1]: is not a dimension of a step", "input input_ids of type"
    ),
    "input twice": _manifest(
        lambda m: m["graph"]["inputs"].append(m["graph"]["inputs"][5]), "has two tensors past_key_values.", "one name"
    ),
    "weight with the name of an input": _set(
        "graph.cpu.weights.0.spec.name", "input_ids", "two inputs have the name input_ids", "have one name"
    ),
    "weight of a symbolic size": _set(
        "graph.cpu.weights.0.spec.shape.0", "tokens", "weights[0].spec: has a symbolic", "dimension that is no size"
    ),
    "weight of more bytes than memory": _set(
        "graph.cpu.weights.0.spec.shape", [2**62, 4], "weights[0].spec: has a symbolic", "exceeds memory"
    ),
    "weight in an unknown layout": _set(
        "graph.cpu.weights.0.layout", "columns", "weights[0].layout: is not a layout", "weights.0.layout: "
    ),
    "weight of numbers in word columns": _set(
        "graph.cpu.weights.0.layout", "word_columns", "word columns are an int32", "word columns are an int32"
    ),
    "weight of nothing": _set("graph.cpu.weights.0.parts", [], "weights[0].parts: is empty", "has no parts"),
    "tensor without elements": _tensor(lambda t: t.update(shape=[0], bytes=0), "shape[0]: expected", "shape.0: "),
    "tensor of nine dimensions": _tensor(lambda t: t["shape"].extend([1] * 8), "more than 8 dimensions", "shape: "),
    "scales for more rows than bytes": _part({"rows": 10**12}, "more than all weights have bytes", "more than all"),
    # The engine.
    "engine for no GPU": _set(
        "engine.compute_capabilities", [], "engine.compute_capabilities: is empty", "compute_capabilities is empty"
    ),
    "GPU without a name": _drop("engine.gpus.0.name", "engine.gpus[0].name: is missing", "engine.gpus.0.name: "),
    "engine without a profile": _drop("engine.profiles.decode", "has no decode", "engine.profiles.decode has no "),
    "profile without a dimension": _drop(
        "engine.profiles.prefill.capacity", "prefill has no capacity", "engine.profiles.prefill has no capacity"
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
    "path that is not the shortest": _set(
        "files.0.path", "engine/./build.log", "files[0].path: names a file outside", "in the shortest way"
    ),
    "file twice": _manifest(
        lambda m: m["files"].append(m["files"][0]), "files has engine/build.log twice", "one file twice"
    ),
    "report not listed": _set(
        "engine.report",
        "engine/other.json",
        "needs engine/other.json, which is not among files",
        "needs 'engine/other.json', which is not among files",
    ),
    "text not listed": _set(
        "text", ["text/tokenizer.json"], "needs text/tokenizer.json, which is not", "needs 'text/tokenizer.json'"
    ),
    "graph not listed": _manifest(
        _unlist("graph/cpu_fast.onnx"), "needs graph/cpu_fast.onnx, which", "needs 'graph/cpu_fast.onnx'"
    ),
    "exact caches of 16 bits": _manifest(
        lambda m: _first_cache(m["graph"]["cpu"]["exact"], "bfloat16"),
        "past_key_values.0.key is bfloat16",
        "graph.cpu.exact: cache past_key_values.0.key is bfloat16",
    ),
    "one form missing": _drop("graph.cpu.fast", "graph.cpu.fast: is missing", "graph.cpu.fast: "),
    "part of an older schema": _part(
        {"dequantization": None}, "parts[0].dequantization: is not a field", "parts.0.dequantization: "
    ),
    "negative size": _set("files.0.bytes", -1, "files[0].bytes: expected an integer of at least 0", "files.0.bytes: "),
    "file missing": Corruption(
        spoil=lambda bundle: (bundle / "graph" / "model.onnx").unlink(),
        error="BundleDamaged",
        says="model.onnx cannot be opened",
        reader_says="model.onnx does not exist: copy the bundle again",
    ),
    "file of another size": Corruption(
        spoil=lambda bundle: _shorten(bundle / "engine" / "engine.plan"),
        error="BundleDamaged",
        says="bundle.json says",
        reader_says="bundle.json says",
    ),
    "folder in place of a file": Corruption(
        spoil=lambda bundle: _replace_by_folder(bundle / "graph" / "model.onnx"),
        error="BundleDamaged",
        says="model.onnx is not a file",
        reader_says="model.onnx is not a file: copy the bundle again",
    ),
    "changed graph": Corruption(
        spoil=lambda bundle: _change_byte(bundle / "graph" / "cpu.onnx"),
        error="BundleDamaged",
        says="cpu.onnx has another SHA-256 than bundle.json says",
    ),
    "changed weights": Corruption(
        spoil=lambda bundle: _change_last_byte(next((bundle / "graph").glob("*.safetensors"))),
        error="BundleDamaged",
        says="has another SHA-256 than bundle.json says",
    ),
    "weight file of another size": Corruption(
        spoil=lambda bundle: _shorten(_own(next((bundle / "graph").glob("*.safetensors")))),
        error="BundleDamaged",
        says="bundle.json says",
        reader_says="bundle.json says",
    ),
}


def _change_last_byte(path: Path) -> None:
    """Of a weight file: its tensors end with the file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)


def _own(path: Path) -> Path:
    """A file that may be changed, in the place of a hard link."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return path


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
