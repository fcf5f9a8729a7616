"""Triton Inference Server in a process of its own, from the folder where `scripts/install.sh test` puts it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from support.documents import ROOT
from support.free_ports import free_ports

FOLDER = ROOT / "build" / "triton-server"
_SERVER = FOLDER / "pytriton" / "tritonserver"
_STUB = _SERVER / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}" / "triton_python_backend_stub"
IS_INSTALLED = _STUB.is_file()

_START_SECONDS = 120
_END_SECONDS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningTriton:
    """A server that clients can reach."""

    http: str
    """With `http://`."""
    grpc: str
    """Host and port."""
    metrics_url: str
    log: Path

    def post(self, path: str, body: object = None) -> httpx2.Response:
        """Send JSON to a path below `/v2/`."""
        return httpx2.post(f"{self.http}/v2/{path}", json={} if body is None else body, timeout=60)

    def generate(self, model: str = "sala", **fields: object) -> dict[str, Any]:
        """What the endpoint `generate` answers."""
        answer = self.post(f"models/{model}/generate", fields)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def refused(self, model: str = "sala", **fields: object) -> str:
        """The error that the endpoint `generate` answers."""
        answer = self.post(f"models/{model}/generate", fields)
        assert answer.status_code == 400, answer.text
        return str(answer.json()["error"])

    def metric(self, name: str, model: str = "sala", label: str = "") -> float:
        """The sum of a metric of a model, or of those with a further label."""
        lines = httpx2.get(self.metrics_url).text.splitlines()
        values = [
            line.split()[-1]
            for line in lines
            if line.startswith(f"{name}{{") and f'model="{model}"' in line and label in line
        ]
        assert values, name
        return sum(map(float, values))


@contextmanager
def running_triton(repository: Path, *models: str) -> Iterator[RunningTriton]:
    """Serve models of a repository on free ports, until the block is left."""
    with tempfile.TemporaryDirectory(prefix="sala-test-triton-") as name:
        folder = Path(name)
        ports = free_ports(3)
        kinds = ("http", "grpc", "metrics")
        command = [
            str(_SERVER / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={_backends(folder)}",
            "--model-control-mode=explicit",
            *(f"--load-model={each}" for each in models),
            "--disable-auto-complete-config",
            *(f"--{kind}-address=127.0.0.1" for kind in kinds),
            *(f"--{kind}-port={port}" for kind, port in zip(kinds, ports, strict=True)),
        ]
        log = folder / "log"
        with (
            log.open("w") as output,
            subprocess.Popen(
                command,
                env=_environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            ) as process,
        ):
            try:
                urls = [f"127.0.0.1:{port}" for port in ports]
                running = RunningTriton(
                    http=f"http://{urls[0]}", grpc=urls[1], metrics_url=f"http://{urls[2]}/metrics", log=log
                )
                _wait(running, process)
                yield running
            finally:
                process.terminate()
                try:
                    process.wait(timeout=_END_SECONDS)
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)  # the models' processes too, which outlive its crash


def client_of(server: RunningTriton) -> Any:
    """The official client of gRPC."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))  # behind all else: it also has an older NumPy, which the server needs
    import tritonclient.grpc

    return tritonclient.grpc.InferenceServerClient(server.grpc)


def _backends(folder: Path) -> Path:
    """The folder of backends, in which Python's has the program for this version of Python."""
    python = folder / "backends" / "python"
    python.mkdir(parents=True)
    for path in [*(_SERVER / "backends" / "python").glob("*.*"), _STUB]:
        shutil.copy(path, python)
    return python.parent


def _environment(folder: Path) -> dict[str, str]:
    """Of the server. Its Python backend takes the first Python of PATH, and knows no PYTHONPATH."""
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    packages = next((folder / "venv" / "lib").glob("python*/site-packages"))
    lines = [str(FOLDER)]
    standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    for path in map(os.path.abspath, sys.path):
        if path not in (str(FOLDER), *standard) and os.path.isdir(path):  # noqa: PTH112
            lines.append(f"import site; site.addsitedir({path!r})" if path.endswith("site-packages") else path)
    (packages / "tests.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    libraries = [str(FOLDER / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(libraries),
        "PATH": f"{folder / 'venv' / 'bin'}:{os.environ['PATH']}",
    }


def _wait(server: RunningTriton, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server has loaded its models."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx2.get(f"{server.http}/v2/health/live").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {server.log.read_text(errors='replace')[-3000:]}")
