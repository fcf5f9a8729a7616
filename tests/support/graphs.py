"""Small ONNX graphs of the exported form, made with onnx.helper, for tests of what consumes a graph.

Names, shapes and external weights are those of the exporter's contract (docs of `sala_export.onnx`); the arithmetic is
the model's, but nothing here checks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

WEIGHTS_FILE = "weights.bin"


@dataclass(frozen=True, kw_only=True, slots=True)
class MiniGraph:
    """Sizes of a graph. A layer is its mixer: `lightning`, `sparse`, or `none` for an MLP alone (no plugin needed)."""

    mixers: tuple[str, ...] = ("lightning", "sparse")
    vocab_size: int = 512
    hidden_size: int = 128
    intermediate_size: int = 384
    num_heads: int = 32
    num_kv_heads: int = 2
    head_dim: int = 64
    dtype: int = TensorProto.BFLOAT16
    sparse: dict[str, int] = field(
        default_factory=lambda: {
            "kernel_size": 32,
            "kernel_stride": 16,
            "block_size": 64,
            "topk": 4,
            "window_size": 256,
            "init_blocks": 1,
            "dense_len": 1024,
        }
    )

    def write(self, folder: Path, seed: int = 0) -> Path:
        """Write `model.onnx` and its weights to `folder`; returns the path of the graph."""
        writer = _Writer(self, folder, np.random.default_rng(seed))
        model = writer.model()
        path = folder / "model.onnx"
        onnx.save(model, path)
        return path


class _Writer:
    def __init__(self, sizes: MiniGraph, folder: Path, random: np.random.Generator) -> None:
        self.sizes = sizes
        self.random = random
        self.weights_path = folder / WEIGHTS_FILE
        self.offset = 0
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def model(self) -> onnx.ModelProto:
        self.weights_path.write_bytes(b"")
        sizes = self.sizes
        self.input("input_ids", TensorProto.INT64, ["batch", "tokens"])
        self.input("past_length", TensorProto.INT32, ["batch"])
        self.input("context_length", TensorProto.INT32, ["batch"])
        self.input("rope_cos_sin", TensorProto.FLOAT, ["batch", "tokens", sizes.head_dim])
        embedding = self.weight("model.embed_tokens.weight", (sizes.vocab_size, sizes.hidden_size))
        hidden = self.node("Gather", "embed_tokens", embedding, "input_ids")
        for i, mixer in enumerate(sizes.mixers):
            if mixer != "none":
                hidden = self.node("Add", f"layers.{i}.mixer.add", hidden, self.mixer(i, mixer, hidden))
            hidden = self.node("Add", f"layers.{i}.mlp.add", hidden, self.mlp(i, hidden))
        self.constant("last", np.array([-1], np.int64))
        last = self.node("Gather", "last_token", hidden, "last", axis=1)
        self.constant("token_axis", np.array([1], np.int64))
        row = self.node("Squeeze", "last_row", last, "token_axis")
        logits = self.linear("lm_head", row, (sizes.vocab_size, sizes.hidden_size))
        self.nodes.append(helper.make_node("Cast", [logits], ["logits"], name="logits", to=TensorProto.FLOAT))
        self.output("logits", TensorProto.FLOAT, ["batch", sizes.vocab_size])
        graph = helper.make_graph(self.nodes, "mini", self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("sala", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def mixer(self, i: int, mixer: str, hidden: str) -> str:
        sizes = self.sizes
        width = sizes.num_heads * sizes.head_dim
        kv = width if mixer == "lightning" else sizes.num_kv_heads * sizes.head_dim
        parts = [
            self.weight(f"layers.{i}.{name}.weight", (rows, sizes.hidden_size))
            for name, rows in (("q_proj", width), ("k_proj", kv), ("v_proj", kv), ("gate", width))
        ]
        projected = self.packed(f"layers.{i}.mixer.qkv_proj", hidden, parts)
        y = self.lightning(i, projected) if mixer == "lightning" else self.attention(i, projected)
        return self.linear(f"layers.{i}.mixer.o_proj", y, (sizes.hidden_size, width))

    def lightning(self, i: int, qkvz: str) -> str:
        sizes = self.sizes
        norms = [
            self.weight(f"layers.{i}.{name}.weight", (size,))
            for name, size in (
                ("q_norm", sizes.head_dim),
                ("k_norm", sizes.head_dim),
                ("o_norm", sizes.num_heads * sizes.head_dim),
            )
        ]
        shape: list[int | str] = ["batch", sizes.num_heads, sizes.head_dim, sizes.head_dim]
        past, present = f"past_key_values.{i}.state", f"present.{i}.state"
        self.input(past, TensorProto.FLOAT, shape)
        self.output(present, TensorProto.FLOAT, shape)
        y = f"layers.{i}.mixer.y"
        self.sala("LightningAttention", i, [qkvz, *norms, "rope_cos_sin", past], [y, present], {"eps": 1e-6})
        return y

    def attention(self, i: int, qkvg: str) -> str:
        sizes = self.sizes
        pairs = []
        capacities = {"key": "capacity", "value": "capacity", "k1": "capacity_k1", "k2": "capacity_k2"}
        for name, capacity in capacities.items():
            shape: list[int | str] = ["batch", sizes.num_kv_heads, capacity, sizes.head_dim]
            pairs.append((f"past_key_values.{i}.{name}", f"present.{i}.{name}"))
            self.input(pairs[-1][0], sizes.dtype, shape)
            self.output(pairs[-1][1], sizes.dtype, shape)
        y = f"layers.{i}.mixer.y"
        inputs = [qkvg, "past_length", "context_length", *(past for past, _ in pairs)]
        attributes = {"num_kv_heads": sizes.num_kv_heads, **sizes.sparse}
        self.sala("InfLLMv2Attention", i, inputs, [y, *(present for _, present in pairs)], attributes)
        return y

    def sala(
        self, op: str, i: int, inputs: list[str], outputs: list[str], attributes: Mapping[str, int | float]
    ) -> None:
        sizes = self.sizes
        common = {"num_heads": sizes.num_heads, "head_dim": sizes.head_dim, "scale": sizes.head_dim**-0.5}
        plugin = {"plugin_namespace": "sala", "plugin_version": "1"}
        node = helper.make_node(op, inputs, outputs, name=f"layers.{i}.mixer.attention", domain="sala")
        node.attribute.extend(helper.make_attribute(k, v) for k, v in {**common, **attributes, **plugin}.items())
        self.nodes.append(node)

    def mlp(self, i: int, hidden: str) -> str:
        sizes = self.sizes
        parts = [
            self.weight(f"layers.{i}.{name}.weight", (sizes.intermediate_size, sizes.hidden_size))
            for name in ("gate_proj", "up_proj")
        ]
        projected = self.packed(f"layers.{i}.mlp.gate_up_proj", hidden, parts)
        # Reshape and Gather, not Split: TensorRT would turn a split GEMM into two and keep their weights twice.
        self.constant(f"layers.{i}.mlp.halves", np.array([0, 0, 2, sizes.intermediate_size], np.int64))
        halves = self.node("Reshape", f"layers.{i}.mlp.unflatten", projected, f"layers.{i}.mlp.halves")
        for index, name in enumerate(("gate", "up")):
            self.constant(f"layers.{i}.mlp.{name}_index", np.array(index, np.int64))
        gate = self.node("Gather", f"layers.{i}.mlp.gate", halves, f"layers.{i}.mlp.gate_index", axis=2)
        up = self.node("Gather", f"layers.{i}.mlp.up", halves, f"layers.{i}.mlp.up_index", axis=2)
        sigmoid = self.node("Sigmoid", f"layers.{i}.mlp.sigmoid", gate)
        silu = self.node("Mul", f"layers.{i}.mlp.silu", gate, sigmoid)
        product = self.node("Mul", f"layers.{i}.mlp.product", silu, up)
        return self.linear(f"layers.{i}.mlp.down_proj", product, (sizes.hidden_size, sizes.intermediate_size))

    def packed(self, name: str, x: str, parts: list[str]) -> str:
        pack = self.node("Concat", f"{name}.pack", *parts, axis=0)
        return self.node("MatMul", name, x, self.node("Transpose", f"{name}.transpose", pack, perm=[1, 0]))

    def linear(self, name: str, x: str, shape: tuple[int, int]) -> str:
        turned = self.node("Transpose", f"{name}.transpose", self.weight(f"{name}.weight", shape), perm=[1, 0])
        return self.node("MatMul", name, x, turned)

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        """A random initializer in the external file; bf16 is the upper half of float32."""
        values = self.random.normal(0.0, 0.02, shape).astype(np.float32)
        if self.sizes.dtype == TensorProto.BFLOAT16:
            raw = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        else:
            raw = values.astype(helper.tensor_dtype_to_np_dtype(self.sizes.dtype)).tobytes()
        with self.weights_path.open("ab") as file:
            file.write(raw)
        tensor = TensorProto(name=name, data_type=self.sizes.dtype, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", WEIGHTS_FILE), ("offset", self.offset), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
        self.offset += len(raw)
        self.initializers.append(tensor)
        return name

    def constant(self, name: str, values: np.ndarray) -> None:
        self.initializers.append(onnx.numpy_helper.from_array(values, name))

    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> None:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def output(self, name: str, dtype: int, shape: Sequence[int | str]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))
