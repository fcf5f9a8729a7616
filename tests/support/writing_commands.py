"""Every command that writes: how it is called, on small inputs, and how to know that what it wrote is whole."""

from __future__ import annotations

import functools
import hashlib
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.checkpoints import tiny_checkpoint
from support.text_bundles import tiny_text_bundle

from sala_export.bundle.reader import Bundle
from sala_export.checkpoint.random_checkpoint import write_random_checkpoint
from sala_export.installation import onnxruntime_library, onnxruntime_operators
from sala_export.specs import Precision

PROGRAM = Path(sys.executable).with_name("sala-export")
CPP_PROGRAM = PROGRAM.with_name("sala-run")

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-writing-")


@dataclass(frozen=True, kw_only=True, slots=True)
class WritingCommand:
    """A command that writes one file or directory into the current directory."""

    output: str
    """Name of what it writes."""
    make: Callable[[str], list[str | Path]]
    """Gives the arguments for a variant, `old` or `new`, which write different content."""
    digest: Callable[[Path], str]
    """Checks that an output is whole and gives a string that is equal for outputs of the same variant."""
    prints: bool = True
    """True if a successful run prints something on standard output."""

    def arguments(self, variant: str = "new") -> list[str | Path]:
        return self.make(variant)


@functools.cache
def checkpoint(layers: int, precision: str = "bf16") -> Path:
    """A tiny checkpoint of this many layers, shared between tests, so never written to."""
    path = Path(_FOLDER.name) / f"tiny-{layers}-{precision}"
    write_random_checkpoint(path, "tiny", layers=layers, seed=0, precision=Precision(precision))
    return path


@functools.cache
def _samples() -> Path:
    path = Path(_FOLDER.name) / "samples.jsonl"
    ids = random.Random(0).choices(range(3, 500), k=32)
    path.write_text(json.dumps({"input_ids": ids}) + "\n", encoding="utf-8")
    return path


@functools.cache
def _token_ids(variant: str) -> Path:
    path = Path(_FOLDER.name) / f"ids-{variant}.txt"
    path.write_text("5 17 42" if variant == "new" else "99 7 3 8", encoding="utf-8")
    return path


def _random_checkpoint(variant: str) -> list[str | Path]:
    seed = "1" if variant == "new" else "2"
    return [PROGRAM, "random-checkpoint", "out", "--preset", "tiny", "--layers", "1", "--seed", seed, "--force"]


def _quantize(variant: str) -> list[str | Path]:
    precision = "int8" if variant == "new" else "fp8"
    model = ["--model", checkpoint(1), "--calibration", _samples(), "--sequence-length", "32"]
    return [PROGRAM, "quantize", *model, "--precision", precision, "-o", "out", "--force"]


def _export(variant: str) -> list[str | Path]:
    model = ["--model", checkpoint(1 if variant == "new" else 2)]
    return [PROGRAM, "export", *model, "-o", "out", "--force"]


def _build(variant: str) -> list[str | Path]:
    model = ["--model", checkpoint(1 if variant == "new" else 2)]
    sizes = ["--max-context", "4K", "--prefill-chunk", "256"]
    return [PROGRAM, "build", "--gpu", "rtx5090", *model, *sizes, "-o", "out", "--force"]


def _plan(variant: str) -> list[str | Path]:
    gpu = "rtx5090" if variant == "new" else "a6000"
    return [PROGRAM, "plan", "--gpu", gpu, "--plot", "out.png"]


def _verify(variant: str) -> list[str | Path]:
    tokens = "32" if variant == "new" else "48"
    model = [tiny_text_bundle(), "--model", tiny_checkpoint()]
    return [PROGRAM, "verify", *model, "--tokens", tokens, "--plot", "out.png"]


def _generate(variant: str) -> list[str | Path]:
    prompt = "dudelu" if variant == "new" else "sete kiga"
    options = ["--runtime", "onnxruntime", "--max-new-tokens", "3", "--max-context", "1K", "--save-state", "out.state"]
    return [PROGRAM, "generate", tiny_text_bundle(), "--prompt", prompt, *options]


def sala_run(variant: str) -> list[str | Path]:
    """`sala-run` with a state to save."""
    libraries = ["--onnxruntime", str(onnxruntime_library()), "--operators", onnxruntime_operators(), "--threads", "1"]
    options = ["--runtime", "onnxruntime", "--max-new-tokens", "3", "--max-context", "1024"]
    tokens = ["--tokens", _token_ids(variant), "--save-state", "out.state"]
    return [CPP_PROGRAM, tiny_text_bundle(), *tokens, *options, *libraries]


def _triton_repository(variant: str) -> list[str | Path]:
    idle = "60" if variant == "new" else "90"
    return [PROGRAM, "triton-repository", tiny_text_bundle(), "-o", ".", "--name", "out", "--max-idle", idle, "--force"]


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tree_digest(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return " ".join(f"{file.relative_to(path)} {_file_digest(file)}" for file in files)


def _bundle_digest(path: Path) -> str:
    bundle = Bundle.open(path)
    bundle.verify_hashes()
    return bundle.manifest.model.fingerprint


WRITING_COMMANDS = {
    "random-checkpoint": WritingCommand(output="out", make=_random_checkpoint, digest=_tree_digest),
    "quantize": WritingCommand(output="out", make=_quantize, digest=_tree_digest),
    "export": WritingCommand(output="out", make=_export, digest=_tree_digest),
    "build": WritingCommand(output="out", make=_build, digest=_bundle_digest),
    "plan": WritingCommand(output="out.png", make=_plan, digest=_file_digest),
    "verify": WritingCommand(output="out.png", make=_verify, digest=_file_digest),
    "generate": WritingCommand(output="out.state", make=_generate, digest=_file_digest),
    "triton-repository": WritingCommand(output="out", make=_triton_repository, digest=_tree_digest),
    "sala-run": WritingCommand(output="out.state", make=sala_run, digest=_file_digest),
}

_IN_EVERY_RUN = ("random-checkpoint", "generate", "sala-run")
QUICK = [pytest.param(name, marks=() if name in _IN_EVERY_RUN else pytest.mark.release) for name in WRITING_COMMANDS]
"""Names of all commands, for `parametrize`. Those that write like another one wait for a release."""


def copy_output(source: Path, target: Path) -> None:
    """Copy a file or a directory."""
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
