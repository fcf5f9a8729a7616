"""Engines of a cut model: one plugin library for all, and what a user sees of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.bundles import tiny_shards
from support.checkpoints import tiny_checkpoint

from sala_export.bundle.reader import Bundle
from sala_export.cli.app import run
from sala_export.engine.report import EngineReport
from sala_export.errors import DiskFullError

LOAD = """
import sys
import tensorrt_rtx as trt

class Silent(trt.ILogger):
    def log(self, severity, message):
        pass

logger = Silent()
runtime = trt.Runtime(logger)
runtime.engine_host_code_allowed = True
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        assert runtime.deserialize_cuda_engine(file.read()) is None, "this machine has a driver: run the gpu tests"
    print(sorted(creator.name for creator in runtime.get_plugin_registry().all_creators))
"""


def reports(bundle: Bundle) -> list[EngineReport]:
    return [EngineReport.read(bundle.directory / shard.report) for shard in bundle.manifest.engine.shards]


def test_shards_follow_each_other() -> None:
    manifest = Bundle.open(tiny_shards()).manifest
    shards = manifest.engine.shards
    assert [(shard.first_layer, shard.num_layers) for shard in shards] == [(0, 2), (2, 1), (3, 2)]
    taken = [spec for shard in shards for spec in shard.inputs if spec in manifest.graph.inputs]
    assert {spec.name for spec in taken} == {spec.name for spec in manifest.graph.inputs}
    caches = [spec.name for spec in taken if spec.name.startswith("past_key_values.")]
    assert len(caches) == len(set(caches)), "every cache belongs to one shard"
    assert [shard.outputs[0].name for shard in shards] == ["hidden_states.2", "hidden_states.3", "logits"]


def test_account_adds_weights_and_shares_activations() -> None:
    bundle = Bundle.open(tiny_shards())
    account = bundle.manifest.engine.device_memory_bytes
    built = reports(bundle)
    assert account["weights"] == sum(report.memory.weights_bytes for report in built)
    assert account["activation"] == max(report.memory.activation_bytes for report in built)
    for part in ("key_value", "compressed_key", "state"):
        assert account[part] == sum(report.memory.parts()[part] for report in built)


def test_every_operator_is_a_plugin_layer_of_its_shard(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tiny_shards()), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    for profile in ("prefill", "decode"):
        computed = sorted(node for nodes in told["plugin_layers"][profile].values() for node in nodes)
        assert computed == sorted(operator["node"] for operator in told["operators"])
    assert [shard["num_layers"] for shard in told["shards"]] == [2, 1, 2]
    assert told["plan"]["bytes"] == sum((tiny_shards() / s["plan"]).stat().st_size for s in told["shards"])


def test_tables_show_each_shard(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tiny_shards())]) == 0
    text = capsys.readouterr().out
    for expected in ("in 3 shards", "engine/shard-02.plan", "3..4", "inside engine/shard-00.plan"):
        assert expected in text


def test_first_plan_alone_carries_the_plugin_library_and_is_enough() -> None:
    """A runtime keeps the operators of a library that it found in a plan, for every plan that it loads afterwards.

    Seen without a GPU: the library is loaded before the driver is asked for, and deserialising fails only then.
    """
    bundle = Bundle.open(tiny_shards())
    plans = [str(bundle.directory / shard.plan) for shard in bundle.manifest.engine.shards]
    assert [shard.plugin_library_serialized for shard in bundle.manifest.engine.shards] == [True, False, False]
    loaded = subprocess.run([sys.executable, "-c", LOAD, *plans], capture_output=True, text=True, timeout=120)
    if "this machine has a driver" in loaded.stderr:
        pytest.skip("the plans were loaded in full")
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.splitlines() == ["['InfLLMv2Attention', 'LightningAttention']"] * 3
    alone = subprocess.run([sys.executable, "-c", LOAD, plans[1]], capture_output=True, text=True, timeout=120)
    assert alone.stdout.splitlines() == ["[]"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shards", "6"], ["--shards 6: expected 1 to 5"]),
        (["--shards", "0"], ["--shards 0: expected 1 to 5"]),
        (["--host-memory", "100M"], ["building layer", "100.00 MiB may be used", "raise --host-memory"]),
        (["--host-memory", "12"], ["--host-memory", "'12' is not a size of memory"]),
    ],
)
def test_bad_options_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], words: list[str]
) -> None:
    output = str(tmp_path / "out.sala")
    assert run(["build", "--gpu", "rtx5090", "--model", str(tiny_checkpoint()), "-o", output, *options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


def test_budget_decides_the_number_of_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    from sala_export.engine.sharding import choose_shards, host_bytes_needed

    sizes = [shard.memory.weights_bytes for shard in reports(Bundle.open(tiny_shards()))]
    assert len(choose_shards(sizes, host_bytes_needed(sum(sizes)))) == 1
    assert len(choose_shards(sizes, host_bytes_needed(sum(sizes)) - 1)) > 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 48 MB: the tiny bundle needs about 50 when its weights are copied."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_disk_that_fills_up_while_building_is_one_line_and_leaves_nothing(
    small_disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else takes the space after it was checked: the worker finds no room for a plan."""
    from sala_export import pipeline
    from sala_export.engine import build

    for module in (pipeline, build):
        monkeypatch.setattr(module, "check_disk", lambda *_: None)
    output = small_disk / "out.sala"
    arguments = ["build", "--gpu", "rtx5090", "--model", str(tiny_checkpoint()), "-o", str(output), "--shards", "3"]
    assert run([*arguments, "--max-context", "4K", "--prefill-chunk", "256"]) in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "No space left on device" in line
    assert "free some space" in line
    assert list(small_disk.iterdir()) == []


def test_disk_that_is_too_small_is_refused_before_anything_is_written(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = small_disk / "out.sala"
    assert run(["build", "--gpu", "rtx5090", "--model", str(tiny_checkpoint()), "-o", str(output)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"the disk of {small_disk}" in line
    assert list(small_disk.iterdir()) == []
    assert issubclass(DiskFullError, Exception)
