"""Block-scaled products: reference and Triton kernels, interpreted and on a GPU, against float64 of what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.triton_interpreter import DEVICES, runner
from torch import Tensor

from sala_export.errors import UnsupportedError
from sala_export.ops.block_scaled_linear.cost import cost, floor, programs
from sala_export.ops.block_scaled_linear.torch_op import block_scaled_linear
from sala_export.ops.block_scaled_linear.triton_kernel import KERNELS
from sala_export.ops.block_scaled_linear_add.torch_op import block_scaled_linear_add
from sala_export.ops.block_scaled_linear_add.triton_kernel import KERNELS as ADDING
from sala_export.ops.common.expr import evaluate
from sala_export.ops.common.targets import serving_architecture
from sala_export.ops.common.triton_run import bind_kernels
from sala_export.specs import ComputeCapability

FACTOR = 0.375
NAN_CODE = 0x7F
FLOAT32_ERROR = 2.0**-20
"""Of the sum of magnitudes: 2^-24 for each addition, of which a few dozen follow each other in one accumulator."""


@dataclass(frozen=True, kw_only=True)
class Operand:
    """Rows as they are stored: bytes of codes [rows, K] and of scales [rows, K / 32]."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.uint8]

    def values(self) -> NDArray[np.float64]:
        blocks = self.codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64).reshape(*self.scales.shape, 32)
        values = blocks * self.scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)[..., None]
        return np.asarray(values.reshape(self.codes.shape))

    def tensors(self, *rows: int) -> list[Tensor]:
        """Codes and words of scales, by a shift of each byte to its place."""
        parts = self.scales.astype(np.uint32).reshape(len(self.scales), -1, 4)
        words = (parts << np.array([0, 8, 16, 24], np.uint32)).sum(-1, dtype=np.uint32).view(np.int32)
        codes = torch.from_numpy(self.codes.reshape(*rows, -1)).view(torch.float8_e4m3fn)
        return [codes, torch.from_numpy(np.ascontiguousarray(words.T).reshape(-1, *rows))]


