"""A small model whose contexts turn sparse early, and sessions of it that go on from each other or together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

import sala_export
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session

from .runtime_bundles import write_cpu_bundle
from .small_models import write_small_checkpoint

DENSE_LEN = 256
SPARSE = {
    "kernel_size": 32,
    "kernel_stride": 16,
    "block_size": 64,
    "topk": 4,
    "window_size": 64,
    "init_blocks": 1,
    "dense_len": DENSE_LEN,
}
MAX_CONTEXT = 900
CHUNK_TOKENS = 48
TOLERANCE = 1e-5
"""Of the largest value. A session and its replay run the same steps, so only the order of sums may differ."""


def small_model(runtime: str, folder: Path) -> Iterator[Model]:
    """Yield it. Of its heads a page of the host's memory holds 128 rows, so that contexts share pages and parts of
    pages. Torch computes with one thread meanwhile: steps are short, and the number is the process's."""
    mixers = ("lightning-attn", "minicpm4", "lightning-attn", "minicpm4")
    checkpoint = write_small_checkpoint(folder / "checkpoint", mixers, sparse_config=SPARSE, head_dim=128)
    threads = torch.get_num_threads()
    if runtime == "torch":
        yield sala_export.load(checkpoint, runtime="torch", device="cpu", threads=1)
    else:
        yield sala_export.load(write_cpu_bundle(checkpoint, folder / "small.sala"), runtime="onnxruntime", threads=1)
    torch.set_num_threads(threads)


def random_ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 97, count).tolist()


def new_session(model: Model) -> Session:
    return model.session(max_context=MAX_CONTEXT, chunk_tokens=CHUNK_TOKENS)


def assert_same(actual: NDArray[np.float32] | None, expected: NDArray[np.float32] | None) -> None:
    if actual is None or expected is None:
        assert actual is expected
        return
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    if expected.size:
        assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


def assert_same_state(actual: Session, expected: Session, folder: Path) -> None:
    """Compare two sessions by the files that they save: ids, and every row of every cache."""
    states = []
    for name, session in (("actual", actual), ("expected", expected)):
        session.save(folder / name)
        states.append(load_file(folder / name))
    ours, theirs = states
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        if tensor.dtype == np.float32:
            assert_same(ours[name], tensor)
        else:
            np.testing.assert_array_equal(ours[name], tensor)
