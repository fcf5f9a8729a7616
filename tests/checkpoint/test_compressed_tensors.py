"""What compressed-tensors can say and store: weights and modules are those of its own library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.mxfp8 import MXFP8QuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.quant_scheme import MXFP8 as MXFP8_SCHEME
from safetensors.torch import save_file
from support.checkpoints import copy_checkpoint, edit_json, tiny_checkpoint
from support.quantized_checkpoints import write_quantized_checkpoint
from support.quantized_reference import stored_tensors
from torch import Tensor

from sala_export.checkpoint.reader import Checkpoint
from sala_export.model.emulation import EmulatedLinear
from sala_export.numerics.weights import dequantize
from sala_export.specs import Precision

Fields = dict[str, Any]
ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Q = "model.layers.0.self_attn.q_proj"
K = "model.layers.0.self_attn.k_proj"


def changed(directory: Path, precision: Precision, tensor: Callable[[str, Tensor], Tensor]) -> Path:
    """The tiny quantised checkpoint of one layer with other tensors, by name."""
    source = tiny_checkpoint(1, precision)
    path = copy_checkpoint(source, directory)
    for file in path.glob("*.safetensors*"):
        file.unlink()
    tensors = {name: tensor(name, value).contiguous() for name, value in stored_tensors(source).items()}
    save_file(tensors, path / "model.safetensors")
    return path


def require_weights_of_the_library(path: Path, format_: str) -> None:
    """Every quantised weight, decompressed by the library as config.json describes it."""
    checkpoint, stored = Checkpoint.open(path), stored_tensors(path)
    fields = dict(checkpoint.folder.config_fields["quantization_config"]) if checkpoint.folder else {}
    group = next(iter(QuantizationConfig.model_validate(fields).config_groups.values()))
    library = BaseCompressor.get_value_from_registry(name=format_)
    gates = ("o_gate",) if checkpoint.precision is Precision.MXFP8 else ()
    assert {name.split(".")[-2] for name in checkpoint.quantized} == {*ROLES, *gates}
    for name, weight in checkpoint.quantized.items():
        module = name.removesuffix("weight")
        own = {key.removeprefix(module): value for key, value in stored.items() if key.startswith(module)}
        own = {key: value.float() if key == "weight_scale" else value for key, value in own.items()}
        linear = EmulatedLinear(weight)
        found = dequantize(weight.precision, linear.codes, linear.scale, linear.global_scale)
        assert torch.equal(found, library.decompress(own, group)["weight"].float()), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("precision", "format_"),
    [
        (Precision.FP8, "float-quantized"),
        (Precision.INT8, "int-quantized"),
        (Precision.INT4, "pack-quantized"),
    ],
)
def test_scales_of_any_float_type(tmp_path: Path, precision: Precision, format_: str, dtype: torch.dtype) -> None:
    path = changed(tmp_path / "it", precision, lambda name, value: value.to(dtype) if "_scale" in name else value)
    require_weights_of_the_library(path, format_)


@pytest.mark.parametrize("said", [True, False])
def test_mxfp8_is_what_the_library_reads(tmp_path: Path, said: bool) -> None:
    path = changed(tmp_path / "it", Precision.MXFP8, lambda _, value: value)
    (group,) = json.loads((path / "config.json").read_text())["quantization_config"]["config_groups"].values()
    scheme = QuantizationScheme(**group)
    assert MXFP8QuantizationCompressor.can_compress(torch.nn.Linear, scheme)
    # There are no zero points, whose type it also names.
    expected = {**MXFP8_SCHEME["input_activations"].model_dump(), "zp_dtype": None}
    assert scheme.input_activations == QuantizationArgs(**expected)

    def left_out(fields: Fields) -> None:
        quantization = fields["quantization_config"]
        del quantization["format"]
        for part in ("weights", "input_activations"):
            del quantization["config_groups"]["group_0"][part]["scale_dtype"]

    if not said:
        edit_json(path / "config.json", left_out)
    require_weights_of_the_library(path, "mxfp8-quantized")


@pytest.mark.parametrize("groups", [1, 2])
def test_int4_scales_of_larger_groups(tmp_path: Path, groups: int) -> None:
    def fewer(name: str, value: Tensor) -> Tensor:
        return value[:, :groups] if name.endswith("weight_scale") else value

    path = changed(tmp_path / "it", Precision.INT4, fewer)
    weights = {"num_bits": 4, "strategy": "channel"} if groups == 1 else {"num_bits": 4, "group_size": 128}
    group = {"targets": ["Linear"], "weights": weights}
    edit_json(path / "config.json", lambda fields: fields["quantization_config"].update(config_groups={"all": group}))
    if groups == 1:
        require_weights_of_the_library(path, "pack-quantized")
    shapes = {weight.scale_shape[1] for weight in Checkpoint.open(path).quantized.values()}
    assert shapes == {groups}


def _without_format(fields: Fields) -> None:
    del fields["format"], fields["quantization_status"], fields["kv_cache_scheme"]


def _older(fields: Fields) -> None:
    fields["format"] = "naive-quantized"


def _by_group(fields: Fields) -> None:
    fields["format"], group = "mixed-precision", fields["config_groups"].pop("group_0")
    attention = {**group, "format": "float-quantized", "targets": [r"re:.*self_attn\.[qkvo]_proj"]}
    modules = [f"model.layers.0.mlp.{role}" for role in ("gate_proj", "up_proj", "down_proj")]
    fields["config_groups"] = {"a": attention, "b": {**group, "format": "float-quantized", "targets": modules}}
    fields["ignore"] = []


def _sparse(fields: Fields) -> None:
    fields.update(
        sparsity_config={"format": "dense"}, transform_config={}, version="0.15.0", global_compression_ratio=1
    )


@pytest.mark.parametrize("change", [_without_format, _older, _by_group, _sparse])
def test_other_ways_to_say_the_same(tmp_path: Path, change: Callable[[Fields], None]) -> None:
    path = copy_checkpoint(tiny_checkpoint(1, Precision.FP8), tmp_path / "it")
    edit_json(path / "config.json", lambda fields: change(fields["quantization_config"]))
    require_weights_of_the_library(path, "float-quantized")


def test_older_name_of_the_field(tmp_path: Path) -> None:
    path = copy_checkpoint(tiny_checkpoint(1, Precision.INT8), tmp_path / "it")
    edit_json(path / "config.json", lambda fields: fields.update(compression_config=fields.pop("quantization_config")))
    assert Checkpoint.open(path).precision is Precision.INT8


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8])
def test_scales_by_token_and_channel(tmp_path: Path, precision: Precision) -> None:
    def without_input_scales(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("input_scale")]:
            del tensors[name]

    path = write_quantized_checkpoint(
        tmp_path / "it", precision, layers=1, per_channel=True, change=without_input_scales
    )
    activations = {"num_bits": 8, "type": "float" if precision is Precision.FP8 else "int", "dynamic": True}

    def by_token(fields: Fields) -> None:
        (group,) = fields["quantization_config"]["config_groups"].values()
        group["input_activations"] = {**activations, "strategy": "token", "symmetric": True}

    edit_json(path / "config.json", by_token)
    require_weights_of_the_library(path, "naive-quantized")
    weight = Checkpoint.open(path).quantized[f"{Q}.weight"]
    assert (weight.by_token, weight.input_scale) == (True, None)
    x = torch.tensor([[3.0, -7.0, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]]).repeat(1, 64)
    largest = 448 if precision is Precision.FP8 else 127
    row = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / largest
    steps = (x / row).to(torch.float8_e4m3fn).float() if precision is Precision.FP8 else (x / row).round()
    linear = EmulatedLinear(weight)
    expected = (steps * row) @ dequantize(precision, linear.codes, linear.scale).T
    torch.testing.assert_close(linear(x), expected, rtol=1e-5, atol=1e-6)


def test_parts_of_a_pack_may_differ(tmp_path: Path) -> None:
    def other_scale(tensors: dict[str, Tensor]) -> None:
        tensors[f"{K}.input_scale"] *= 2

    path = write_quantized_checkpoint(tmp_path / "scales", Precision.FP8, layers=1, change=other_scale)
    found = Checkpoint.open(path).quantized
    assert found[f"{K}.weight"].input_scale == 2 * found[f"{Q}.weight"].input_scale
    ignore = ("re:.*z_proj", "re:.*o_gate", "lm_head", K)
    path = write_quantized_checkpoint(tmp_path / "part", Precision.FP8, layers=1, ignore=ignore)
    assert f"{K}.weight" in Checkpoint.open(path).locations
