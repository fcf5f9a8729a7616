"""Engines built for GPUs that are not here, and builds that fail."""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from support.engines import MAX_CONTEXT, PREFILL_CHUNK, BuiltEngine
from support.graphs import MiniGraph
from support.opened_files import opened

from sala_export.engine import build
from sala_export.engine.build import LOG_FILE, PLAN_FILE, REPORT_FILE, build_engine
from sala_export.engine.graph_reader import read_graph
from sala_export.engine.host import host_bytes_needed, plan_bytes
from sala_export.engine.job import BuildJob
from sala_export.engine.memory import MemoryUsage, predict_memory
from sala_export.engine.recipe import Target, load_recipe, load_target
from sala_export.engine.report import EngineReport
from sala_export.engine.request import EngineRequest
from sala_export.errors import BuildError, BundleError, RequestError
from sala_export.files import TextFile
from sala_export.installation import plugin_library

PLAIN = MiniGraph(mixers=("none",))
SMALL = EngineRequest.from_options(load_target("rtx5090"), max_context=1000, prefill_chunk=64)


def test_engine_reports_what_was_asked(engine: BuiltEngine) -> None:
    report = engine.report
    assert (report.flavour, report.tensorrt_version.split(".")[0]) == ("rtx", "1")
    assert report.compute_capabilities == {"rtx": ("8.6", "8.9", "12.0"), "a6000": ("8.6",)}[report.target]
    assert report.gpus[0] == "NVIDIA RTX A6000"
    assert (report.precision, report.max_context, report.prefill_chunk) == ("bf16", MAX_CONTEXT, PREFILL_CHUNK)
    assert [profile.name for profile in report.profiles] == ["prefill", "decode"]
    assert report.plan_bytes == engine.plan.stat().st_size
    assert (engine.plan.parent / LOG_FILE).is_file()


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
    log = (engine.plan.parent / LOG_FILE).read_text(encoding="utf-8")
    assert plugin_library().name in log
    for path in (engine.plan, plugin_library()):
        assert str(path.parent) not in log


def test_products_read_their_weights_as_inputs_in_bf16(engine: BuiltEngine) -> None:
    report, graph = engine.report, read_graph(engine.plan.parent / "engine.onnx")
    assert report.weights == graph.weights
    for profile in (0, 1):
        products = report.product_layers(profile)
        for i in range(3):
            for name in ("mixer.qkv_proj", "mixer.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
                layer = products[f"layers.{i}.{name}/Gemm"]
                assert {tensor.dtype for tensor in layer.outputs} == {"BFloat16"}
                assert f"layers.{i}.{name}.weight" in {tensor.name for tensor in report.weights_of(layer)}
                assert {tensor.dtype for tensor in report.weights_of(layer)} == {"BFloat16"}
                activations = report.activations_of(layer)
                assert activations
                assert not {tensor.name for tensor in activations} & {spec.name for spec in graph.weights}


def test_plan_holds_code_and_no_weights(engine: BuiltEngine) -> None:
    report, graph = engine.report, read_graph(engine.plan.parent / "engine.onnx")
    assert graph.weights_bytes > 8_000_000
    assert report.constant_bytes < 1000
    assert report.memory.weights_bytes == graph.weights_bytes + report.constant_bytes
    assert plugin_library().stat().st_size < report.plan_bytes < plugin_library().stat().st_size + (4 << 20)
    assert report.plan_bytes < plan_bytes(graph)


def test_estimate_of_activations_is_an_upper_one(engine: BuiltEngine) -> None:
    predicted = predict_memory(read_graph(engine.plan.parent / "engine.onnx"), _request_of(engine.report))
    measured = engine.report.memory
    assert measured.activation_bytes == max(engine.report.activation_bytes)
    assert engine.report.activation_bytes[1] < engine.report.activation_bytes[0]
    assert measured.activation_bytes <= predicted.activation_bytes
    same = ("key_value", "compressed_key", "state", "io")
    assert [measured.parts()[part] for part in same] == [predicted.parts()[part] for part in same]


def test_host_memory_of_a_build_stays_below_the_estimate(engine: BuiltEngine) -> None:
    assert 0 < engine.report.peak_host_bytes < host_bytes_needed(constant_bytes=0)


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


def test_report_is_written_beside_the_plan(engine: BuiltEngine, tmp_path: Path) -> None:
    written = engine.plan.parent / REPORT_FILE
    assert EngineReport.read(TextFile.read(opened(written))) == engine.report
    broken = tmp_path / REPORT_FILE
    broken.write_text(written.read_text(encoding="utf-8").replace('"plan_bytes"', '"plan_size"'), encoding="utf-8")
    with pytest.raises(BundleError, match=r"report\.json: plan_.*build the bundle again"):
        EngineReport.read(TextFile.read(opened(broken)))


def _request_of(report: EngineReport) -> EngineRequest:
    return EngineRequest.from_options(
        load_target(report.target), max_context=report.max_context, prefill_chunk=report.prefill_chunk
    )


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"engine.onnx", "constants.bin"}


