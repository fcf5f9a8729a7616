"""A process whose interpreter ends while a daemon thread of it is in the runtime."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from .text_bundles import tiny_text_bundle

WORKS = ("prefill", "generate", "load")
"""What the thread can be at."""

_PROGRAM = """
import sys, threading, time
import sala_export
from sala_export.runtime import _native

bundle, work = sys.argv[1:]
print(_native.__file__)
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


def end_within(work: str, packages: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run such a process, which prints where its native module is.

    It has the installation that tests have, or the one in a folder of packages.
    """
    options: list[str] = []
    environ = dict(os.environ)
    if packages is not None:
        options = ["-S"]  # an editable installation would come first
        environ["PYTHONPATH"] = os.pathsep.join((str(packages), sysconfig.get_path("platlib")))
    command = [sys.executable, *options, "-c", _PROGRAM, str(tiny_text_bundle()), work]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environ)
