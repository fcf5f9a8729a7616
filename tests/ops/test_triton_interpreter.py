"""Casts in Triton's interpreter, with what `sala_export/ops/common/triton_interpreter.py` puts right, by ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from support.kernel_probes import cast_in_kernel
from support.triton_interpreter import call_interpreting

COUNT = 1 << 16


def e4m3_probes() -> NDArray[np.float32]:
    """COUNT numbers: each e4m3 number, what lies between two and beside that, any bits, and what lies near 448."""
    generator = np.random.default_rng(0)
    numbers = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    ties = (numbers[1:] + numbers[:-1]) / 2
    beside = [np.nextafter(x, np.float32(way)) for x in (numbers, ties) for way in (-np.inf, np.inf)]
    special = np.array([0.0, 1e-45, 2.0**-10, 448.0, 463.9, 464.0, 465.0, 480.0, 3e38, np.inf, np.nan], np.float32)
    probes = np.concatenate([numbers, ties, *beside, special])
    probes = np.concatenate([probes, -probes, generator.uniform(-500, 500, COUNT // 2).astype(np.float32)])
    any_bits = generator.integers(0, 1 << 32, COUNT - len(probes), dtype=np.uint32).view(np.float32)
    return np.concatenate([probes, any_bits])


def test_casts_to_e4m3_round_and_saturate_as_a_gpu_does() -> None:
    """PTX ISA, `cvt.rn.satfinite.e4m3x2.f32`: what is beyond 448 is 448, an infinity too, and NaN is 0x7f."""
    probes = e4m3_probes()
    found = call_interpreting(cast_in_kernel, torch.from_numpy(probes), torch.float8_e4m3fn)
    numbers = np.where(np.isnan(probes), np.float32(0.0), probes)
    nearest = np.clip(numbers, -448.0, 448.0).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    expected = np.where(np.isnan(probes), 0x7F, nearest)
    np.testing.assert_array_equal(found.view(torch.uint8).numpy(), expected)


def test_casts_from_bfloat16_keep_every_number() -> None:
    bits = np.arange(COUNT, dtype=np.uint16)
    found = call_interpreting(cast_in_kernel, torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16), torch.float32)
    expected = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_casts_to_bfloat16_round_to_nearest() -> None:
    bits = np.random.default_rng(1).integers(0, 1 << 32, COUNT, dtype=np.uint32)
    bits[::2] &= 0xFFFF8000  # Half of them lie in the middle, or on a number.
    bits[0] = 0x7FC00000
    values = bits.view(np.float32)
    found = call_interpreting(cast_in_kernel, torch.from_numpy(values), torch.bfloat16).float().numpy()
    numbers = ~np.isnan(values)
    expected = values[numbers].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(found[numbers], expected)
    assert np.isnan(found[~numbers]).all()
