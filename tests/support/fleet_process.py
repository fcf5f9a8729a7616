"""A fleet on a Ray cluster of its own, in processes of its own."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_START_SECONDS = 120
_END_SECONDS = 60
_READY = "the fleet is ready"
_PROGRAM = f"""
import json, sys
import ray
from ray import serve
from sala_export.fleet.ray import app

port, folder, options = json.loads(sys.argv[1])
ray.init(num_cpus=8, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False, _temp_dir=folder)
serve.start(http_options={{"host": "127.0.0.1", "port": port}})
serve.run(app(options), name="fleet")
print("{_READY}", flush=True)
sys.stdin.read()
ray.shutdown()
"""


@dataclass(frozen=True, slots=True)
class RunningFleet:
    """A fleet that clients can reach."""

    url: str
    process: subprocess.Popen[str]

    def replicas(self) -> list[int]:
        """Ids of the processes that have the model, in order."""
        return [pid for pid in _descendants(self.process.pid) if b"ServeReplica:fleet:replica" in _title(pid)]


@contextmanager
def fleet_process(port: int, options: dict[str, Any]) -> Iterator[RunningFleet]:
    """Run `sala_export.fleet.ray:app` with some options. Nothing of it is left when the block is."""
    # Ray makes sockets here, whose paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="sala-ray-") as folder, tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-c", _PROGRAM, json.dumps([port, folder, options])]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=_environment()
        ) as process:
            try:
                _wait_until_ready(process, log)
                yield RunningFleet(f"http://127.0.0.1:{port}", process)
            finally:
                left = _descendants(process.pid)
                _end(process)
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    # Ray makes a token in the home folder, and sends usage statistics, unless it is told otherwise.
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **own}


def _wait_until_ready(process: subprocess.Popen[str], log: Any) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if _READY in line:
            return
    log.seek(0)
    raise RuntimeError(f"the fleet did not start: {log.read()[-4000:]}")


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    found = []
    for task in _read(Path(f"/proc/{pid}/task")):
        with suppress(OSError):
            children = [int(each) for each in (task / "children").read_text().split()]
            found += [each for child in children for each in (child, *_descendants(child))]
    return sorted(found)


def _read(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def wait_until(is_so: Callable[[], bool], seconds: float) -> None:
    """Wait until something is so. Raises: TimeoutError."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"not so after {seconds} s")
        time.sleep(0.05)
