"""Quantised checkpoints as files: their layout, resumption to the same bytes, and what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.calibration import LAYERS, quantized_tiny, samples_file
from support.checkpoints import copy_checkpoint, edit_json, tiny_checkpoint
from support.opened_files import header
from support.quantized_reference import dequantized, round_mxfp8, stored_tensors
from support.two_models import write_over

from sala_export.calibration.layer import Algorithm, QuantizationRecipe
from sala_export.calibration.quantize import quantize_checkpoint
from sala_export.calibration.samples import SampleRequest
from sala_export.checkpoint.quantization import SCHEMES
from sala_export.checkpoint.random_checkpoint import write_random_checkpoint
from sala_export.checkpoint.reader import Checkpoint
from sala_export.cli.app import run
from sala_export.errors import CheckpointError, RequestError, UnsupportedError
from sala_export.specs import Precision

SAMPLES = {"samples": 2, "sequence_length": 40}


def quantize(source: Path, output: Path, precision: Precision = Precision.FP8, **options: object) -> None:
    recipe = QuantizationRecipe.from_options(precision, **options)
    quantize_checkpoint(Checkpoint.open(source), recipe, SampleRequest(file=samples_file(), **SAMPLES), output)


@pytest.mark.parametrize("precision", SCHEMES)
def test_checkpoint_has_every_tensor_and_opens(precision: Precision) -> None:
    path = quantized_tiny(precision)
    opened = Checkpoint.open(path)
    assert opened.precision is precision
    gates = {"z_proj", "o_gate"}
    taken = gates if precision is Precision.MXFP8 else set()
    # A layer has one gate.
    assert len(opened.quantized) == (7 + bool(taken)) * LAYERS
    assert {name.split(".")[-2] for name in opened.locations} >= {"lm_head", "embed_tokens"} | (gates - taken)
    index = json.loads((path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    stored = {name: shard.name for shard in path.glob("*.safetensors") for name in header(shard)}
    assert index["weight_map"] == stored
    assert index["metadata"]["total_size"] == sum(
        tensor.length for shard in path.glob("*.safetensors") for tensor in header(shard).values()
    )
    source = tiny_checkpoint(LAYERS)
    assert (path / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    fields = json.loads((path / "config.json").read_text(encoding="utf-8"))
    ignore = ["lm_head"] if taken else ["re:.*z_proj", "re:.*o_gate", "lm_head"]
    assert fields.pop("quantization_config")["ignore"] == ignore
    assert fields == json.loads((source / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.NVFP4])
def test_packs_share_scales(precision: Precision) -> None:
    opened = Checkpoint.open(quantized_tiny(precision))
    mixer = [f"model.layers.0.self_attn.{role}.weight" for role in ("q_proj", "k_proj", "v_proj")]
    for pack in (mixer, [f"model.layers.1.mlp.{role}.weight" for role in ("gate_proj", "up_proj")]):
        found = [opened.quantized[name] for name in pack]
        assert len({weight.input_scale for weight in found}) == 1
        assert len({weight.global_scale for weight in found}) == 1
        if precision is Precision.FP8:
            assert len({weight.scales().item() for weight in found}) == 1


@pytest.mark.parametrize(
    ("precision", "error"),
    # Of the weights alone: rms of rounding a normal number to the format.
    [
        (Precision.FP8, 0.03),
        (Precision.MXFP8, 0.03),
        (Precision.INT8, 0.03),
        (Precision.INT4, 0.2),
        (Precision.NVFP4, 0.12),
    ],
)
def test_weights_are_near_the_original_ones(precision: Precision, error: float) -> None:
    found, source = stored_tensors(quantized_tiny(precision, "rtn")), stored_tensors(tiny_checkpoint(LAYERS))
    for module in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        original = source[f"{module}.weight"].to(torch.float32)
        wide = dequantized(found, module, SCHEMES[precision].format)
        assert float((wide - original).norm() / original.norm()) < error


def test_gates_are_quantised_if_asked(tmp_path: Path) -> None:
    quantize(tiny_checkpoint(LAYERS), tmp_path / "out", include_gates=True)
    opened = Checkpoint.open(tmp_path / "out")
    assert "model.layers.0.self_attn.o_gate.weight" in opened.quantized
    assert "model.layers.1.self_attn.z_proj.weight" in opened.quantized
    assert opened.quantization is not None
    assert opened.quantization.ignore == ("lm_head",)


_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from sala_export.calibration import quantize as module
from sala_export.calibration.layer import QuantizationRecipe
from sala_export.calibration.samples import SampleRequest
from sala_export.checkpoint.random_checkpoint import write_random_checkpoint
from sala_export.checkpoint.reader import Checkpoint

source, samples, output, function, kill_at, threads = sys.argv[1:]
torch.set_num_threads(int(threads))  # sums of another number of threads round differently, so they start afresh
calls = 0
write = getattr(module, function)

def counted(path, content):
    global calls
    calls += 1
    if calls == int(kill_at):
        # In the middle of the file.
        path.with_name(f"{path.name}.new" if function == "_write_whole" else path.name).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)

setattr(module, function, counted)
request = SampleRequest(file=Path(samples), samples=2, sequence_length=40)
recipe = QuantizationRecipe.from_options("int8")
module.quantize_checkpoint(Checkpoint.open(Path(source)), recipe, request, Path(output))
"""