def build_here(folder: Path, graph: MiniGraph = PLAIN, library: Path | None = None) -> EngineReport:
    """Write a graph to a folder and build it there."""
    return build_engine(SMALL, graph.write(folder), library, folder)


def test_graph_without_operators_needs_no_plugin_library(tmp_path: Path) -> None:
    report = build_here(tmp_path)
    assert report.plugin_libraries == ()
    assert report.operator_layers(0) == {}
    assert report.plan_bytes < 4 << 20
    assert left_in(tmp_path) == {PLAN_FILE, LOG_FILE, REPORT_FILE}


@pytest.mark.parametrize(
    ("gpu", "precision", "types"),
    [("rtx", "int8", ("Int8", "Int8")), ("rtx4090,rtx5090", "fp8", ("FP8", "FP8")), ("rtx", "int4", None)],
)
def test_quantised_products_are_reported_with_their_types(
    tmp_path: Path, gpu: str, precision: str, types: tuple[str, str] | None
) -> None:
    request = EngineRequest.from_options(load_target(gpu), precision=precision, max_context=1000, prefill_chunk=64)
    graph = MiniGraph(mixers=("none",), precision=precision).write(tmp_path)
    report = build_engine(request, graph, None, tmp_path)
    assert report.quantized_parameters == 3 * 128 * 384
    if types is None:
        # Codes of 4 bits, and a scale of 16 for each 128; each constant is padded to 256 bytes.
        size = report.quantized_parameters * (4 + 16 / 128) / 8
        assert size <= report.constant_bytes < size + (32 << 10)
        assert report.plan_bytes > report.constant_bytes
        return
    for profile in (0, 1):
        for name in ("gate_up_proj", "down_proj"):
            product = report.product_layers(profile)[f"layers.0.mlp.{name}/Gemm"]
            (x,), (weight,) = report.activations_of(product), report.weights_of(product)
            assert (x.dtype, weight.dtype) == types
            assert weight.name == f"layers.0.mlp.{name}.weight"


def test_graph_with_operators_needs_a_plugin_library(tmp_path: Path) -> None:
    lightning = MiniGraph(mixers=("lightning",))
    with pytest.raises(RequestError, match=r"a plugin library is needed"):
        build_here(tmp_path, lightning)
    with pytest.raises(RequestError, match=r"none\.so does not exist: build the plugin library first"):
        build_here(tmp_path, lightning, tmp_path / "none.so")
    assert left_in(tmp_path) == set()


def test_file_that_is_no_library_is_named(tmp_path: Path) -> None:
    library = tmp_path / "libsala_plugins.so"
    library.write_text("no library")
    with pytest.raises(BuildError, match=r"cannot load .*libsala_plugins\.so: .*file too short"):
        build_here(tmp_path, MiniGraph(mixers=("lightning",)), library)
    assert left_in(tmp_path) == {"libsala_plugins.so", LOG_FILE}


def test_precision_of_the_graph_must_be_that_of_the_request(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"computes in float32, but --precision bf16 was asked for"):
        build_here(tmp_path, MiniGraph(mixers=("none",), dtype=onnx.TensorProto.FLOAT))


def test_folder_of_the_plan_must_exist(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"none is not a directory: create it before building an engine there"):
        build_engine(SMALL, PLAIN.write(tmp_path), None, tmp_path / "none")


