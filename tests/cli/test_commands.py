"""The commands as a user runs them, in one process; `tests/e2e` runs the installed program."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bundles import tiny_bundle
from support.checkpoints import copy_checkpoint, edit_json, tiny_checkpoint

from sala_export.cli.app import run

Capture = pytest.CaptureFixture[str]


def fails(capsys: Capture, arguments: list[str], *, code: int = 2) -> str:
    """Run, expect failure; returns the one line on stderr."""
    capsys.readouterr()
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    return lines[0]


def test_program_starts_without_what_only_some_commands_need() -> None:
    heavy = {"onnx", "onnx_ir", "pydantic", "tokenizers", "torch", "triton"}
    source = f"import sys, sala_export.cli.app; sys.exit(str({heavy} & sys.modules.keys() or ''))"
    started = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert started.stderr.strip() == ""


@pytest.mark.parametrize(("gpu", "capabilities"), [("rtx", ["8.6", "8.9", "12.0"]), ("a6000", ["8.6"])])
def test_inspect_json_tells_what_tensorrt_reported(capsys: Capture, gpu: str, capabilities: list[str]) -> None:
    assert run(["inspect", str(tiny_bundle(gpu)), "--json", "--verify"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["target"], told["compute_capabilities"]) == (gpu, capabilities)
    assert {known["compute_capability"] for known in told["gpus"]} == set(capabilities)
    assert {known["max_context"] for known in told["gpus"]} == {16384}
    assert list(told["profiles"]) == ["prefill", "decode"]
    assert told["profiles"]["prefill"]["tokens"] == {"min": 1, "opt": 1024, "max": 1024}
    assert told["profiles"]["decode"]["tokens"] == {"min": 1, "opt": 1, "max": 1}
    assert told["plugin_library"]["files"] == ["libsala_plugins.so"]
    assert told["plan"]["constant_bytes"] < 1024 < told["weights"]["bytes"]

    kinds = ["InfLLMv2Attention", "LightningAttention", "LightningAttention", "InfLLMv2Attention", "InfLLMv2Attention"]
    assert [(o["layer"], o["type"]) for o in told["operators"]] == list(enumerate(kinds))
    for profile in ("prefill", "decode"):
        built = [node for nodes in told["plugin_layers"][profile].values() for node in nodes]
        assert sorted(built) == sorted(operator["node"] for operator in told["operators"])
        products = [p for g in told["gemms"] if g["profile"] == profile for p in g["products"]]
        roles = ["mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj"]
        for layer, kind in enumerate(kinds):
            packed = "self_attn.qkvz_proj" if kind == "LightningAttention" else "self_attn.qkvg_proj"
            for role in (*roles, packed):
                assert products.count(f"layers.{layer}.{role}/Gemm") == 1
        assert products.count("lm_head/Gemm") == 1
    for side in ("inputs", "weights"):
        assert {dtype for gemm in told["gemms"] for dtype in gemm[side]} == {"BFloat16"}
    parts = dict(told["device_memory_bytes"])
    assert parts.pop("total") == sum(parts.values())
    assert all(parts[part] > 0 for part in ("weights", "key_value", "compressed_key", "state", "activation"))


def test_inspect_prints_tables_for_people(capsys: Capture) -> None:
    assert run(["inspect", str(tiny_bundle("rtx"))]) == 0
    text = capsys.readouterr().out
    for expected in (
        "every GPU of compute capability 8.6, 8.9, 12.0",
        "NVIDIA GeForce RTX 4090",
        "longest context",
        "LightningAttention",
        "activation, decode",
        "self_attn.qkvz_proj",
        "included",
    ):
        assert expected in text


def test_export_writes_graph_and_weights(capsys: Capture, tmp_path: Path) -> None:
    output = tmp_path / "onnx"
    assert run(["export", "--model", str(tiny_checkpoint()), "--precision", "fp32", "-o", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    assert (output / "model.onnx").is_file()


@pytest.mark.parametrize(
    "command", [[], ["build"], ["export"], ["inspect"], ["quantize"], ["random-checkpoint"], ["verify"]]
)
def test_help_names_every_option_in_kebab_case(capsys: Capture, command: list[str]) -> None:
    assert run([*command, "--help"]) == 0
    text = capsys.readouterr().out
    options = {word.strip(",") for word in text.split() if word.startswith("--")}
    assert options
    assert all(option == option.lower() and "_" not in option for option in options)


Spoil = Callable[[Path], object]


def config(**fields: object) -> Spoil:
    return lambda checkpoint: edit_json(checkpoint / "config.json", lambda config: config.update(fields))


def sparse_config(**fields: object) -> Spoil:
    return lambda checkpoint: edit_json(
        checkpoint / "config.json", lambda config: config["sparse_config"].update(fields)
    )


def first_shard(checkpoint: Path) -> Path:
    return min(checkpoint.glob("*.safetensors"))


def truncate_shard(checkpoint: Path) -> None:
    shard = first_shard(checkpoint)
    shard.write_bytes(shard.read_bytes()[:-10])


BAD_MODELS: dict[str, tuple[Spoil, list[str]]] = {
    "missing shard": (lambda c: first_shard(c).unlink(), ["model-00001-of-0000"]),
    "truncated shard": (truncate_shard, ["model-00001-of-0000"]),
    "wrong shape": (config(intermediate_size=513), ["gate_proj.weight", "513"]),
    "unknown mixer": (
        config(mixer_types=["minicpm4", "mamba", "lightning-attn", "minicpm4", "minicpm4"]),
        ["config.json", "mixer_types[1]", "mamba"],
    ),
    "rope in sparse layers": (config(attn_use_rope=True), ["config.json", "attn_use_rope"]),
    "heads no power of two": (
        config(num_attention_heads=24, lightning_nh=24, lightning_nkv=24),
        ["config.json", "num_attention_heads is 24"],
    ),
    "more blocks than the kernels keep": (
        sparse_config(topk=125),
        ["InfLLMv2Attention", "topk - init_blocks - 1 is 123", "sala-export export"],
    ),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_model_is_refused_in_one_line_and_leaves_nothing(capsys: Capture, tmp_path: Path, case: str) -> None:
    spoil, words = BAD_MODELS[case]
    checkpoint = copy_checkpoint(tiny_checkpoint(), tmp_path / "checkpoint")
    spoil(checkpoint)
    message = fails(capsys, ["build", "--gpu", "rtx5090", "--model", str(checkpoint), "-o", str(tmp_path / "out.sala")])
    for word in words:
        assert word in message
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


BAD_OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "unknown GPU": (["--gpu", "rtx9999"], ["rtx9999", "rtx5090", "a6000", "rtx4090", "a6000d"]),
    "fp8 on an A6000": (["--gpu", "a6000", "--precision", "fp8"], ["FP8", "SM86", "bf16"]),
    "nvfp4 on every RTX card": (
        ["--gpu", "rtx", "--precision", "nvfp4"],
        ["A6000 (SM86)", "RTX 4090 (SM89)", "--precision int8, or --gpu rtx5090,a6000d"],
    ),
    "a GPU twice": (["--gpu", "a6000,rtx"], ["a6000 is named twice"]),
    "several GPUs with TensorRT proper": (
        ["--gpu", "a6000,rtx5090", "--flavour", "tensorrt"],
        ["the GPU of this machine alone", "--flavour rtx"],
    ),
    "unknown precision": (["--gpu", "a6000", "--precision", "int3"], ["int3"]),
    "chunk larger than the context": (
        ["--gpu", "rtx5090", "--max-context", "4K", "--prefill-chunk", "8K"],
        ["--prefill-chunk 8K", "--max-context 4K"],
    ),
    "not a size": (["--gpu", "rtx5090", "--max-context", "64Q"], ["--max-context", "64Q"]),
    "context too large for the GPU": (
        ["--gpu", "rtx5090", "--max-context", "64M"],
        ["--max-context 64M needs", "the largest that fits is --max-context"],
    ),
    "more layers than there are": (["--gpu", "rtx5090", "--layers", "6"], ["layers is 6", "5"]),
    "revision of a directory": (["--gpu", "rtx5090", "--revision", "main"], ["--revision main"]),
    "unknown option": (["--gpu", "rtx5090", "--fast"], ["--fast"]),
    "no GPU": ([], ["--gpu"]),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_option_is_refused_in_one_line_and_leaves_nothing(capsys: Capture, tmp_path: Path, case: str) -> None:
    options, words = BAD_OPTIONS[case]
    message = fails(capsys, ["build", "--model", str(tiny_checkpoint()), "-o", str(tmp_path / "out.sala"), *options])
    for word in words:
        assert word in message
    assert list(tmp_path.iterdir()) == []


def test_taken_output_is_refused_and_kept(capsys: Capture, tmp_path: Path) -> None:
    taken = tmp_path / "out.sala"
    taken.mkdir()
    (taken / "diary.txt").write_text("mine", encoding="utf-8")
    arguments = ["build", "--gpu", "rtx5090", "--model", str(tiny_checkpoint()), "-o", str(taken)]
    assert "exists: choose another place, or replace it with --force" in fails(capsys, arguments)
    assert "--force only replaces what this command wrote" in fails(capsys, [*arguments, "--force"])
    assert (taken / "diary.txt").read_text(encoding="utf-8") == "mine"


def test_output_in_a_missing_folder_is_refused(capsys: Capture, tmp_path: Path) -> None:
    arguments = ["export", "--model", str(tiny_checkpoint()), "-o", str(tmp_path / "none" / "onnx")]
    assert "is not a directory: create it" in fails(capsys, arguments)


def test_full_disk_is_refused_before_the_build(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 10, 10))
    message = fails(
        capsys, ["build", "--gpu", "rtx5090", "--model", str(tiny_checkpoint()), "-o", str(tmp_path / "out.sala")]
    )
    assert "disk" in message
    assert list(tmp_path.iterdir()) == []


def test_model_that_is_neither_directory_nor_hub_id_is_refused(capsys: Capture, tmp_path: Path) -> None:
    arguments = ["build", "--gpu", "rtx5090", "--model", str(tmp_path / "nothing"), "-o", str(tmp_path / "out.sala")]
    assert "there is no such directory; give a checkpoint directory or a hub id" in fails(capsys, arguments)


def test_checkpoint_without_tokenizer_builds_a_bundle_of_token_ids(
    capsys: Capture, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = copy_checkpoint(tiny_checkpoint(), tmp_path / "checkpoint")
    for file in (*checkpoint.glob("token*"), *checkpoint.glob("chat_template*")):
        file.unlink()
    output = tmp_path / "out.sala"
    arguments = [
        "build",
        "--gpu",
        "rtx5090",
        "--model",
        str(checkpoint),
        "--layers",
        "1",
        "--max-context",
        "4K",
        "--prefill-chunk",
        "256",
        "--no-weights",
        "-o",
        str(output),
    ]
    assert run(arguments) == 0
    assert "the bundle will take token ids, not text" in capsys.readouterr().err
    assert run(["inspect", str(output), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "text/tokenizer.json" not in told["text"]
    assert told["weights"]["included"] is False
    assert told["weights"]["files"]
    assert not list(output.rglob("*.safetensors"))
    assert told["model"]["layers"] == 1
