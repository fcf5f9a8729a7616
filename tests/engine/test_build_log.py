"""Reading logs: a real one, written by the build of this test session, and what is missing from broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.engines import BuiltEngine

from sala_export.engine.build import LOG_FILE
from sala_export.engine.build_log import parse_build_log, records
from sala_export.errors import BuildError


@pytest.fixture
def log(engine: BuiltEngine) -> str:
    return (engine.plan.parent / LOG_FILE).read_text(encoding="utf-8")


def test_records_keep_messages_of_several_lines_together() -> None:
    text = "loose line\n[INFO] one\n[VERBOSE] Layers:\nName: a\n\n Name: b\n[ERROR] [checks] two\n"
    assert list(records(text)) == [
        ("OUTPUT", "loose line"),
        ("INFO", "one"),
        ("VERBOSE", "Layers:\nName: a\n\n Name: b"),
        ("ERROR", "[checks] two"),
    ]


def test_real_log_holds_every_layer_with_its_tensors(engine: BuiltEngine) -> None:
    parsed = parse_build_log(engine.plan.parent / LOG_FILE, profiles=2)
    assert parsed.layers == engine.report.layers
    assert {layer.profile for layer in parsed.layers} == {0, 1}
    for profile, tokens in ((0, -1), (1, 1)):
        (attention,) = [
            layer
            for layer in parsed.layers
            if layer.profile == profile and "layers.1.mixer.attention" in layer.onnx_nodes
        ]
        inputs = {tensor.name: tensor for tensor in attention.inputs}
        assert attention.type == "custom_layer"
        assert inputs["past_key_values.1.key"].shape == (1, 2, -1, 64)
        assert inputs["past_key_values.1.key"].dtype == "BFloat16"
        assert inputs["past_length"].dtype == "Int32"
        assert attention.inputs[0].shape == (1, tokens, 2 * (32 + 2) * 64)
        outputs = {tensor.name for tensor in attention.outputs}
        assert {"present.1.key", "present.1.value", "present.1.k1", "present.1.k2"} <= outputs


def test_every_layer_has_the_profile_of_its_tokens(engine: BuiltEngine) -> None:
    for layer in engine.report.layers:
        for tensor in (*layer.inputs, *layer.outputs):
            if tensor.name in ("input_ids", "rope_cos_sin"):
                assert tensor.shape[1] == (-1, 1)[layer.profile]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[VERBOSE] Layers:", "[VERBOSE] Layer report:", r"expected one layer report, found 0"),
        ("[INFO] Total Activation Memory:", "[INFO] Scratch:", r"expected 2 lines 'Total Activation Memory: .*found 0"),
        ("[INFO] Total Weights Memory:", "[INFO] Weights:", r"expected 1 lines 'Total Weights Memory: .*found 0"),
        (", LayerType: custom_layer", ", Kind: custom_layer", r"cannot read the layer 'Name: "),
    ],
)
def test_log_of_another_form_is_refused(tmp_path: Path, log: str, old: str, new: str, message: str) -> None:
    assert old in log
    broken = tmp_path / LOG_FILE
    broken.write_text(log.replace(old, new), encoding="utf-8")
    with pytest.raises(BuildError, match=rf"build\.log: {message}.*this version of TensorRT logs in a form"):
        parse_build_log(broken, profiles=2)


def test_profile_that_is_not_in_the_log_is_missed(engine: BuiltEngine) -> None:
    with pytest.raises(BuildError, match=r"expected 3 lines 'Total Activation Memory: \.\. bytes', found 2"):
        parse_build_log(engine.plan.parent / LOG_FILE, profiles=3)