# Shards and rows are: embedding, rows; then rows and shard of each layer; then the last shard. The first run dies in
# the second layer's, the other in config.json, which is written when all else is there.
@pytest.mark.parametrize(("function", "kill_at", "finished"), [("_write_whole", 6, 2), ("_write_json", 2, LAYERS + 1)])
def test_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, function: str, kill_at: int, finished: int) -> None:
    source, whole, output = tiny_checkpoint(LAYERS), tmp_path / "whole", tmp_path / "out"
    quantize(source, whole, Precision.INT8)
    arguments = [
        sys.executable,
        "-c",
        _KILLED,
        str(source),
        str(samples_file()),
        str(output),
        function,
        str(kill_at),
        str(torch.get_num_threads()),
    ]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert not output.exists()
    pattern = f"model-0000[1-{finished}]-*.safetensors"
    shards = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.partial" / "content").glob(pattern)}
    assert len(shards) == finished
    quantize(source, output, Precision.INT8)
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in whole.iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes(), path.name
    # What was finished was not done again.
    assert {path.name: path.stat().st_mtime_ns for path in output.glob(pattern)} == shards
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_other_weights_of_the_same_size_and_time_start_afresh(tmp_path: Path) -> None:
    source, other = tmp_path / "source", tmp_path / "other"
    for seed, path in enumerate((source, other)):
        write_random_checkpoint(path, "tiny", layers=2, seed=seed)
    quantize(other, tmp_path / "whole")

    def stop(phase: str, done: int, total: int, unit: str = "steps") -> None:
        if phase == "quantize" and 2 * done > total:
            raise KeyboardInterrupt

    recipe, samples = QuantizationRecipe.from_options(Precision.FP8), SampleRequest(file=samples_file(), **SAMPLES)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(Checkpoint.open(source), recipe, samples, tmp_path / "out", on_progress=stop)
    assert list((tmp_path / ".out.partial" / "content").glob("model-00002-*"))
    write_over(other, source)
    quantize(source, tmp_path / "out")
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_command_writes_a_checkpoint_and_says_what_it_took(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(tiny_checkpoint(1))
    options = ["--precision", "fp8", "--calibration", str(samples_file()), "--samples", "1"]
    assert run(["quantize", "--model", source, *options]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == f"{Path(source).name}-fp8"
    assert "peak memory" in captured.err
    assert Checkpoint.open(tmp_path / captured.out.strip()).precision is Precision.FP8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "fp8", "--calibration", "empty.jsonl"], "empty.jsonl gives 0 tokens"),
        (["--precision", "fp5", "--calibration", "empty.jsonl"], "'fp5' is not one of"),
        (["--precision", "fp8", "--calibration", "empty.jsonl", "--algorithm", "awq"], "--algorithm awq: fp8"),
        (["--precision", "fp8", "--calibration", "empty.jsonl", "--sequence-length", "900000"], "900000 is more than"),
        (["--precision", "fp8", "--calibration", "empty.jsonl", "-o", "none/out"], "is not a directory: create it"),
        (["--precision", "mxfp8", "--calibration", "empty.jsonl"], "--calibration: mxfp8 is quantised without text"),
        (
            ["--precision", "mxfp8", "--samples", "3", "--sequence-length", "9"],
            "--samples and --sequence-length: mxfp8",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("", encoding="utf-8")
    assert run(["quantize", "--model", str(tiny_checkpoint(1)), *options]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert captured.out == ""
    assert len(lines) == 1
    assert message in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["empty.jsonl"]


def test_quantised_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"is quantised to fp8 already: give the original checkpoint"):
        quantize(quantized_tiny(Precision.FP8), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_algorithm_of_another_precision_is_refused() -> None:
    with pytest.raises(RequestError, match=r"--algorithm gptq: fp8 is quantised by rtn; leave it out for rtn"):
        QuantizationRecipe.from_options("fp8", algorithm="gptq")
    with pytest.raises(RequestError, match=r"--algorithm best: expected one of rtn, smoothquant, awq, gptq"):
        QuantizationRecipe.from_options("int4", algorithm="best")
    with pytest.raises(RequestError, match=r"--precision int3: expected one of fp8, mxfp8, int8, int4, nvfp4"):
        QuantizationRecipe.from_options("int3")
    assert QuantizationRecipe.from_options("int4").algorithm is Algorithm.AWQ


def test_inputs_that_make_no_whole_group_are_refused(tmp_path: Path) -> None:
    source = copy_checkpoint(tiny_checkpoint(1), tmp_path / "odd")
    shards = sorted(source.glob("*.safetensors"))
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    mlp = "model.layers.0.mlp."
    tensors |= {
        f"{mlp}{role}.weight": tensors[f"{mlp}{role}.weight"][:200].clone() for role in ("gate_proj", "up_proj")
    }
    tensors[f"{mlp}down_proj.weight"] = tensors[f"{mlp}down_proj.weight"][:, :200].clone()
    for file in (*shards, source / "model.safetensors.index.json"):
        file.unlink()
    save_file(tensors, source / "model.safetensors")
    edit_json(source / "config.json", lambda fields: fields.update(intermediate_size=200))
    with pytest.raises(UnsupportedError, match=r"down_proj.weight has 200 inputs, but int4 needs a multiple of 128"):
        quantize(source, tmp_path / "out", Precision.INT4)
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.MXFP8])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, precision: Precision) -> None:
    source = copy_checkpoint(tiny_checkpoint(1), tmp_path / "bad")
    name = "model.layers.0.self_attn.q_proj.weight"
    shard = next(path for path in source.glob("*.safetensors") if name in header(path))
    tensors = load_file(shard)
    tensors[name][3, 4] = float("nan")
    save_file(tensors, shard)
    with pytest.raises(CheckpointError, match=r"q_proj.weight holds values that are not finite"):
        quantize(source, tmp_path / "out", precision)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_mxfp8_rounds_each_weight_of_any_float_type_by_itself(tmp_path: Path, dtype: torch.dtype) -> None:
    source = copy_checkpoint(tiny_checkpoint(LAYERS), tmp_path / "source")
    for shard in source.glob("*.safetensors"):
        save_file({name: tensor.to(dtype) for name, tensor in load_file(shard).items()}, shard)
    quantize(source, tmp_path / "out", Precision.MXFP8, include_gates=False)
    found, original = stored_tensors(tmp_path / "out"), stored_tensors(source)
    for name, weight in original.items():
        if f"{name}_scale" in found:
            values = dequantized(found, name.removesuffix(".weight"), "mxfp8-quantized")
            assert torch.equal(values, round_mxfp8(weight.to(torch.float32))), name
        else:
            assert torch.equal(found[name], weight), name
    rounded = {name.split(".")[-3] for name in found if name.endswith("weight_scale")}
    assert rounded == {"self_attn", "mlp"}
    assert not any("z_proj.weight_scale" in name or "o_gate.weight_scale" in name for name in found)


def test_interrupted_rounding_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source, output = Checkpoint.open(tiny_checkpoint(LAYERS)), tmp_path / "out"
    recipe = QuantizationRecipe.from_options("mxfp8")

    def stop(phase: str, done: int, total: int, unit: str = "steps") -> None:
        if phase == "quantize" and 4 * done > 3 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, recipe, SampleRequest(), output, on_progress=stop)
    (first,) = (tmp_path / ".out.partial" / "content").glob("model-00002-*")
    written = first.stat().st_mtime_ns
    quantize_checkpoint(source, recipe, SampleRequest(), output)
    assert (output / first.name).stat().st_mtime_ns == written
    assert {path.name: path.read_bytes() for path in output.iterdir()} == {
        path.name: path.read_bytes() for path in quantized_tiny(Precision.MXFP8).iterdir()
    }
