"""Checkpoints as the model for TensorRT-LLM loads them, against what their formats say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.checkpoints import copy_checkpoint, edit_json, tiny_checkpoint
from support.foreign_checkpoints import modelopt_fp8, modelopt_nvfp4
from support.quantized_checkpoints import write_quantized_checkpoint
from support.quantized_reference import E2M1, dequantized, stored_tensors
from support.tensorrt_llm_batches import checkpoint_quant_config, load_model
from torch import Tensor

from sala_export.checkpoint.reader import Checkpoint
from sala_export.errors import CheckpointError, RequestError, UnsupportedError
from sala_export.specs import Precision
from sala_export.tensorrt_llm.quant_config import FILE, main, quant_config
from sala_export.tensorrt_llm.scale_names import modelopt_tensors

SOURCES = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def loaded(model: Any) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Each projection of the checkpoint with the tensors that TensorRT-LLM was given, and whether it is quantised."""
    for name, module in model.named_modules():
        parent, _, role = name.rpartition(".")
        for source, part in zip(SOURCES.get(role, (role,)), getattr(module, "loaded", ()), strict=False):
            is_quantised = module.quant_config is not None and module.quant_config.quant_algo is not None
            yield f"{parent}.{source}".removeprefix("."), part, is_quantised


def modelopt_value(part: dict[str, Tensor]) -> Tensor:
    """The weight, by ModelOpt's description."""
    weight, scale = part["weight"], part["weight_scale"].float()
    if "weight_scale_2" not in part:
        return weight.float() * scale.reshape(-1, 1)
    nibbles = torch.stack((weight & 15, weight >> 4), dim=-1).flatten(1).long()
    values = torch.tensor([*E2M1, *(-value for value in E2M1)])[nibbles]
    return values * (scale * part["weight_scale_2"]).repeat_interleave(16, dim=1)


@pytest.mark.parametrize(
    ("precision", "form"), [(Precision.FP8, "float-quantized"), (Precision.NVFP4, "nvfp4-pack-quantized")]
)
def test_quantised_projections_get_their_numbers(shell: ModuleType, precision: Precision, form: str) -> None:
    path = tiny_checkpoint(2, precision)
    stored = stored_tensors(path)
    model = load_model(path, torch.bfloat16, checkpoint_quant_config(path))
    quantised = Checkpoint.open(path).quantized
    found = set()
    for name, part, is_quantised in loaded(model):
        assert is_quantised == (f"{name}.weight" in quantised), name
        if not is_quantised:
            assert set(part) == {"weight"}
            torch.testing.assert_close(part["weight"], stored[f"{name}.weight"])
            continue
        found.add(f"{name}.weight")
        torch.testing.assert_close(modelopt_value(part), dequantized(stored, name, form), rtol=1e-6, atol=0)
        divisor = stored.get(f"{name}.input_global_scale")
        expected = stored[f"{name}.input_scale"] if divisor is None else 1 / divisor
        assert part["input_scale"].shape == ()
        torch.testing.assert_close(part["input_scale"], expected.reshape(()))
    assert found == set(quantised)


def test_modelopt_fp8_with_a_scale_for_each_projection_is_loaded(shell: ModuleType, tmp_path: Path) -> None:
    written = modelopt_fp8(tmp_path / "fp8")
    model = load_model(written.path, torch.bfloat16, checkpoint_quant_config(written.path))
    values = {f"{name}.weight": modelopt_value(part) for name, part, is_quantised in loaded(model) if is_quantised}
    assert set(values) == set(written.values)
    for name, value in values.items():
        torch.testing.assert_close(value, written.values[name], rtol=1e-6, atol=0)


def test_nvfp4_projections_of_one_product_need_one_scale(shell: ModuleType, tmp_path: Path) -> None:
    written = modelopt_nvfp4(tmp_path / "nvfp4")
    with pytest.raises(CheckpointError, match=r"mlp\.up_proj\.weight_scale_2 is .* quantize --precision nvfp4"):
        load_model(written.path, torch.bfloat16, checkpoint_quant_config(written.path))


def test_lazy_tensors_are_read_only_where_numbers_change(tmp_path: Path) -> None:
    tensors = {
        "a.o_proj.weight_packed": torch.zeros(4, 8, dtype=torch.uint8),
        "a.o_proj.weight_global_scale": torch.tensor([4.0]),
        "a.o_proj.input_global_scale": torch.tensor([8.0]),
        "b.weight": torch.ones(3, 3),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        lazy = {name: file.get_slice(name) for name in tensors}
        renamed = modelopt_tensors(lazy)
    assert renamed["a.o_proj.weight"] is lazy["a.o_proj.weight_packed"]
    assert renamed["b.weight"] is lazy["b.weight"]
    assert [float(renamed[f"a.o_proj.{role}"]) for role in ("weight_scale_2", "input_scale")] == [0.25, 0.125]


def test_tied_embedding_is_the_head(shell: ModuleType, tmp_path: Path) -> None:
    path = copy_checkpoint(tiny_checkpoint(2), tmp_path / "tied")
    tensors = stored_tensors(path)
    del tensors["lm_head.weight"]
    for file in path.glob("model*.safetensors*"):
        file.unlink()
    save_file(tensors, path / "model.safetensors")
    edit_json(path / "config.json", lambda fields: fields.update(tie_word_embeddings=True))
    model = load_model(path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.isfinite().all()


def by_channel(path: Path) -> Path:
    return write_quantized_checkpoint(path, Precision.FP8, per_channel=True)


def half_quantised(path: Path) -> Path:
    return write_quantized_checkpoint(
        path, Precision.FP8, ignore=("re:.*k_proj", "re:.*z_proj", "re:.*o_gate", "lm_head")
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda _: tiny_checkpoint(2), RequestError, "is not quantised"),
        (lambda _: tiny_checkpoint(2, Precision.INT8), UnsupportedError, "is int8; TensorRT-LLM is served fp8 and"),
        (lambda _: tiny_checkpoint(2, Precision.MXFP8), UnsupportedError, "is mxfp8; TensorRT-LLM is served fp8 and"),
        (by_channel, UnsupportedError, "is fp8 with other scales"),
        (half_quantised, UnsupportedError, "k_proj is quantised otherwise than q_proj"),
    ],
)
def test_what_tensorrt_llm_cannot_multiply_is_refused(
    make: Callable[[Path], Path], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        quant_config(Checkpoint.open(make(tmp_path / "x")))


def test_command_writes_the_file_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy_checkpoint(tiny_checkpoint(2, Precision.NVFP4), tmp_path / "q")
    before = Checkpoint.open(path).quantization
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == f"{path / FILE}\n"
    fields = json.loads((path / FILE).read_text(encoding="utf-8"))["quantization"]
    assert (fields["quant_algo"], fields["group_size"], fields["kv_cache_quant_algo"]) == ("NVFP4", 16, None)
    assert {"lm_head", "model.layers.0.self_attn.o_gate"} <= set(fields["exclude_modules"])
    assert Checkpoint.open(path).quantization == before
    assert main([str(path)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main([]) == 2
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 2