def drawn(rows: int, columns: int, seed: int) -> Operand:
    """Any finite codes, scales from 2^-12 to 2^3."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 256, (rows, columns), np.uint8)
    codes[codes & NAN_CODE == NAN_CODE] ^= 1
    return Operand(codes=codes, scales=generator.integers(115, 131, (rows, columns // 32), np.uint8))


def operands(batch: int, tokens: int, inputs: int, outputs: int) -> tuple[Operand, Operand]:
    return drawn(batch * tokens, inputs, 1), drawn(outputs, inputs, 2)


def tensors(x: Operand, weight: Operand, batch: int, tokens: int) -> list[Tensor]:
    return [*x.tensors(batch, tokens), *weight.tensors(len(weight.codes))]


def assert_product(found: Tensor, x: Operand, weight: Operand, *, stream: Tensor | None = None) -> None:
    """As exact as sums in float32 and one rounding to the type of `found`; NaN where it must be, and nowhere else."""
    a, b = x.values(), weight.values()
    expected, magnitudes = a @ b.T, np.abs(a) @ np.abs(b).T
    if stream is not None:
        added = stream.double().numpy().reshape(expected.shape)
        expected, magnitudes = added + FACTOR * expected, np.abs(added) + FACTOR * magnitudes
    rounding = torch.finfo(found.dtype).eps / 2 * (1 + FLOAT32_ERROR)
    given = found.double().cpu().numpy().reshape(expected.shape)
    assert (np.isnan(given) == np.isnan(expected)).all()
    error, allowed = np.abs(given - expected), rounding * np.abs(expected) + FLOAT32_ERROR * magnitudes
    assert (np.isnan(expected) | (error <= allowed)).all()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """One of `DEVICES`; of GPUs those that have the kernels."""
    if request.param == "cuda":
        capability = ComputeCapability(*torch.cuda.get_device_capability())
        if serving_architecture(capability, KERNELS.architectures) is None:
            pytest.skip(f"no block-scaled products on {capability.sm}")
    return str(request.param)


def run(device: str, inputs: Sequence[Tensor], **attributes: float) -> Tensor:
    """`y` of the kernels, on the CPU. A stream is the fifth input."""
    run_kernels, place = runner(device)
    operator = "block_scaled_linear_add" if len(inputs) > 4 else "block_scaled_linear"
    return run_kernels(operator, [x.to(place) for x in inputs], attributes)["y"].cpu()


SIZES = [
    # Batch, tokens, inputs, outputs: one token.
    (1, 1, 128, 8),
    (3, 1, 640, 40),
    (8, 1, 256, 72),
    (17, 1, 128, 32),
    # Few rows and many, on either side of 64; fewer and more columns than a tile.
    (1, 2, 256, 264),
    (8, 8, 128, 136),
    (5, 13, 384, 24),
    (1, 300, 128, 264),
    (3, 43, 384, 128),
]


@pytest.mark.parametrize(("batch", "tokens", "inputs", "outputs"), SIZES)
def test_kernels_and_references_are_as_exact_as_their_types(
    batch: int, tokens: int, inputs: int, outputs: int, device: str
) -> None:
    x, weight = operands(batch, tokens, inputs, outputs)
    given = tensors(x, weight, batch, tokens)
    assert_product(run(device, given), x, weight)
    assert_product(block_scaled_linear(*given), x, weight)
    stream = 2000 * torch.randn(batch, tokens, outputs, generator=torch.Generator().manual_seed(3))
    # Either type with every kind of tile.
    added = stream.bfloat16() if inputs == 128 else stream
    assert_product(run(device, [*given, added], factor=FACTOR), x, weight, stream=added)
    assert_product(block_scaled_linear_add(*given, added, factor=FACTOR), x, weight, stream=added)


@pytest.mark.parametrize("tokens", [1, 5, 70])
def test_zeros_nans_and_the_largest_numbers(tokens: int, device: str) -> None:
    """Rows of x: zeros, a NaN code, a NaN scale, all codes 448. Rows of the weight: the same in other places."""
    x, weight = operands(6, tokens, 256, 136)
    places = (0, 1, 2, 3)
    for operand, first in ((x, 0), (weight, 130)):
        zero, nan, nan_scale, largest = (first + place for place in places)
        operand.codes[zero] = 0
        operand.codes[nan, 77] = NAN_CODE
        operand.scales[nan_scale, -1] = 255
        operand.codes[largest] = NAN_CODE - 1
        operand.scales[largest] = 127 + 48
    found = run(device, tensors(x, weight, 6, tokens))
    assert_product(found, x, weight)
    rows = found.reshape(-1, 136)
    assert (rows[0, :130] == 0).all()
    assert rows[1].isnan().all()
    assert rows[2].isnan().all()
    assert rows[3, 133] == 256 * 448.0**2 * 2.0**96


@pytest.mark.parametrize(("tokens", "outputs"), [(1, 72), (40, 264)])
def test_repeated_runs_give_equal_bits(tokens: int, outputs: int, device: str) -> None:
    x, weight = operands(2, tokens, 384, outputs)
    given = tensors(x, weight, 2, tokens)
    first = run(device, given)
    assert all(torch.equal(run(device, given), first) for _ in range(1 if device == "interpreter" else 20))


def test_other_architectures_are_refused() -> None:
    x, weight = operands(1, 3, 128, 8)
    with pytest.raises(UnsupportedError, match=r"^BlockScaledLinear: no kernels for SM90, they exist for SM120, "):
        bind_kernels(block_scaled_linear.contract, KERNELS, tensors(x, weight, 1, 3), {}, sm=90)


def test_kernels_without_a_tile_for_an_architecture_are_refused() -> None:
    with pytest.raises(ValueError, match=r"block_scaled_linear_kernel: tiles are missing, or not wanted, for SM90$"):
        replace(KERNELS, architectures=(90, 120, 121))


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (100, 1), (1, 64), (5, 13), (1, 8192), (250, 8192)])
def test_one_launch_serves_every_call_and_the_account_is_of_its_programs(batch: int, tokens: int, adds: bool) -> None:
    kernel_set = ADDING if adds else KERNELS
    sizes = {"B": batch, "T": tokens, "K": 4096, "N": 8712}
    served = []
    for launch in kernel_set.decode if tokens == 1 else kernel_set.prefill:
        names = {**kernel_set.compile_time(launch, 120, {}), **sizes}
        if grid := evaluate(launch.grid[0], names):
            (turn,) = launch.main_loop
            tile = [evaluate(size, names) for size in (turn.m, turn.n, turn.k)]
            served.append((launch.name, grid, 2 * grid * np.prod(tile) * 4096 // 128))
    account = cost(4096, 8712, batch=batch, tokens=tokens, adds=adds)
    assert served == [
        (account.kernel, programs(8712, batch=batch, tokens=tokens, adds=adds), account.operations),
    ]


@pytest.mark.parametrize("adds", [False, True])
def test_account_of_a_chunk_is_that_of_its_tensors(adds: bool) -> None:
    """Counted by hand: 8192 rows of 4096, a weight of 8704 rows; outputs in two bytes."""
    least, account = (f(4096, 8704, batch=1, tokens=8192, adds=adds) for f in (floor, cost))
    stored, y_bytes = (8192 + 8704) * (4096 + 128), 8192 * 8704 * 2
    assert (least.bytes_read, least.bytes_written) == (stored + adds * y_bytes, y_bytes)
    assert (account.bytes_read, account.bytes_written) == (least.bytes_read, least.bytes_written)
    assert account.operations == least.operations == 2 * 8192 * 8704 * 4096
    columns = 128 if adds else 256
    assert account.bytes_from_cache == 64 * (8704 // columns) * (128 + columns) * (4096 + 128)
