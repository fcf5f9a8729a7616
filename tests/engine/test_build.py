"""Engines built for GPUs that are not here, and builds that fail."""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from sala_export.engine.sharding import host_bytes_needed
from support.engines import MAX_CONTEXT, PREFILL_CHUNK, BuiltEngine
from support.graphs import MiniGraph

from sala_export.engine import build
from sala_export.engine.build import build_engine
from sala_export.engine.graph import read_graph
from sala_export.engine.job import BuildJob
from sala_export.engine.memory import DeviceMemory, predict_memory
from sala_export.engine.recipe import load_recipe
from sala_export.engine.report import EngineReport
from sala_export.engine.request import EngineRequest
from sala_export.errors import BuildError, BundleError, RequestError
from sala_export.native_libraries import plugin_library

PLAIN = MiniGraph(mixers=("none",))
SMALL = EngineRequest.from_options(load_recipe("rtx5090"), max_context=1000, prefill_chunk=64)


def test_engine_reports_what_was_asked(engine: BuiltEngine) -> None:
    report = engine.report
    assert (report.flavour, report.tensorrt_version.split(".")[0]) == ("rtx", "1")
    assert report.compute_capability == {"rtx5090": "12.0", "a6000": "8.6"}[report.recipe]
    assert (report.precision, report.max_context, report.prefill_chunk) == ("bf16", MAX_CONTEXT, PREFILL_CHUNK)
    assert [profile.name for profile in report.profiles] == ["prefill", "decode"]
    assert report.plan_bytes == engine.plan.stat().st_size
    assert (engine.plan.parent / "engine.log").is_file()


def test_operators_are_plugin_layers_in_both_profiles(engine: BuiltEngine) -> None:
    for profile in (0, 1):
        assert engine.report.operator_layers(profile) == {
            "LightningAttention": ("layers.0.mixer.attention", "layers.2.mixer.attention"),
            "InfLLMv2Attention": ("layers.1.mixer.attention",),
        }


def test_plugin_library_is_inside_the_plan(engine: BuiltEngine) -> None:
    library = plugin_library()
    assert engine.report.plugin_libraries == (library.name,)
    assert library.read_bytes()[:4096] in engine.plan.read_bytes()


def test_log_names_files_but_no_folder_of_this_machine(engine: BuiltEngine) -> None:
    log = (engine.plan.parent / "engine.log").read_text(encoding="utf-8")
    for path in (engine.plan.parent / "weights.bin", plugin_library()):
        assert path.name in log
        assert str(path.parent) not in log


