"""The steps of `benchmarks.first_light`, the most telling first. Their seconds are what an H200 took, rounded up.

When time runs out, the last steps are the first to be left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One program with a time of its own. It takes `--figures FILE --step LETTER`; `{figures}` stands for that file."""

    letter: str
    name: str
    command: tuple[str, ...]
    """Arguments of Python."""
    seconds: int
    """What it is expected to take."""
    limit: int
    """Seconds after which it is stopped."""

    def arguments(self, figures: Path) -> list[str]:
        """The command line."""
        own = [part.replace("{figures}", str(figures)) for part in self.command]
        return [sys.executable, *own, "--figures", str(figures), "--step", self.letter]


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return ("-m", f"benchmarks.{name}", *arguments)


def _tests(*arguments: str) -> tuple[str, ...]:
    options = ("-m", "gpu", "--require", "gpu", "-p", "benchmarks.pytest_figures", "-p", "no:cacheprovider")
    return ("-m", "pytest", "-q", "--tb=line", *options, *arguments)


_KNOWN_GATE = ("--gate", "report", "--gate-from", "{figures}")
_TUNING = ("--rounds", "5", *_KNOWN_GATE)
_PACKED_DRIVER = Path(__file__).parents[1] / "gpu-pack" / "bin" / "plugin_driver"
# Without a pack the test builds the program itself.
_DRIVER = ("--plugin-driver", str(_PACKED_DRIVER)) if _PACKED_DRIVER.is_file() else ()

STEPS = (
    Step(letter="A", name="compile ahead, one process for each core", command=_module("prewarm"), seconds=50, limit=75),
    Step(
        letter="B",
        name="gate: compiled here, as on RTX cards, and the shipped cubins",
        command=_module("kernel_gate", "--way", "jit", "--way", "jit-sm86", "--way", "shipped"),
        seconds=25,
        limit=75,
    ),
    Step(
        letter="C",
        name="shipped cubins, timed",
        command=_module("kernels", "--shipped", "--no-peers", "--rounds", "10", "--seconds", "20", *_KNOWN_GATE),
        seconds=25,
        limit=60,
    ),
    Step(
        letter="D",
        name="plugins on the real driver",
        command=_tests("tests/plugins/test_plugin_gpu.py", *_DRIVER, "-n", "4"),
        seconds=20,
        limit=45,
    ),
    Step(
        letter="J",
        name="9B with random weights: first token and decode",
        command=_module(
            "ttft", "--preset", "9b", "--contexts", "64K,128K,1M", "--repeats", "1",
            "--new-tokens", "32", "--budget-seconds", "90", "--gate", "report",
        ),
        seconds=75,
        limit=110,
    ),
    Step(
        letter="E",
        name="kernels compiled here, and their peers",
        command=_module("kernels", "--rounds", "10", "--seconds", "50", *_KNOWN_GATE),
        seconds=60,
        limit=120,
    ),
    Step(
        letter="K",
        name="passkeys",
        command=_module("passkey", "--runtime", "torch", "--lengths", "128K,1M"),
        seconds=30,
        limit=50,
    ),
    Step(
        letter="P",
        name="9B with random weights: forks of 1M tokens",
        command=_module("forks", "--preset", "9b", "--tokens", "1M", "--forks", "20"),
        seconds=70,
        limit=120,
    ),
    Step(
        letter="Q",
        name="9B with random weights: sessions that draw together",
        command=_module("batches", "--preset", "9b", "--context", "16K", "--tokens", "32"),
        seconds=25,
        limit=60,
    ),
    Step(
        letter="L",
        name="blocks that neighbours share",
        command=_module("block_overlap", "--model", "both", "--context", "64K"),
        seconds=15,
        limit=50,
    ),
    Step(
        letter="H",
        name="GPU tests of operators and runtime",
        command=_tests("tests/ops", "tests/torch_runtime", "-n", "8", "--dist", "worksteal"),
        seconds=40,
        limit=90,
    ),
    Step(
        letter="F",
        name="kernels as RTX cards run them, timed",
        command=_module(
            "kernels", "--sm80-path", "--quick", "--no-peers", "--seconds", "8", *_KNOWN_GATE
        ),
        seconds=15,
        limit=40,
    ),
    Step(letter="I", name="counters of ncu", command=_module("gpu_tools", "profile"), seconds=20, limit=50),
    Step(
        letter="G",
        name="tiles of the gather kernel",
        command=_module("kernels", "--tune", "infllmv2_gather_kernel", "--seconds", "10", *_TUNING),
        seconds=30,
        limit=50,
    ),
    Step(
        letter="M",
        name="segments of Lightning",
        command=_module("kernels", "--tune", "lightning_attention", "--seconds", "8", *_TUNING),
        seconds=15,
        limit=45,
    ),
    Step(letter="N", name="memcheck", command=_module("gpu_tools", "memcheck"), seconds=15, limit=90),
    Step(letter="O", name="initcheck", command=_module("gpu_tools", "initcheck"), seconds=15, limit=90),
)  # fmt: skip


def chosen(letters: str | None, steps: Sequence[Step] = STEPS) -> tuple[Step, ...]:
    """The steps that `--steps A,B` names, in their own order; all without it.

    Raises: ValueError naming those that there are not.
    """
    if letters is None:
        return tuple(steps)
    wanted = [letter.strip().upper() for letter in letters.split(",")]
    known = [step.letter for step in steps]
    if unknown := [letter for letter in wanted if letter not in known]:
        raise ValueError(f"no step {', '.join(map(repr, unknown))}: choose among {', '.join(known)}")
    return tuple(step for step in steps if step.letter in wanted)


def planned(steps: Sequence[Step], seconds: float) -> Iterator[tuple[Step, float | None]]:
    """Every step with the second at which it is expected to start; None for one that is left out."""
    start = 0.0
    for step in steps:
        if start + step.seconds > seconds:
            yield step, None
        else:
            yield step, start
            start += step.seconds
