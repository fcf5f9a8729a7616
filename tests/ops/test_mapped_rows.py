"""Kernels touch no row of a cache behind those in use: a session maps memory for these alone."""

from __future__ import annotations

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict

import pytest
import torch
from support.mapped_caches import mapped, run_on_mapped_rows
from support.oracles import SparseSizes
from support.sparse_calls import Cache, feed, int32, projections, windows
from support.triton_interpreter import call_interpreting

CAPACITY = 4096
# A row of D = 128 takes 512 bytes, so eight fill a page of 4 KiB.
SIZES = SparseSizes(
    num_heads=4,
    num_kv_heads=2,
    head_dim=128,
    scale=1 / math.sqrt(128),
    kernel_size=32,
    kernel_stride=16,
    block_size=64,
    topk=3,
    window_size=128,
    init_blocks=1,
    dense_len=500,
)


# The ends fill a page with rows of keys and values, and 272 with the 16 rows of k1, 576 with the 8 rows of k2.
@pytest.mark.parametrize(("past", "tokens"), [(208, 64), (271, 1), (0, 24), (512, 64), (575, 1), (1015, 1)])
def test_kernels_touch_only_rows_in_use(past: int, tokens: int) -> None:
    end = past + tokens
    qkvg = projections(end, SIZES, seed=end)
    cache = feed(qkvg[:past], [past], SIZES, CAPACITY)[1] if past else Cache.empty(1, CAPACITY, SIZES)
    wanted, after = feed(qkvg, [past, tokens] if past else [tokens], SIZES, CAPACITY, context_length=end)
    rows = [end, end, windows(end, 32, 16), windows(end, 128, 64)]
    inputs = [qkvg[None, past:], int32([past]), int32([end]), *cache.tensors()]
    y, caches = call_interpreting(run_on_mapped_rows, inputs, asdict(SIZES), rows)
    assert (y[0] - wanted[past:]).abs().max() < 1e-4
    for found, cached, count in zip(caches, after.tensors(), rows, strict=True):
        torch.testing.assert_close(found, cached[:, :, :count])


def test_touching_another_row_ends_the_process() -> None:
    alone = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with pytest.raises(BrokenProcessPool):
        alone.submit(_sum_of_unmapped_rows).result()


def _sum_of_unmapped_rows() -> float:
    return float(mapped(torch.ones(1, 2, 64, 128), 8)[0, 0, 8].sum())
