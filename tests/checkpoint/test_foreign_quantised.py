"""Quantised checkpoints of other tools: the numbers that they stand for, exactly, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import edit_json
from support.foreign_checkpoints import Written, awq, gptq, modelopt_fp8, modelopt_nvfp4, mxfp8
from torch import Tensor

from sala_export.checkpoint.reader import Checkpoint
from sala_export.errors import CheckpointError, ConfigError, InputError, UnsupportedError
from sala_export.model.emulation import EmulatedLinear
from sala_export.numerics.weights import dequantize

Writer = Callable[..., Written]

Q = "model.layers.0.self_attn.q_proj"
WRITERS: dict[str, Writer] = {
    "ModelOpt FP8": modelopt_fp8,
    "ModelOpt FP8, by channel and token": partial(modelopt_fp8, by_channel=True),
    "ModelOpt NVFP4": modelopt_nvfp4,
    "ModelOpt MXFP8": partial(mxfp8, group_size=32),
    "compressed-tensors MXFP8": partial(mxfp8, modelopt=False),
    "GPTQ": gptq,
    "GPTQ v2": partial(gptq, version="gptq_v2"),
    "GPTQ, by output": partial(gptq, group=-1),
    "GPTQ, bf16 scales": partial(gptq, scales=torch.bfloat16),
    "GPTQ, fp32 scales": partial(gptq, scales=torch.float32),
    "AWQ": awq,
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_weights_are_exactly_those_that_the_tool_stored(tmp_path: Path, writer: Writer) -> None:
    path, values, _ = writer(tmp_path / "foreign")
    checkpoint = Checkpoint.open(path)
    assert checkpoint.quantized.keys() == values.keys()
    for name, weight in checkpoint.quantized.items():
        linear = EmulatedLinear(weight)
        assert torch.equal(dequantize(weight.precision, linear.codes, linear.scale, linear.global_scale), values[name])


def test_scales_of_inputs_are_those_of_modelopt(tmp_path: Path) -> None:
    path, *_ = modelopt_nvfp4(tmp_path / "foreign")
    found = Checkpoint.open(path).quantized
    scales = {found[f"model.layers.0.self_attn.{role}.weight"].input_scale for role in ("q_proj", "k_proj", "v_proj")}
    assert scales == {2.0**-5, 2.0**-6, 2.0**-7}


def test_first_layers_alone_are_read(tmp_path: Path) -> None:
    path, values, _ = awq(tmp_path / "foreign")
    assert Checkpoint.open(path, layers=1).quantized.keys() == {name for name in values if ".layers.0." in name}


def test_projections_without_codes_stay_in_16_bits(tmp_path: Path) -> None:
    def plain(tensors: dict[str, Tensor]) -> None:
        weight = torch.zeros(512, 256, dtype=torch.bfloat16)
        for role in ("gate_proj", "up_proj"):
            module = f"model.layers.1.mlp.{role}"
            shape = (tensors.pop(f"{module}.qweight").shape[1], 256)
            for each in ("qzeros", "scales", "g_idx"):
                tensors.pop(f"{module}.{each}")
            tensors[f"{module}.weight"] = weight.new_zeros(shape)

    path, *_ = gptq(tmp_path / "foreign", change=plain)
    checkpoint = Checkpoint.open(path)
    assert "model.layers.1.mlp.up_proj.weight" in checkpoint.locations
    assert "model.layers.0.mlp.up_proj.weight" in checkpoint.quantized


def test_converted_tensors_are_the_same_whenever_they_are_read(tmp_path: Path) -> None:
    path, *_ = gptq(tmp_path / "foreign")
    checkpoint = Checkpoint.open(path)
    file = checkpoint.quantized[f"{Q}.weight"].data.file
    whole = b"".join(bytes(block) for block in file.blocks(0, file.size))
    assert len(whole) == file.size
    for where in (checkpoint.quantized[f"{Q}.weight"].data, checkpoint.quantized[f"{Q}.weight"].scale):
        assert bytes(where.raw()) == whole[where.offset : where.offset + where.length]
        part = bytearray(11)
        file.read_into(where.offset - 3, memoryview(part))
        assert bytes(part) == whole[where.offset - 3 : where.offset + 8]
    (copy,) = [tmp_path / "converted.safetensors"]
    assert sum(file.copied(copy)) == file.size
    assert copy.read_bytes() == whole


def test_sources_that_change_are_noticed(tmp_path: Path) -> None:
    path, *_ = gptq(tmp_path / "foreign")
    checkpoint = Checkpoint.open(path)
    data = checkpoint.quantized[f"{Q}.weight"].data
    data.raw()
    with (path / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model\.safetensors was changed while it was read"):
        checkpoint.require_unchanged()


@pytest.mark.parametrize("writer", [modelopt_fp8, mxfp8])
def test_cache_of_8_bits_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, writer: Writer) -> None:
    def with_cache_scales(tensors: dict[str, Tensor]) -> None:
        tensors |= {f"model.layers.0.self_attn.{role}_proj.{role}_scale": torch.ones(()) for role in "kv"}

    path, values, _ = writer(tmp_path / "foreign", change=with_cache_scales)
    edit_json(path / "hf_quant_config.json", lambda fields: fields["quantization"].update(kv_cache_quant_algo="FP8"))
    assert Checkpoint.open(path).quantized.keys() == values.keys()
    (line,) = caplog.messages
    assert line.endswith("kv_cache_quant_algo is 'FP8', but caches have 16 bits here: k_scale and v_scale are not read")


def _set(name: str, place: tuple[int, ...], value: float) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors[name].__setitem__(place, value)


@pytest.mark.parametrize("modelopt", [True, False])
def test_exponent_that_stands_for_nan_is_refused(tmp_path: Path, modelopt: bool) -> None:
    path, *_ = mxfp8(tmp_path / "foreign", modelopt=modelopt, change=_set(f"{Q}.weight_scale", (3, 1), 255))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*q_proj\.weight_scale holds nan, expected finite"):
        Checkpoint.open(path)


def test_scale_that_is_no_number_is_told_without_a_file_that_is_not_there(tmp_path: Path) -> None:
    path, *_ = awq(tmp_path / "foreign", change=_set(f"{Q}.scales", (0, 3), float("nan")))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(path)
    assert str(caught.value).startswith(f"{path} (converted): model.layers.0.")


@pytest.mark.parametrize(
    ("writer", "change", "message"),
    [
        (
            gptq,
            _set(f"{Q}.qzeros", (1, 2), 0x77757777),
            r"q_proj\.qzeros holds the zero point 6, expected 8",
        ),
        (awq, _set(f"{Q}.qzeros", (0, 0), 0x08888888), r"q_proj\.qzeros holds the zero point 0, expected 8"),
        (gptq, _set(f"{Q}.g_idx", (5,), 1), r"q_proj\.g_idx puts input 5 into group 1, expected 0: columns must stay"),
    ],
)
def test_codes_that_are_no_symmetric_ones_in_order_are_refused(
    tmp_path: Path, writer: Writer, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    path, *_ = writer(tmp_path / "foreign", change=change)
    with pytest.raises(UnsupportedError, match=rf"model\.safetensors: model\.layers\.0\..*{message}") as caught:
        Checkpoint.open(path)
    assert str(caught.value).endswith("take the original model and quantise it with sala-export quantize")


@pytest.mark.parametrize(
    ("writer", "fields", "error", "message"),
    [
        (gptq, {"bits": 8}, UnsupportedError, "quantize_config.json: bits is 8: only 4 is taken; take the original"),
        (gptq, {"group_size": 64}, UnsupportedError, "json: group_size is 64: only multiples of 128, or -1, are taken"),
        (gptq, {"group_size": "128"}, ConfigError, "json: group_size is '128', expected an integer"),
        (gptq, {"sym": False}, UnsupportedError, "json: sym is False: only True is taken"),
        (gptq, {"desc_act": True}, UnsupportedError, "json: desc_act is True: only False is taken"),
        (
            gptq,
            {"checkpoint_format": "marlin"},
            UnsupportedError,
            "checkpoint_format is 'marlin': only 'gptq' or",
        ),
        (gptq, {"is_marlin_format": True}, UnsupportedError, "is_marlin_format is True: only False"),
        (gptq, {"dynamic": {"+:.*": {"bits": 8}}}, UnsupportedError, "dynamic is given: all projections are quantised"),
        (
            awq,
            {"version": "gemv"},
            UnsupportedError,
            r"config.json: quantization_config\.version is 'gemv': only 'g",
        ),
        (awq, {"bits": True}, UnsupportedError, r"quantization_config\.bits is True: only 4"),
        (partial(mxfp8, group_size=16), {}, UnsupportedError, r"quantization\.group_size is 16: only 32 is taken"),
    ],
)
def test_fields_that_are_not_served_are_refused(
    tmp_path: Path, writer: Writer, fields: dict[str, Any], error: type[InputError], message: str
) -> None:
    # The group of the tensors stays: only the field is wrong.
    group = fields.pop("group_size", None)
    path, *_ = writer(tmp_path / "foreign", **fields)
    if group is not None:
        edit_json(path / "quantize_config.json", lambda config: config.update(group_size=group))
    with pytest.raises(error, match=message) as caught:
        Checkpoint.open(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("algorithm", ["W4A16_AWQ", "MIXED_PRECISION", "W4A8_MXFP8", None, ["FP8"]])
def test_other_algorithms_of_modelopt_are_refused(tmp_path: Path, algorithm: object) -> None:
    path, *_ = modelopt_fp8(tmp_path / "foreign")
    edit_json(path / "hf_quant_config.json", lambda fields: fields["quantization"].update(quant_algo=algorithm))
    with pytest.raises(UnsupportedError, match=r"hf_quant_config.json: quantization\.quant_algo is .*: taken are FP8"):
        Checkpoint.open(path)


@pytest.mark.parametrize(
    "method", ["bitsandbytes", "hqq", "eetq", "fbgemm_fp8", "quark", "torchao", "mxfp4", "fp8", "aqlm", None, 7]
)
def test_other_methods_are_refused(tmp_path: Path, method: object) -> None:
    path, *_ = awq(tmp_path / "foreign", quant_method=method)
    with pytest.raises(UnsupportedError, match=rf"config.json: quantization_config\.quant_method is {method!r}: ta"):
        Checkpoint.open(path)
