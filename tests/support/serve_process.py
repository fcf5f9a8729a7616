"""`sala-export serve` in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_START_SECONDS = 120
_END_SECONDS = 60


@contextmanager
def server_process(bundle: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve a bundle under the name `model`, on a free port. Gives the address and the process."""
    command = [sys.executable, "-c", "from sala_export.cli.start import main; main()", "serve", str(bundle)]
    given = ["--port", "0", "--model-name", "model", *options]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen([*command, *given], stderr=log, stdin=subprocess.DEVNULL) as process,
    ):
        try:
            yield _address(process, log), process
        finally:
            process.terminate()
            process.wait(timeout=_END_SECONDS)


def _address(process: subprocess.Popen[bytes], log: IO[str]) -> str:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        log.seek(0)
        if found := re.search(r"at (http://\S+)", log.read()):
            return found[1]
        time.sleep(0.1)
    log.seek(0)
    raise RuntimeError(f"the server did not start: {log.read()}")
