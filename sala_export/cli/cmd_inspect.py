"""`sala-export inspect`"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from ..specs import format_bytes, format_tokens
from .options import CPU, BundlePath, json_option
from .output import print_json, progress_display, table_console

if TYPE_CHECKING:
    from ..bundle.manifest import EngineEntry
    from ..bundle.reader import Bundle
    from ..engine.report import EngineReport


@click.command()
@click.argument("bundle", type=BundlePath())
@json_option
@click.option("--verify", is_flag=True, help="Check every file's hash. Fails if a file was changed.")
@click.pass_obj
def inspect(console: Console, bundle: Path, as_json: bool, verify: bool) -> None:
    """Show what is in a bundle: model, GPUs, profiles, operators, matrix products, device memory.

    For example:

    \b
      sala-export inspect sala.sala
      sala-export inspect sala.sala --verify --json
    """
    from ..bundle.reader import Bundle
    from ..engine.report import EngineReport

    opened = Bundle.open(bundle)
    if verify:
        with progress_display(console) as on_progress:
            opened.verify_hashes(on_progress)
    engine = opened.manifest.engine
    description = describe(opened, EngineReport.read(opened.read(engine.report)) if engine else None)
    if as_json:
        print_json(description)
    else:
        _print_tables(description)


def describe(bundle: Bundle, report: EngineReport | None) -> dict[str, Any]:
    """Everything that `inspect` shows, as plain JSON values.

    Args: `report` is what TensorRT reported during the build. None if the bundle has no engine.
    """
    from ..checkpoint.keymap import weights

    manifest, engine = bundle.manifest, bundle.manifest.engine
    tensors, numbers = manifest.weights.tensors, weights(manifest.model.config)
    return {
        "bundle": str(bundle.directory),
        "created_by": manifest.created_by,
        "model": {
            "source": manifest.model.source,
            "fingerprint": manifest.model.fingerprint,
            "layers": manifest.model.config.num_hidden_layers,
            "parameters": sum(weight.elements for weight in numbers),
            "quantized_parameters": sum(each.elements for each in numbers if f"{each.name}_scale" in tensors),
        },
        "precision": manifest.precision.value,
        "operators": [{"layer": o.layer, "type": o.type, "node": o.node} for o in manifest.graph.operators],
        **(_engine_fields(engine, report) if engine and report else _NO_ENGINE),
        "weights": {
            "included": manifest.weights.included,
            "tensors": len(tensors),
            "bytes": sum(tensor.bytes for tensor in tensors.values()),
            "fixed_tensors": sum(tensor.fixed for tensor in tensors.values()),
            "files": [{"path": file.path, "bytes": file.bytes} for file in manifest.weights.files],
        },
        "text": list(manifest.text),
        "files": [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for f in manifest.files],
    }


_NO_ENGINE: dict[str, Any] = {
    "target": CPU,
    "gpus": [],
    "compute_capabilities": [],
    "tensorrt": None,
    "profiles": {},
    "plugin_layers": {},
    "plugin_library": None,
    "gemms": [],
    "device_memory_bytes": {},
    "activation_bytes": {},
    "plan": None,
}
"""What stands in the place of `_engine_fields` in a bundle for CPUs."""


def _engine_fields(engine: EngineEntry, report: EngineReport) -> dict[str, Any]:
    names = [profile.name.value for profile in report.profiles]
    return {
        "target": engine.target,
        "gpus": [asdict(gpu) for gpu in engine.gpus],
        "compute_capabilities": list(engine.compute_capabilities),
        "tensorrt": {"flavour": engine.tensorrt_flavour, "version": engine.tensorrt_version},
        "profiles": {
            name: {dim: {"min": r.min, "opt": r.opt, "max": r.max} for dim, r in ranges.items()}
            for name, ranges in engine.profiles.items()
        },
        "plugin_layers": {
            name: {operator: list(nodes) for operator, nodes in report.operator_layers(index).items()}
            for index, name in enumerate(names)
        },
        "plugin_library": {"files": list(report.plugin_libraries), "sha256": engine.plugin_library_sha256},
        "gemms": _gemms(report),
        "device_memory_bytes": {**engine.device_memory_bytes, "total": sum(engine.device_memory_bytes.values())},
        "activation_bytes": dict(zip(names, report.activation_bytes, strict=True)),
        "plan": {
            "file": engine.plan,
            "bytes": report.plan_bytes,
            "constant_bytes": report.constant_bytes,
            "build_seconds": report.build_seconds,
            "peak_host_bytes": report.peak_host_bytes,
        },
    }


def _gemms(report: EngineReport) -> list[dict[str, Any]]:
    """The fused layers that compute a matrix product, with the types that enter and leave."""
    found = []
    for index, profile in enumerate(report.profiles):
        products: dict[str, list[str]] = {}
        computed = report.product_layers(index)
        for product, layer in computed.items():
            products.setdefault(layer.name, []).append(product)
        for layer in (layer for layer in report.layers if layer.profile == index and layer.name in products):
            found.append(
                {
                    "profile": profile.name.value,
                    "name": layer.name,
                    "type": layer.type,
                    "products": products[layer.name],
                    "fused_nodes": len(layer.onnx_nodes),
                    "inputs": [tensor.dtype for tensor in report.activations_of(layer)],
                    "weights": [tensor.dtype for tensor in report.weights_of(layer)],
                    "outputs": [tensor.dtype for tensor in layer.outputs],
                }
            )
    return found


def _print_tables(d: dict[str, Any]) -> None:
    console = table_console(160)
    facts = Table(show_header=False, box=None)
    for name, text in _facts(d).items():
        facts.add_row(name, text)
    console.print(facts)
    if d["plan"] is not None:
        _print_engine(console, d)


def _print_engine(console: Console, d: dict[str, Any]) -> None:
    gpus = Table("GPU", "compute capability", "memory", "longest context", box=None)
    for gpu in d["gpus"]:
        size, context = format_bytes(gpu["memory_bytes"]), format_tokens(gpu["max_context"])
        gpus.add_row(gpu["name"], gpu["compute_capability"], size, context)
    console.print(gpus)

    memory = Table("device memory", "bytes", "", title_justify="left", box=None)
    for part, size in d["device_memory_bytes"].items():
        memory.add_row(part.replace("_", " "), f"{size:,}", format_bytes(size))
    for profile, size in d["activation_bytes"].items():
        memory.add_row(f"activation, {profile}", f"{size:,}", format_bytes(size))
    console.print(memory)

    products = Table("profile", "matrix products", "computed as", "in", "weights", "out", "layers", box=None)
    for (profile, roles, *types), layers in _by_role(d["gemms"]).items():
        products.add_row(profile, roles, *types, _runs(layers))
    console.print(products)


def _facts(d: dict[str, Any]) -> dict[str, str]:
    """The first table: what a bundle is, in one line each."""
    model, plan, weights = d["model"], d["plan"], d["weights"]
    facts = {
        "bundle": d["bundle"],
        "model": f"{model['source']}, {model['layers']} layers, {model['parameters']:,} weights",
        "precision": d["precision"],
        "TensorRT": f"{d['tensorrt']['flavour']} {d['tensorrt']['version']}"
        if plan
        else "none, the bundle is for CPUs",
    }
    if plan:
        facts["runs on"] = f"every GPU of compute capability {', '.join(d['compute_capabilities'])}"
    if model["quantized_parameters"]:
        facts["precision"] += f", {model['quantized_parameters']:,} weights quantised"
    for name, ranges in d["profiles"].items():
        sizes = ", ".join(f"{dim} {_span(r['min'], r['max'])}" for dim, r in ranges.items())
        facts[f"profile {name}"] = sizes
    kinds: dict[str, list[int]] = {}
    for operator in d["operators"]:
        kinds.setdefault(operator["type"], []).append(operator["layer"])
    facts |= {kind: f"layers {_runs(layers)}" for kind, layers in kinds.items()}
    if plan:
        facts["plan"] = f"{format_bytes(plan['bytes'])}, built in {plan['build_seconds']:.0f} s"
    if plan and plan["constant_bytes"] >= 1 << 20:
        facts["plan"] += f", {format_bytes(plan['constant_bytes'])} of it weights or scales"
    facts["weights"] = f"{format_bytes(weights['bytes'])} in {len(weights['files'])} files, " + (
        "included" if weights["included"] else "not included: give them with --weights DIR when you run"
    )
    facts["text"] = "yes" if d["text"] else "token ids only"
    return facts


def _by_role(gemms: list[dict[str, Any]]) -> dict[tuple[str, ...], list[int]]:
    """Layers whose products are fused alike: (profile, roles, type, in, weights, out) -> layer numbers."""
    grouped: dict[tuple[str, ...], list[int]] = {}
    for gemm in gemms:
        modules = [name.rpartition("/")[0] for name in gemm["products"]]
        numbers = {int(match[1]) for match in (_LAYER.match(module) for module in modules) if match}
        key = (
            gemm["profile"],
            " + ".join(_LAYER.sub("", module) for module in modules),
            gemm["type"],
            *(", ".join(dict.fromkeys(gemm[side])) for side in ("inputs", "weights", "outputs")),
        )
        grouped.setdefault(key, []).extend(sorted(numbers))
    return grouped


_LAYER = re.compile(r"layers\.(\d+)\.")


def _runs(numbers: list[int]) -> str:
    """`0..2, 5, 6` for 0, 1, 2, 5, 6."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(
        f"{first}..{last}" if last - first > 1 else ", ".join(map(str, range(first, last + 1))) for first, last in runs
    )


def _span(least: int, most: int) -> str:
    return format_tokens(most) if least == most else f"{format_tokens(least)}..{format_tokens(most)}"
