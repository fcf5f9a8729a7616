"""Quantised checkpoints: what is read, and one clear line for each rule that one breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import copy_checkpoint, edit_json, tiny_checkpoint
from support.quantized_checkpoints import write_quantized_checkpoint
from support.quantized_reference import dequantized, stored_tensors
from support.runtime_bundles import tensor_digests
from torch import Tensor

from sala_export.checkpoint.keymap import weights
from sala_export.checkpoint.quantization import SCHEMES, Quantization
from sala_export.checkpoint.random_checkpoint import write_random_checkpoint
from sala_export.checkpoint.random_weights import RandomWeights
from sala_export.checkpoint.reader import Checkpoint
from sala_export.errors import CheckpointError, ConfigError, InputError, RequestError, UnsupportedError
from sala_export.numerics.number_formats import E4M3_VALUES
from sala_export.specs import QUANTIZED_PRECISIONS, Precision

Q = "model.layers.0.self_attn.q_proj"
K = "model.layers.0.self_attn.k_proj"


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.NVFP4])
def test_numbers_that_went_into_a_graph_are_those_that_are_hashed_later(tmp_path: Path, precision: Precision) -> None:
    path = copy_checkpoint(tiny_checkpoint(1, precision), tmp_path / "live")
    checkpoint = Checkpoint.open(path)
    checkpoint.require_hashes(tensor_digests(Checkpoint.open(path)))
    scale = checkpoint.quantized[f"{Q}.weight"].scale
    with scale.file.path.open("r+b") as file:
        file.seek(scale.offset)
        file.write(bytes(byte ^ 1 for byte in scale.raw().tobytes()))
    with pytest.raises(CheckpointError, match=r"\.safetensors was changed while it was read: try again"):
        checkpoint.require_hashes(tensor_digests(Checkpoint.open(path)))


@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_every_projection_that_its_precision_takes_is_read_quantised(precision: Precision) -> None:
    path = tiny_checkpoint(2, precision)
    checkpoint, stored = Checkpoint.open(path), stored_tensors(path)
    assert checkpoint.precision is precision
    roles = {name.split(".")[-2] for name in checkpoint.quantized}
    gates = {"z_proj", "o_gate"}
    taken = gates if precision is Precision.MXFP8 else set()
    assert roles == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} | taken
    assert {name.split(".")[-2] for name in checkpoint.locations} >= {"lm_head", "embed_tokens"} | (gates - taken)
    for name, weight in checkpoint.quantized.items():
        module = name.removesuffix(".weight")
        scale = stored[f"{module}.weight_scale"].to(torch.float32)
        if precision is Precision.MXFP8:
            scale = torch.exp2(scale - 127)
        assert np.array_equal(weight.scales(), scale.reshape(weight.scale_shape).numpy())
        data = stored[name if name in stored else f"{name}_packed"]
        assert bytes(weight.data.raw()) == data.contiguous().view(torch.uint8).numpy().tobytes()
        if precision is Precision.NVFP4:
            assert weight.global_scale == np.float32(1) / stored[f"{module}.weight_global_scale"].numpy()[0]
            assert weight.input_scale == np.float32(1) / stored[f"{module}.input_global_scale"].numpy()[0]
        else:
            assert weight.global_scale == 1
            assert weight.input_scale == (
                stored[f"{module}.input_scale"].item() if precision in (Precision.FP8, Precision.INT8) else None
            )
        assert weight.rounds_input == (precision is not Precision.INT4)


def test_table_of_e4m3_is_torchs() -> None:
    expected = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32).numpy()
    assert np.array_equal(E4M3_VALUES, expected, equal_nan=True)


def test_first_layers_of_a_quantised_checkpoint() -> None:
    path = tiny_checkpoint(2, Precision.INT4)
    whole, first = Checkpoint.open(path), Checkpoint.open(path, layers=1)
    assert [*first.quantized] == [name for name in whole.quantized if ".layers.0." in name]
    assert all(
        np.array_equal(weight.scales(), whole.quantized[name].scales()) for name, weight in first.quantized.items()
    )
    assert first.weight_bytes() < whole.weight_bytes()


@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_random_checkpoint_follows_from_its_seed(precision: Precision, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(2, precision))
    write_random_checkpoint(tmp_path / "again", "tiny", layers=2, precision=precision)
    for file in checkpoint.shard_files().values():
        assert file.read_all() == (tmp_path / "again" / file.path.name).read_bytes()


def test_random_mxfp8_weights_are_spread_like_others() -> None:
    path = tiny_checkpoint(2, Precision.MXFP8)
    checkpoint, stored = Checkpoint.open(path), stored_tensors(path)
    random = RandomWeights(checkpoint.config, seed=0, salient=False)
    for weight in weights(checkpoint.config):
        if weight.name in checkpoint.quantized:
            values = dequantized(stored, weight.name.removesuffix(".weight"), "mxfp8-quantized")
            assert abs(float(values.std()) / random.distribution(weight).std - 1) < 0.02
            # Their order can be told.
            assert len(stored[f"{weight.name}_scale"].unique()) == 2


def test_random_checkpoint_is_not_written_in_fp32(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--precision fp32: expected one of bf16, fp8, mxfp8, int8, int4, nvfp4"):
        write_random_checkpoint(tmp_path / "out", "tiny", precision=Precision.FP32)


def test_checkpoint_of_another_program_is_read(tmp_path: Path) -> None:
    path = write_quantized_checkpoint(tmp_path / "fp8", Precision.FP8, per_channel=True)
    weight = Checkpoint.open(path).quantized[f"{Q}.weight"]
    assert weight.scale_shape == (weight.shape[0], 1)


def test_gate_may_join_its_pack(tmp_path: Path) -> None:
    path = write_quantized_checkpoint(tmp_path / "int8", Precision.INT8, ignore=("lm_head",))
    assert "model.layers.1.self_attn.z_proj.weight" in Checkpoint.open(path).quantized


def test_ignore_takes_names_and_expressions_from_the_start() -> None:
    quantization = Quantization(scheme=SCHEMES[Precision.FP8], ignore=(K, r"re:model\.layers\.1\..*", "re:mlp"))
    covered = {name: quantization.covers(f"{name}.weight") for name in (Q, K, "model.layers.1.mlp.up_proj")}
    assert covered == {Q: True, K: False, "model.layers.1.mlp.up_proj": False}
    assert quantization.covers("model.layers.2.mlp.up_proj.weight"), "mlp is not at the start"
    assert not quantization.covers("model.layers.0.input_layernorm.weight")


@pytest.mark.parametrize("include_gates", [None, True, False])
def test_gates_are_taken_as_asked_or_as_the_precision_has_it(include_gates: bool | None) -> None:
    for precision in QUANTIZED_PRECISIONS:
        quantization = Quantization.default(precision, include_gates=include_gates)
        expected = precision is Precision.MXFP8 if include_gates is None else include_gates
        assert quantization.covers("model.layers.1.self_attn.z_proj.weight") == expected
        assert quantization.covers("model.layers.0.self_attn.o_gate.weight") == expected
        assert quantization.covers(f"{Q}.weight")
        assert not quantization.covers("lm_head.weight")


@pytest.mark.parametrize(
    ("stored", "asked", "message"),
    [
        (Precision.BF16, Precision.INT4, r"is not quantised; run sala-export quantize --precision int4"),
        (Precision.FP8, Precision.BF16, r"is quantised to fp8; use --precision fp8, or the original"),
        (Precision.FP8, Precision.INT8, r"is quantised to fp8; use --precision fp8, or the original"),
    ],
)
def test_precision_must_be_that_of_the_checkpoint(stored: Precision, asked: Precision, message: str) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(2, stored))
    with pytest.raises(RequestError, match=message):
        checkpoint.require_precision(asked)


def setting(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    """Change a field below quantization_config."""

    def change(fields: dict[str, Any]) -> None:
        inner = fields["quantization_config"]
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = to

    return change


_GROUP = ("config_groups", "group_0")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda f: f.update(quantization_config="fp8"),
            ConfigError,
            "quantization_config is 'fp8', expected an object",
        ),
        (
            setting("quant_method", to="bitsandbytes"),
            UnsupportedError,
            "quant_method is 'bitsandbytes': taken are compressed-tensors, modelopt, gptq, awq; take the original",
        ),
        (
            setting("format", to="marlin-24"),
            UnsupportedError,
            "format is 'marlin-24': known are float-quantized, mxfp8-",
        ),
        (setting("sparsity_config", to={"format": "sparse-24-bitmask"}), UnsupportedError, "only dense weights are"),
        (setting("transform_config", to={"config_groups": {"R1": {}}}), UnsupportedError, "transform_config is given"),
        (setting("config_groups", to={}), ConfigError, "config_groups is {}, expected an object that names a group"),
        (
            setting("config_groups", "other", to={"weights": {}}),
            UnsupportedError,
            r"config_groups\.other\.weights\.type",
        ),
        (
            setting(*_GROUP, "targets", to="Linear"),
            ConfigError,
            r"group_0\.targets is 'Linear', expected a list",
        ),
        (
            setting(*_GROUP, "targets", to=["re:(a*)*b"]),
            ConfigError,
            r"group_0\.targets holds 're:.*may match for",
        ),
        (
            setting(*_GROUP, "input_activations", to=None),
            UnsupportedError,
            r"input_activations is None: products",
        ),
        (setting(*_GROUP, "output_activations", to={}), UnsupportedError, r"output_activations is given: results of"),
        (setting(*_GROUP, "weights", to=None), ConfigError, r"group_0\.weights is None, expected an object"),
        (
            setting(*_GROUP, "weights", "num_bits", to=6),
            UnsupportedError,
            r"group_0\.weights\.num_bits is 6: only 8 is served",
        ),
        (
            setting(*_GROUP, "weights", "strategy", to="block"),
            UnsupportedError,
            r"weights\.strategy is 'block': only 'tensor' or 'channel' is served",
        ),
        (setting(*_GROUP, "weights", "actorder", to="group"), UnsupportedError, r"weights\.actorder is 'group'"),
        (
            setting(*_GROUP, "input_activations", "dynamic", to=True),
            UnsupportedError,
            r"input_activations\.dynamic is True: only False is served",
        ),
        (setting("ignore", to="lm_head"), ConfigError, r"ignore is 'lm_head', expected a list of module names"),
        (setting("ignore", to=["re:("]), ConfigError, r"ignore holds 're:\(', which is no regular expression"),
        (setting("ignore", to=["re:.*z_proj", "re:.*o_gate"]), CheckpointError, r"lm_head\.weight_scale"),
        (setting("ignore", to=["re:.*z_proj", "lm_head"]), CheckpointError, r"o_gate\.weight_scale"),
        (
            setting("ignore", to=["re:.*z_proj", "re:.*o_gate", "lm_head", K]),
            CheckpointError,
            rf"{K}\.input_scale, {K}\.weight_scale: a sign of quantised weights",
        ),
        (setting("format", to="int-quantized"), UnsupportedError, r"weights\.type is 'float': only 'int' is served"),
        (
            lambda f: f.pop("quantization_config"),
            CheckpointError,
            r"and 11 more: a sign of quantised weights, but quantization_config",
        ),
    ],
)
def test_config_that_is_not_served_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], error: type[InputError], message: str
) -> None:
    path = copy_checkpoint(tiny_checkpoint(1, Precision.FP8), tmp_path / "copy")
    edit_json(path / "config.json", change)
    with pytest.raises(error, match=message) as caught:
        Checkpoint.open(path)
    assert "\n" not in str(caught.value)


def _set(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{Q}.weight_scale"), rf"should hold {Q}\.weight_scale but does not"),
        (lambda t: t.pop(f"{Q}.input_scale"), rf"should hold {Q}\.input_scale but does not"),
        (_set(f"{Q}.weight", torch.zeros(2048, 256)), rf"{Q}\.weight has type F32, expected F8_E4M3: quantise"),
        (
            _set(f"{Q}.weight_scale", torch.ones(3)),
            rf"{Q}\.weight_scale has shape \[3\], .* \[1\] or \[\] or \[2048, 1\]",
        ),
        (_set(f"{Q}.weight_scale", torch.tensor([torch.nan])), rf"{Q}\.weight_scale holds nan, expected finite"),
        (_set(f"{Q}.weight_scale", torch.tensor([torch.inf])), rf"{Q}\.weight_scale holds inf, expected finite"),
        (_set(f"{Q}.weight_scale", torch.zeros(1)), rf"{Q}\.weight_scale holds 0, expected finite scales above zero"),
        (
            _set(f"{Q}.weight_scale", torch.linspace(1, -1, 2048)[:, None]),
            rf"{Q}\.weight_scale holds -0\.\d+ and 1023 more such",
        ),
        (_set(f"{Q}.input_scale", torch.tensor([-1.0])), rf"{Q}\.input_scale holds -1, expected finite scales above"),
    ],
)
def test_tensors_that_make_no_sense_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    path = write_quantized_checkpoint(tmp_path / "fp8", Precision.FP8, layers=1, change=change)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("precision", "change", "message"),
    [
        (Precision.INT4, _set(f"{Q}.weight_shape", torch.tensor([256, 2048])), r"weight_shape says \[256, 2048\], but"),
        (
            Precision.INT4,
            _set(f"{Q}.weight_scale", torch.full((2048, 2), -1.0, dtype=torch.bfloat16)),
            r"weight_scale holds -1 and 4095 more such, expected finite scales of zero or more",
        ),
        (
            Precision.INT4,
            _set(f"{Q}.weight_scale", torch.ones(2048, 2, dtype=torch.float64)),
            r"weight_scale has type F64, expected one of BF16, F16, F32",
        ),
        (
            Precision.NVFP4,
            _set(f"{Q}.weight_scale", torch.full((2048, 16), torch.nan).to(torch.float8_e4m3fn)),
            r"weight_scale holds nan",
        ),
        (Precision.NVFP4, _set(f"{Q}.weight_global_scale", torch.zeros(1)), r"weight_global_scale holds 0"),
    ],
)
def test_grouped_scales_that_make_no_sense_are_refused(
    tmp_path: Path, precision: Precision, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    path = copy_checkpoint(tiny_checkpoint(1, precision), tmp_path / "copy")
    (file,) = path.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(path)


def test_lm_head_cannot_be_quantised(tmp_path: Path) -> None:
    ignore = ("re:.*z_proj", "re:.*o_gate")
    path = write_quantized_checkpoint(tmp_path / "fp8", Precision.FP8, layers=1, ignore=ignore)
    with pytest.raises(UnsupportedError, match=r"lm_head\.weight is quantised: only projections of layers may be"):
        Checkpoint.open(path)


def test_inputs_must_fill_whole_groups(tmp_path: Path) -> None:
    path = copy_checkpoint(tiny_checkpoint(1, Precision.INT4), tmp_path / "copy")
    edit_json(path / "config.json", lambda fields: fields.update(intermediate_size=500))
    with pytest.raises(
        UnsupportedError, match=r"down_proj\.weight has 500 inputs, .* a multiple of 128, a group: quan"
    ):
        Checkpoint.open(path)


def test_inputs_must_fill_whole_words_of_scales(tmp_path: Path) -> None:
    path = copy_checkpoint(tiny_checkpoint(1, Precision.MXFP8), tmp_path / "copy")
    # 15 groups of 32.
    edit_json(path / "config.json", lambda fields: fields.update(intermediate_size=480))
    words = (
        r"down_proj\.weight has 480 inputs, but mxfp8 needs a multiple of 128, a word of four scales for 32 each: qu"
    )
    with pytest.raises(UnsupportedError, match=words):
        Checkpoint.open(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting(*_GROUP, "weights", "group_size", to=64), r"group_0\.weights\.group_size is 64: only 32 is served"),
        (setting(*_GROUP, "input_activations", to=None), r"products of mxfp8 quantise their activations too"),
        (setting(*_GROUP, "input_activations", "dynamic", to=False), r"input_activations\.dynamic is False: only True"),
        (setting("format", to="naive-quantized"), r"group_0\.weights\.strategy is 'group': only 'tensor' or 'channel'"),
    ],
)
def test_mxfp8_of_another_kind_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = copy_checkpoint(tiny_checkpoint(1, Precision.MXFP8), tmp_path / "copy")
    edit_json(path / "config.json", change)
    with pytest.raises(UnsupportedError, match=message):
        Checkpoint.open(path)