def test_context_beyond_the_gpu_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    graph = MiniGraph(mixers=("sparse",)).write(tmp_path)
    request = EngineRequest.from_options(load_target("rtx4090"), max_context=1 << 30)
    with pytest.raises(RequestError, match=r"--max-context 1024M needs .*the largest that fits is --max-context \d+K"):
        build_engine(request, graph, plugin_library(), tmp_path)
    assert left_in(tmp_path) == set()


def test_constants_beyond_the_memory_of_this_machine_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sala_export.engine.host.available_host_bytes", lambda: 1 << 30)
    request = EngineRequest.from_options(load_target("rtx5090"), precision="int4", max_context=1000, prefill_chunk=64)
    graph = MiniGraph(mixers=("none",), precision="int4").write(tmp_path)
    with pytest.raises(RequestError, match=r"building the engine needs about 1\.00 GiB of memory, 1\.00 GiB are"):
        build_engine(request, graph, None, tmp_path)
    assert left_in(tmp_path) == set()


def test_account_with_measured_numbers_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = MemoryUsage(**dict.fromkeys(MemoryUsage.__slots__, 0))
    monkeypatch.setattr(build, "predict_memory", lambda graph, request: nothing)
    card = replace(load_recipe("rtx5090"), memory_bytes=1000, reserve_bytes=1)
    with pytest.raises(RequestError, match=r"NVIDIA GeForce RTX 5090 has 1000 B \(weights"):
        build_engine(replace(SMALL, target=Target.of(card)), PLAIN.write(tmp_path), None, tmp_path)
    assert left_in(tmp_path) == {LOG_FILE}


def test_node_that_tensorrt_does_not_know_is_named(tmp_path: Path) -> None:
    path = PLAIN.write(tmp_path)
    model = onnx.load(path)
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "Sigmund"
    onnx.save(model, path)
    with pytest.raises(
        BuildError, match=r"cannot read engine\.onnx: .*layers\.0\.mlp\.sigmoid.*Sigmund.*log: .*build\.log"
    ):
        build_engine(SMALL, path, None, tmp_path)
    assert left_in(tmp_path) == {LOG_FILE}


def test_abort_inside_a_native_library_is_one_error(tmp_path: Path) -> None:
    source, library = tmp_path / "abort.cc", tmp_path / "libabort.so"
    source.write_text(
        "#include <cstdio>\n#include <cstdlib>\n"
        '__attribute__((constructor)) static void die() { std::fputs("broken driver\\n", stderr); std::abort(); }\n'
    )
    subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    with pytest.raises(
        BuildError, match=r"the build process was ended by SIGABRT; last of .*build\.log: broken driver$"
    ):
        build_here(tmp_path, MiniGraph(mixers=("lightning",)), library)
    assert left_in(tmp_path) == {"abort.cc", "libabort.so", LOG_FILE}
    log = (tmp_path / LOG_FILE).read_text(encoding="utf-8")
    assert "Trying to load shared library libabort.so" in log, "what came before the end is kept"


def test_failure_in_the_callers_callback_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def remember(*args: object, **options: object) -> subprocess.Popen[bytes]:
        workers.append(start(*args, **options))  # type: ignore[call-overload]
        return workers[-1]

    def interrupt(phase: str, done: int, total: int, unit: str = "steps") -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", remember)
    with pytest.raises(KeyboardInterrupt):
        build_engine(SMALL, PLAIN.write(tmp_path), None, tmp_path, on_progress=interrupt)
    assert [worker.poll() for worker in workers] == [-9]
    assert left_in(tmp_path) == {LOG_FILE}


def test_error_that_nobody_foresaw_ends_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_json = BuildJob.to_json
    monkeypatch.setattr(BuildJob, "to_json", lambda job: to_json(job).replace(b'"profiles"', b'"profile"'))
    with pytest.raises(BuildError, match=r"the build process ended with status 1; last of .*build\.log: .*pydantic"):
        build_here(tmp_path)
    assert "Traceback" in (tmp_path / LOG_FILE).read_text(encoding="utf-8")


def test_other_targets_than_those_asked_for_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = build._run_worker
    monkeypatch.setattr(build, "_run_worker", lambda *args: replace(run(*args), compute_capabilities=("8.6",)))
    with pytest.raises(BuildError, match=r"build\.log: TensorRT built for 8\.6, asked was 12\.0"):
        build_here(tmp_path)
    assert left_in(tmp_path) == {LOG_FILE}
