"""Small graphs of the engine's form, made with onnx.helper, for tests of what consumes a graph.

Weights are inputs, as the engine stage expects them, and int4's codes and scales are constants in a file beside the
graph. The arithmetic is the model's, but nothing here checks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

CONSTANTS_FILE = "constants.bin"
CODES = {"fp8": TensorProto.FLOAT8E4M3FN, "int8": TensorProto.INT8, "nvfp4": TensorProto.FLOAT4E2M1}
"""Types of the quantised weights that are inputs."""


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
    precision: str = "bf16"
    """`fp8`, `int8`, `int4` or `nvfp4` quantises the products of the MLP. An nvfp4 graph can be read, but not built."""
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

    def write(self, folder: Path) -> Path:
        """Write `engine.onnx`, and its constants if it has any, to `folder`; returns the path of the graph."""
        writer = _Writer(self, folder)
        model = writer.model()
        path = folder / "engine.onnx"
        onnx.save(model, path)
        return path


class _Writer:
    def __init__(self, sizes: MiniGraph, folder: Path) -> None:
        self.sizes = sizes
        self.random = np.random.default_rng(0)
        self.constants_path = folder / CONSTANTS_FILE
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.weights: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def model(self) -> onnx.ModelProto:
        sizes = self.sizes
        self.input("input_ids", TensorProto.INT64, ["batch", "tokens"])
        self.input("past_length", TensorProto.INT32, ["batch"])
        self.input("context_length", TensorProto.INT32, ["batch"])
        self.input("rope_cos_sin", TensorProto.FLOAT, ["batch", "tokens", sizes.head_dim])
        self.input("logit_rows", TensorProto.INT32, ["rows"])
        self.node("Shape", "step", "input_ids")
        embedding = self.weight("model.embed_tokens.weight", (sizes.vocab_size, sizes.hidden_size))
        hidden = self.node("Gather", "embed_tokens", embedding, "input_ids")
        for i, mixer in enumerate(sizes.mixers):
            if mixer != "none":
                hidden = self.node("Add", f"layers.{i}.mixer.add", hidden, self.mixer(i, mixer, hidden))
            hidden = self.node("Add", f"layers.{i}.mlp.add", hidden, self.mlp(i, hidden))
        self.constant("flat", np.array([-1, sizes.hidden_size], np.int64))
        tokens = self.node("Reshape", "flatten", hidden, "flat")
        rows = self.node("Gather", "wanted_rows", tokens, "logit_rows", axis=0)
        head = self.weight("lm_head.weight", (sizes.vocab_size, sizes.hidden_size))
        logits = self.node("Gemm", "lm_head/Gemm", rows, head, transB=1)
        self.nodes.append(helper.make_node("Cast", [logits], ["logits"], name="logits", to=TensorProto.FLOAT))
        self.output("logits", TensorProto.FLOAT, ["rows", sizes.vocab_size])
        inputs = [*self.inputs, *self.weights]
        graph = helper.make_graph(self.nodes, "mini", inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("sala", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=11)

    def mixer(self, i: int, mixer: str, hidden: str) -> str:
        sizes = self.sizes
        width = sizes.num_heads * sizes.head_dim
        kv = width if mixer == "lightning" else sizes.num_kv_heads * sizes.head_dim
        projected = self.linear(f"layers.{i}.mixer.qkv_proj", hidden, (2 * width + 2 * kv, sizes.hidden_size))
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
        projected = self.linear(
            f"layers.{i}.mlp.gate_up_proj", hidden, (2 * sizes.intermediate_size, sizes.hidden_size), sizes.precision
        )
        self.constant(f"layers.{i}.mlp.halves", np.array([0, 0, 2, sizes.intermediate_size], np.int64))
        halves = self.node("Reshape", f"layers.{i}.mlp.unflatten", projected, f"layers.{i}.mlp.halves")
        for index, name in enumerate(("gate", "up")):
            self.constant(f"layers.{i}.mlp.{name}_index", np.array(index, np.int64))
        gate = self.node("Gather", f"layers.{i}.mlp.gate", halves, f"layers.{i}.mlp.gate_index", axis=2)
        up = self.node("Gather", f"layers.{i}.mlp.up", halves, f"layers.{i}.mlp.up_index", axis=2)
        sigmoid = self.node("Sigmoid", f"layers.{i}.mlp.sigmoid", gate)
        silu = self.node("Mul", f"layers.{i}.mlp.silu", gate, sigmoid)
        product = self.node("Mul", f"layers.{i}.mlp.product", silu, up)
        shape = (sizes.hidden_size, sizes.intermediate_size)
        return self.linear(f"layers.{i}.mlp.down_proj", product, shape, sizes.precision)

    def linear(self, name: str, x: str, shape: tuple[int, int], precision: str = "bf16") -> str:
        """A product of [batch, tokens, in] with weights [out, in], in rows."""
        rows, columns = shape
        self.constant(f"{name}.flat", np.array([-1, columns], np.int64))
        x = self.node("Reshape", f"{name}.flatten", x, f"{name}.flat")
        if precision in ("fp8", "int8"):
            y = self.scaled_product(name, x, shape, CODES[precision])
        elif precision == "int4":
            weight = self.node("DequantizeLinear", f"{name}.dq", *self.int4(name, shape), axis=0, block_size=128)
            y = self.node("MatMul", f"{name}/MatMul", x, weight)
        elif precision == "nvfp4":
            y = self.node("Gemm", f"{name}/Gemm", x, self.nvfp4(name, shape), transB=1)
        else:
            y = self.node("Gemm", f"{name}/Gemm", x, self.weight(f"{name}.weight", shape), transB=1)
        self.constant(f"{name}.rows", np.array([rows], np.int64))
        wanted = self.node("Concat", f"{name}.shape", "step.out", f"{name}.rows", axis=0)
        return self.node("Reshape", f"{name}.unflatten", y, wanted)

    def scaled_product(self, name: str, x: str, shape: tuple[int, int], codes: int) -> str:
        """Codes as inputs, with the scales of activation and product outside of the product, inputs too."""
        dtype = self.sizes.dtype
        self.initializers.append(helper.make_tensor(f"{name}.one", dtype, [], [1.0]))
        x = self.node("Cast", f"{name}.widen", x, to=TensorProto.FLOAT)
        x = self.node("Div", f"{name}.div", x, self.weight(f"{name}.input_scale", (1,), TensorProto.FLOAT))
        x = self.node("Cast", f"{name}.narrow", x, to=dtype)
        x = self.node("QuantizeLinear", f"{name}.q", x, f"{name}.one", output_dtype=codes)
        x = self.node("DequantizeLinear", f"{name}.dq", x, f"{name}.one")
        weight = self.weight(f"{name}.weight", shape, codes)
        y = self.node("Gemm", f"{name}/Gemm", x, self.node("DequantizeLinear", f"{name}.w", weight, f"{name}.one"))
        self.nodes[-1].attribute.append(helper.make_attribute("transB", 1))
        y = self.node("Cast", f"{name}.sum", y, to=TensorProto.FLOAT)
        y = self.node("Mul", f"{name}.mul", y, self.weight(f"{name}.scale", (shape[0],), TensorProto.FLOAT))
        return self.node("Cast", f"{name}.out16", y, to=dtype)

    def int4(self, name: str, shape: tuple[int, int]) -> tuple[str, str]:
        """Codes [in, out] in the file of constants, their scales in the graph; `shape` is [out, in]."""
        data = self.random.integers(0, 256, shape[0] * shape[1] // 2, dtype=np.uint8).tobytes()
        offset = self.constants_path.stat().st_size if self.constants_path.exists() else 0
        with self.constants_path.open("ab") as file:
            file.write(data)
        codes = TensorProto(name=f"{name}.codes", data_type=TensorProto.INT4, dims=shape[::-1])
        codes.data_location = TensorProto.EXTERNAL
        for key, value in (("location", CONSTANTS_FILE), ("offset", offset), ("length", len(data))):
            codes.external_data.add(key=key, value=str(value))
        count = shape[0] * shape[1] // 128
        scales = helper.make_tensor(f"{name}.scales", self.sizes.dtype, (shape[1] // 128, shape[0]), [0.5] * count)
        self.initializers += [codes, scales]
        return codes.name, scales.name

    def nvfp4(self, name: str, shape: tuple[int, int]) -> str:
        """Codes as an input, with constant scales in two levels."""
        blocks = (shape[0], shape[1] // 16)
        count = blocks[0] * blocks[1]
        self.initializers.append(
            helper.make_tensor(f"{name}.scales", TensorProto.FLOAT8E4M3FN, blocks, bytes([56]) * count, raw=True)
        )
        self.initializers.append(helper.make_tensor(f"{name}.global", self.sizes.dtype, [], [0.5]))
        scale = self.node("DequantizeLinear", f"{name}.s", f"{name}.scales", f"{name}.global")
        weight = self.weight(f"{name}.weight", shape, CODES["nvfp4"])
        return self.node("DequantizeLinear", f"{name}.w", weight, scale, axis=1, block_size=16)

    def weight(self, name: str, shape: tuple[int, ...], dtype: int | None = None) -> str:
        """An input of fixed shape, by default of the type of the activations."""
        self.weights.append(helper.make_tensor_value_info(name, dtype or self.sizes.dtype, shape))
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
