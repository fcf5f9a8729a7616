"""A bundle on a CPU, exact and fast: how near they are, and where their states go."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.closeness import assert_close
from support.runtime_bundles import tiny_cpu_bundle

import sala_export
from sala_export.errors import StateError
from sala_export.runtime.model import Model
from sala_export.torch_runtime.load import load_torch

IDS = np.random.default_rng(3).integers(0, 512, 150)
SIXTEEN_BITS = 0.04
"""Of the largest logit, as in `tests/onnx/test_cpu_form.py`."""


@pytest.fixture(scope="module")
def fast() -> Model:
    return sala_export.load(tiny_cpu_bundle(), cpu_math="fast", threads=1)


def test_fast_form_is_near_the_exact_one_and_is_not_it(fast: Model) -> None:
    exact = sala_export.load(tiny_cpu_bundle(), cpu_math="exact", threads=1)
    assert (exact.precision, fast.precision) == ("fp32", "bf16")
    found, expected = (torch.from_numpy(model.session(max_context=256).prefill(IDS)) for model in (fast, exact))
    assert_close(found, expected, SIXTEEN_BITS)
    assert (found - expected).abs().max() > 1e-4 * expected.abs().max()


def test_fast_form_does_not_depend_on_chunks(fast: Model) -> None:
    whole = fast.session(max_context=256).prefill(IDS)
    for chunk_tokens in (1, 37):
        found = fast.session(max_context=256, chunk_tokens=chunk_tokens).prefill(IDS)
        assert_close(torch.from_numpy(found), torch.from_numpy(whole), SIXTEEN_BITS)


def test_states_of_the_fast_form_go_to_engines_of_its_precision_alone(fast: Model, tmp_path: Path) -> None:
    session = fast.session(max_context=256)
    session.prefill(IDS)
    session.save(tmp_path / "a.state")
    expected = torch.from_numpy(session.prefill([5]))
    for model in (fast, load_torch(tiny_cpu_bundle(), device="cpu", precision="bf16")):
        restored = model.restore(tmp_path / "a.state", max_context=256)
        assert restored.position == len(IDS)
        assert_close(torch.from_numpy(restored.prefill([5])), expected, 1e-5 if model is fast else SIXTEEN_BITS)
    exact = sala_export.load(tiny_cpu_bundle(), threads=1)
    with pytest.raises(StateError, match="bf16"):
        exact.restore(tmp_path / "a.state", max_context=256)


_CUT = """
import os, sys
import numpy as np
import sala_export
from sala_export.errors import BundleError
model = sala_export.load(sys.argv[1], threads=1)
with model.scheduler() as scheduler:
    session = model.session(max_context=1 << 20)
    answer = scheduler.submit_tokens(session, np.arange(9), max_new_tokens=1 << 19, stop_tokens=[])
    try:
        for count, _ in enumerate(answer):
            if count == 3:
                os.truncate(sys.argv[2], 4096)
    except BundleError as error:
        print(error)
"""


def test_scheduler_says_that_its_weights_were_cut_short(tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_cpu_bundle(), tmp_path / "cut.sala")
    weights = min((bundle / "graph").glob("*.safetensors"))
    command = [sys.executable, "-c", _CUT, str(bundle), str(weights)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{weights} was cut short while it was mapped: it has 4096 bytes of")
