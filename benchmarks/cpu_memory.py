"""Peak memory of a streamed prefill on the CPU beside what weights and cache account for.

A child process streams a prompt through a small model with sparse and lightning layers. Its peak is compared with
constant + weights + cache: the cache follows from the bundle's interface, the constant (program, libraries, the scratch
of one chunk) is what a short prompt takes beyond its own cache. Memory is bounded if both agree at any length.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from sala_export.bundle.reader import Bundle
from sala_export.model.signature import cache_sizes

# tests/ is no package.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.runtime_bundles import write_cpu_bundle
from support.small_models import write_small_checkpoint

SHORT_TOKENS = 16_384
GOAL = 0.05
"""Relative difference between measured and expected peak."""

# One sparse layer of two narrow heads with wide windows: selection grows with the square of the prompt, and a million
# tokens must end in minutes.
MIXERS = ("lightning-attn", "minicpm4")
_SPARSE = {
    "kernel_size": 512,
    "kernel_stride": 256,
    "block_size": 1024,
    "topk": 2,
    "window_size": 0,
    "init_blocks": 1,
    "dense_len": 1024,
}

_CHILD = """
import sys
import numpy as np
from sala_export.runtime.model import load_bundle
bundle, tokens, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random = np.random.default_rng(0)
session = load_bundle(bundle, threads=threads).session(max_context=tokens)
session.prefill(random.integers(0, 97, min(4096, tokens - start)) for start in range(0, tokens, 4096))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PeakMemory:
    """One streamed prompt."""

    tokens: int
    seconds: float
    peak_bytes: int
    cache_bytes: int
    expected_bytes: int

    @property
    def difference(self) -> float:
        """Measured over expected, less one."""
        return self.peak_bytes / self.expected_bytes - 1


def measure_memory(tokens: int, threads: int) -> PeakMemory:
    """Stream `tokens` tokens and, for the constant, `SHORT_TOKENS`."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_bundle(Path(folder))
        constant = _peak_bytes(bundle, SHORT_TOKENS, threads) - _cache_bytes(bundle, SHORT_TOKENS)
        start = time.monotonic()
        peak = _peak_bytes(bundle, tokens, threads)
        return PeakMemory(
            tokens=tokens,
            seconds=time.monotonic() - start,
            peak_bytes=peak,
            cache_bytes=_cache_bytes(bundle, tokens),
            expected_bytes=constant + _cache_bytes(bundle, tokens),
        )


def write_bundle(folder: Path) -> Path:
    """The small model, in a folder."""
    checkpoint = write_small_checkpoint(
        folder / "checkpoint", MIXERS, sparse_config=_SPARSE, num_attention_heads=2, head_dim=32
    )
    return write_cpu_bundle(checkpoint, folder / "small.sala")


def _cache_bytes(bundle: Path, tokens: int) -> int:
    manifest = Bundle.open(bundle).manifest
    sizes = {**cache_sizes(manifest.model.config, tokens), "tokens": 0}
    return sum(spec.size_bytes(sizes) for spec in manifest.graph.cpu.inputs if spec.name.startswith("past_key_values."))


def _peak_bytes(bundle: Path, tokens: int, threads: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(bundle), str(tokens), str(threads)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout) * 1024
