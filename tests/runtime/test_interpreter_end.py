"""The interpreter ends while a daemon thread is in the runtime: the process ends like any other."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.text_bundles import tiny_text_bundle

PROGRAM = """
import sys, threading, time
import sala_export

bundle, work = sys.argv[1:]
model = sala_export.load(bundle, runtime="onnxruntime", threads=1)
session = model.session(max_context=20000)
session.prefill([1, 2, 3])

def prefill():
    session.prefill([1] * 15000, on_progress=lambda progress: None)

def generate():
    for _ in session.generate(max_new_tokens=10000, stop_tokens=[]):
        pass

def load():
    while True:
        sala_export.load(bundle, runtime="onnxruntime", threads=1)

threading.Thread(target=globals()[work], daemon=True).start()
time.sleep(0.3)
"""


@pytest.mark.parametrize("work", ["prefill", "generate", "load"])
def test_daemon_thread_does_not_end_the_process_early(work: str) -> None:
    """In the torch runtime it may: torch itself ends the process when the interpreter ends within one of its calls."""
    command = [sys.executable, "-c", PROGRAM, tiny_text_bundle(), work]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
