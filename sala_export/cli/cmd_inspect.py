"""`sala-export inspect`"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from ..specs import format_bytes, format_tokens
from .output import print_json, progress_display

if TYPE_CHECKING:
    from ..bundle.reader import Bundle
    from ..engine.report import EngineReport


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--verify", is_flag=True, help="Hash every file first; fails if one is not what was built.")
@click.pass_obj
def inspect(console: Console, bundle: Path, as_json: bool, verify: bool) -> None:
    """Say what a bundle holds: model, GPU, profiles, operators, fused products, device memory."""
    from ..bundle.reader import Bundle
    from ..engine.report import EngineReport

    opened = Bundle.open(bundle)
    if verify:
        with progress_display(console) as on_progress:
            opened.verify_hashes(on_progress)
    reports = [EngineReport.read(bundle / shard.report) for shard in opened.manifest.engine.shards]
    description = describe(opened, reports)
    if as_json:
        print_json(description)
    else:
        _print_tables(description)


def describe(bundle: Bundle, reports: Sequence[EngineReport]) -> dict[str, Any]:
    """All that is shown, as plain JSON values. What TensorRT reported while building comes from `reports`, by shard."""
    manifest, engine = bundle.manifest, bundle.manifest.engine
    names = [profile.name.value for profile in reports[0].profiles]
    return {
        "bundle": str(bundle.directory),
        "created_by": manifest.created_by,
        "model": {
            "source": manifest.model.source,
            "fingerprint": manifest.model.fingerprint,
            "layers": manifest.model.config.num_hidden_layers,
            "parameters": sum(report.parameters for report in reports),
        },
        "precision": manifest.precision.value,
        "gpu": {"recipe": engine.gpu, "name": engine.gpu_name, "compute_capability": engine.compute_capability},
        "tensorrt": {"flavour": engine.tensorrt_flavour, "version": engine.tensorrt_version},
        "profiles": {
            name: {dim: {"min": r.min, "opt": r.opt, "max": r.max} for dim, r in ranges.items()}
            for name, ranges in engine.profiles.items()
        },
        "operators": [{"layer": o.layer, "type": o.type, "node": o.node} for o in manifest.graph.operators],
        "plugin_layers": {name: _operator_layers(reports, index) for index, name in enumerate(names)},
        "plugin_library": {
            "serialized_in": [s.plan for s in engine.shards if s.plugin_library_serialized],
            "files": sorted({library for report in reports for library in report.plugin_libraries}),
            "sha256": engine.plugin_library_sha256,
        },
        "gemms": [gemm for report in reports for gemm in _gemms(report)],
        "device_memory_bytes": {**engine.device_memory_bytes, "total": sum(engine.device_memory_bytes.values())},
        "activation_bytes": {
            name: max(report.activation_bytes[index] for report in reports) for index, name in enumerate(names)
        },
        "plan": _plan_fields(reports),
        "shards": [
            {
                "plan": shard.plan,
                "first_layer": shard.first_layer,
                "num_layers": shard.num_layers,
                "bytes": report.plan_bytes,
                "activation_bytes": dict(zip(names, report.activation_bytes, strict=True)),
                "build_seconds": report.build_seconds,
                "peak_host_bytes": report.peak_host_bytes,
            }
            for shard, report in zip(engine.shards, reports, strict=True)
        ],
        "weights": {
            "included": manifest.graph.weights_included,
            "files": [{"path": w.path, "bytes": w.bytes} for w in manifest.graph.weights],
        },
        "text": list(manifest.text),
        "files": [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for f in manifest.files],
    }


def _plan_fields(reports: Sequence[EngineReport]) -> dict[str, Any]:
    """Sizes of all plans together, and what building them took.

    Bytes per quantised weight are those of the plans, kernels included, and of their constants alone.
    """
    plan_bytes, parameters = sum(r.plan_bytes for r in reports), sum(r.parameters for r in reports)
    quantized = sum(report.quantized_parameters for report in reports)
    others = sum(report.graph_weights_bytes - report.graph_quantized_weights_bytes for report in reports)
    constants = sum(report.memory.weights_bytes for report in reports)
    return {
        "bytes": plan_bytes,
        "bytes_per_weight": plan_bytes / parameters,
        "quantized_weights": quantized,
        "plan_bytes_per_quantized_weight": (plan_bytes - others) / quantized if quantized else None,
        "constant_bytes_per_quantized_weight": (constants - others) / quantized if quantized else None,
        "build_seconds": sum(report.build_seconds for report in reports),
        "peak_host_bytes": max(report.peak_host_bytes for report in reports),
    }


def _operator_layers(reports: Sequence[EngineReport], profile: int) -> dict[str, list[str]]:
    """Nodes that plugins compute in a profile, by operator, over all shards."""
    nodes: dict[str, list[str]] = {}
    for report in reports:
        for operator, names in report.operator_layers(profile).items():
            nodes.setdefault(operator, []).extend(names)
    return nodes


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
                    "inputs": [tensor.dtype for tensor in layer.inputs],
                    "weights": [tensor.dtype for tensor in layer.constants],
                    "outputs": [tensor.dtype for tensor in layer.outputs],
                }
            )
    return found


def _print_tables(d: dict[str, Any]) -> None:
    # Tables keep their columns when they go to a file or a pipe.
    console = Console(highlight=False, width=None if Console().is_terminal else 160)
    facts = Table(show_header=False, box=None)
    facts.add_row("bundle", d["bundle"])
    model = d["model"]
    facts.add_row("model", f"{model['source']}, {model['layers']} layers, {model['parameters']:,} weights")
    facts.add_row("GPU", f"{d['gpu']['name']}, compute capability {d['gpu']['compute_capability']}")
    facts.add_row("TensorRT", f"{d['tensorrt']['flavour']} {d['tensorrt']['version']}, {d['precision']}")
    for name, ranges in d["profiles"].items():
        sizes = ", ".join(f"{dim} {_span(r['min'], r['max'])}" for dim, r in ranges.items())
        facts.add_row(f"profile {name}", sizes)
    kinds: dict[str, list[int]] = {}
    for operator in d["operators"]:
        kinds.setdefault(operator["type"], []).append(operator["layer"])
    for kind, layers in kinds.items():
        facts.add_row(kind, f"layers {_runs(layers)}")
    facts.add_row("plugin library", f"inside {', '.join(d['plugin_library']['serialized_in'])}")
    facts.add_row(
        "plan",
        f"{format_bytes(d['plan']['bytes'])} in {len(d['shards'])} {'shards' if len(d['shards']) > 1 else 'piece'}, "
        f"{d['plan']['bytes_per_weight']:.2f} bytes per weight",
    )
    if d["plan"]["quantized_weights"]:
        facts.add_row(
            "quantised",
            f"{d['plan']['quantized_weights']:,} weights in {d['precision']}, "
            f"{d['plan']['constant_bytes_per_quantized_weight']:.3f} bytes each, scales included",
        )
    facts.add_row("weights", "included" if d["weights"]["included"] else "left out: only the engine can run")
    facts.add_row("text", "yes" if d["text"] else "token ids only")
    console.print(facts)

    if len(d["shards"]) > 1:
        shards = Table("shard", "layers", "plan", "activations, prefill", "built in", "host memory", box=None)
        for shard in d["shards"]:
            first, last = shard["first_layer"], shard["first_layer"] + shard["num_layers"] - 1
            shards.add_row(
                shard["plan"],
                f"{first}..{last}",
                format_bytes(shard["bytes"]),
                format_bytes(next(iter(shard["activation_bytes"].values()))),
                f"{shard['build_seconds']:.0f} s",
                format_bytes(shard["peak_host_bytes"]),
            )
        console.print(shards)

    memory = Table("device memory", "bytes", "", title_justify="left", box=None)
    for part, size in d["device_memory_bytes"].items():
        memory.add_row(part.replace("_", " "), f"{size:,}", format_bytes(size))
    console.print(memory)

    products = Table("profile", "matrix products", "computed as", "in", "weights", "out", "layers", box=None)
    for (profile, roles, *types), layers in _by_role(d["gemms"]).items():
        products.add_row(profile, roles, *types, _runs(layers))
    console.print(products)


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