def test_projections_are_fused_with_what_follows_in_bf16(engine: BuiltEngine) -> None:
    products = {
        node: layer
        for layer in engine.report.layers
        if layer.profile == 0 and layer.type in ("gemm", "runtime_fusion")
        for node in layer.onnx_nodes
    }
    for i in range(3):
        for name in ("mixer.qkv_proj", "mixer.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
            assert products[f"layers.{i}.{name}"].outputs[0].dtype == "BFloat16"
        assert products[f"layers.{i}.mixer.o_proj"] is products[f"layers.{i}.mixer.add"]
    # Four weights packed by Concat are one product of 4 heads x head_dim columns.
    assert products["layers.0.mixer.qkv_proj"].constants[0].shape[-1] == 4 * 32 * 64


def test_every_weight_is_stored_once_for_both_profiles(engine: BuiltEngine) -> None:
    # TensorRT pads each constant to 256 bytes.
    report = engine.report
    assert report.graph_weights_bytes <= report.memory.weights_bytes < report.graph_weights_bytes + (64 << 10)


def test_estimate_of_activations_is_an_upper_one(engine: BuiltEngine) -> None:
    predicted = predict_memory(read_graph(engine.plan.parent), _request_of(engine.report))
    measured = engine.report.memory
    assert measured.activation_bytes == max(engine.report.activation_bytes)
    assert engine.report.activation_bytes[1] < engine.report.activation_bytes[0]
    assert measured.activation_bytes <= predicted.activation_bytes
    same = ("key_value", "compressed_key", "state", "io", "reserve")
    assert [measured.parts()[part] for part in same] == [predicted.parts()[part] for part in same]


def test_host_memory_of_a_build_stays_below_what_is_asked_for(engine: BuiltEngine) -> None:
    assert 0 < engine.report.peak_host_bytes < host_bytes_needed(engine.report.graph_weights_bytes)


def test_progress_comes_by_phases_that_end(engine: BuiltEngine) -> None:
    phases = list(dict.fromkeys(phase for phase, _, _ in engine.progress))
    assert phases[0] == "Parsing graph"
    assert phases[-1] == "Writing plan"
    assert len(phases) > 3
    turns = [phase for phase, _ in itertools.groupby(phase for phase, _, _ in engine.progress)]
    assert turns == phases, "phases come one by one"
    for phase in phases:
        steps = [done for name, done, _ in engine.progress if name == phase]
        assert steps[-1] == next(total for name, _, total in engine.progress if name == phase)


def test_report_survives_json(engine: BuiltEngine, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(engine.report.to_json(), encoding="utf-8")
    assert EngineReport.read(path) == engine.report
    path.write_text(path.read_text(encoding="utf-8").replace('"plan_bytes"', '"plan_size"'), encoding="utf-8")
    with pytest.raises(BundleError, match=r"report\.json: plan_.*build the bundle again"):
        EngineReport.read(path)


def _request_of(report: EngineReport) -> EngineRequest:
    return EngineRequest.from_options(
        load_recipe(report.recipe), max_context=report.max_context, prefill_chunk=report.prefill_chunk
    )


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"model.onnx", "weights.bin"}


def test_graph_without_operators_needs_no_plugin_library(tmp_path: Path) -> None:
    PLAIN.write(tmp_path)
    report = build_engine(
        SMALL, tmp_path, tmp_path / "engine.plan", log_path=tmp_path / "engine.log", plugin_library=None
    )
    assert report.plugin_libraries == ()
    assert report.operator_layers(0) == {}
    assert left_in(tmp_path) == {"engine.plan", "engine.log"}


def test_graph_with_operators_needs_one(tmp_path: Path) -> None:
    MiniGraph(mixers=("lightning",)).write(tmp_path)
    with pytest.raises(RequestError, match=r"a plugin library is needed"):
        build_engine(SMALL, tmp_path, tmp_path / "engine.plan", log_path=tmp_path / "engine.log", plugin_library=None)
    with pytest.raises(RequestError, match=r"none\.so does not exist: build the plugin library first"):
        build_engine(
            SMALL,
            tmp_path,
            tmp_path / "engine.plan",
            log_path=tmp_path / "engine.log",
            plugin_library=tmp_path / "none.so",
        )
    assert left_in(tmp_path) == set()


def test_file_that_is_no_library_is_named(tmp_path: Path) -> None:
    MiniGraph(mixers=("lightning",)).write(tmp_path)
    library = tmp_path / "libsala_plugins.so"
    library.write_text("no library")
    with pytest.raises(BuildError, match=r"cannot load .*libsala_plugins\.so: .*file too short"):
        build_engine(
            SMALL, tmp_path, tmp_path / "engine.plan", log_path=tmp_path / "engine.log", plugin_library=library
        )
    assert left_in(tmp_path) == {"libsala_plugins.so", "engine.log"}


def test_precision_of_the_graph_must_be_that_of_the_request(tmp_path: Path) -> None:
    MiniGraph(mixers=("none",), dtype=onnx.TensorProto.FLOAT).write(tmp_path)
    with pytest.raises(RequestError, match=r"computes in float32, but --precision bf16 was asked for"):
        build_engine(SMALL, tmp_path, tmp_path / "engine.plan", log_path=tmp_path / "engine.log", plugin_library=None)


def test_folder_of_the_plan_must_exist(tmp_path: Path) -> None:
    PLAIN.write(tmp_path)
    with pytest.raises(RequestError, match=r"none is not a directory: create it before writing engine\.plan there"):
        build_engine(
            SMALL, tmp_path, tmp_path / "none" / "engine.plan", log_path=tmp_path / "engine.log", plugin_library=None
        )


def test_context_beyond_the_gpu_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    MiniGraph(mixers=("sparse",)).write(tmp_path)
    request = EngineRequest.from_options(load_recipe("rtx4090"), max_context=1 << 30)
    with pytest.raises(RequestError, match=r"--max-context 1024M needs .*the largest that fits is --max-context \d+K"):
        build_engine(
            request,
            tmp_path,
            tmp_path / "engine.plan",
            log_path=tmp_path / "engine.log",
            plugin_library=plugin_library(),
        )
    assert left_in(tmp_path) == set()


def test_account_with_measured_numbers_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PLAIN.write(tmp_path)
    nothing = DeviceMemory(**dict.fromkeys(DeviceMemory.__slots__, 0))
    monkeypatch.setattr(build, "predict_memory", lambda graph, request: nothing)
    tiny = replace(SMALL, recipe=replace(SMALL.recipe, memory_bytes=1000))
    with pytest.raises(RequestError, match=r"NVIDIA GeForce RTX 5090 has 1000 B \(weights"):
        build_engine(tiny, tmp_path, tmp_path / "engine.plan", log_path=tmp_path / "engine.log", plugin_library=None)
    assert left_in(tmp_path) == {"engine.log"}


def test_node_that_tensorrt_does_not_know_is_named(tmp_path: Path) -> None:
    path = PLAIN.write(tmp_path)
    model = onnx.load(path, load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "Sigmund"
    onnx.save(model, path)
    with pytest.raises(
        BuildError, match=r"cannot read model\.onnx: .*layers\.0\.mlp\.sigmoid.*Sigmund.*log: .*engine\.log"
    ):
        build_engine(SMALL, tmp_path, tmp_path / "engine.plan", log_path=tmp_path / "engine.log", plugin_library=None)
    assert left_in(tmp_path) == {"engine.log"}


def test_abort_inside_a_native_library_is_one_error(tmp_path: Path) -> None:
    MiniGraph(mixers=("lightning",)).write(tmp_path)
    source, library = tmp_path / "abort.cc", tmp_path / "libabort.so"
    source.write_text(
        "#include <cstdio>\n#include <cstdlib>\n"
        '__attribute__((constructor)) static void die() { std::fputs("broken driver\\n", stderr); std::abort(); }\n'
    )
    subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    with pytest.raises(
        BuildError, match=r"the build process was ended by SIGABRT; last of .*engine\.log: broken driver$"
    ):
        build_engine(
            SMALL, tmp_path, tmp_path / "engine.plan", log_path=tmp_path / "engine.log", plugin_library=library
        )
    assert left_in(tmp_path) == {"abort.cc", "libabort.so", "engine.log"}
    log = (tmp_path / "engine.log").read_text(encoding="utf-8")
    assert "Trying to load shared library libabort.so" in log, "what came before the end is kept"


def test_failure_in_the_callers_callback_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PLAIN.write(tmp_path)
    workers: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def remember(*args: object, **options: object) -> subprocess.Popen[bytes]:
        workers.append(start(*args, **options))  # type: ignore[call-overload]
        return workers[-1]

    def interrupt(phase: str, done: int, total: int, unit: str = "steps") -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", remember)
    with pytest.raises(KeyboardInterrupt):
        build_engine(
            SMALL,
            tmp_path,
            tmp_path / "engine.plan",
            log_path=tmp_path / "engine.log",
            plugin_library=None,
            on_progress=interrupt,
        )
    assert [worker.poll() for worker in workers] == [-9]
    assert left_in(tmp_path) == {"engine.log"}


def test_error_that_nobody_foresaw_ends_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PLAIN.write(tmp_path)
    to_json = BuildJob.to_json
    monkeypatch.setattr(BuildJob, "to_json", lambda job: to_json(job).replace(b'"profiles"', b'"profile"'))
    with pytest.raises(BuildError, match=r"the build process ended with status 1; last of .*engine\.log: .*pydantic"):
        build_engine(SMALL, tmp_path, tmp_path / "engine.plan", log_path=tmp_path / "engine.log", plugin_library=None)
    assert "Traceback" in (tmp_path / "engine.log").read_text(encoding="utf-8")
