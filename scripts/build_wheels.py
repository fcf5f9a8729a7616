#!/usr/bin/env python3
"""Build a release's wheels and its source archive, audit them, and try them where there is no compiler.

For example, `scripts/build_wheels.py` puts these into dist/:

    sala_export-0.1.0.tar.gz
    sala_export-0.1.0-cp311-cp311-manylinux_2_28_x86_64.whl    for Python 3.11
    sala_export-0.1.0-cp312-abi3-manylinux_2_28_x86_64.whl     for Python 3.12 and all newer ones
    and the same two for aarch64

You need Python 3.11, 3.12 and 3.13, with their headers, and no compiler: Zig, a Python package, is one for both
processors. It takes half an hour on two cores. What the tools say is in build/wheels/log.txt.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "wheels"
LOG = WORK / "log.txt"

ARCHITECTURES = {
    "x86_64": (86, 89, 90, 120),
    "aarch64": (87, 90, 110, 121),
}
"""The GPUs whose kernels a wheel carries, by its processor: cards, or Jetson Orin, Grace Hopper, Thor and DGX Spark."""

BUILDERS = ("3.11", "3.12")
"""The Pythons that build a wheel for each processor."""

PYTHONS = (*BUILDERS, "3.13")
"""Those that try one."""

PLATFORM = "manylinux_2_28"
FROM_TENSORRT = "libtensorrt_rtx.so.1"
"""The one library that a wheel needs and does not bring: the extra `gpu` does."""


class WheelError(Exception):
    """Says in one line what is wrong."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "dist", metavar="DIR", help="where they go. Default: dist"
    )
    parser.add_argument(
        "--python",
        type=Path,
        action="append",
        default=[],
        metavar="PROGRAM",
        help="a Python 3.11, 3.12 or 3.13 that is neither on PATH, as python3.11, nor of pyenv. May be repeated",
    )
    parser.add_argument("--processor", choices=tuple(ARCHITECTURES), help="build for this one alone. Default: for both")
    arguments = parser.parse_args()
    processors = [arguments.processor] if arguments.processor else list(ARCHITECTURES)
    try:
        build(find_pythons(arguments.python), processors, arguments.output)
    except WheelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def build(pythons: Mapping[str, Path], processors: Sequence[str], output: Path) -> None:
    """Build, audit and try everything, and only then move it to its place."""
    WORK.mkdir(parents=True, exist_ok=True)
    LOG.unlink(missing_ok=True)
    tools = environment("tools", pythons["3.12"], (ROOT / "scripts" / "wheel_tools.txt").read_text(encoding="utf-8"))
    done = WORK / "done"
    shutil.rmtree(done, ignore_errors=True)
    run("make the source archive", [tools / "python", "-m", "build", "--sdist", "--outdir", done, ROOT])
    (archive,) = done.glob("*.tar.gz")
    for processor in processors:
        kernels = None
        for version in BUILDERS:
            folder = WORK / f"{processor}-{version}"
            audit(wheel(archive, processor, version, pythons[version], folder, kernels, tools), done, tools)
            kernels = folder / "build" / "plugins" / "generated"
    if platform.machine() in processors:
        answers = {version: trial(python, version, done) for version, python in pythons.items()}
        if len(set(answers.values())) > 1:
            raise WheelError(f"the answers differ: {answers}")
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(done.iterdir()):
        shutil.move(path, output / path.name)
        print(f"{(output / path.name).stat().st_size / 1e6:6.1f} MB  {output / path.name}")


def find_pythons(given: Sequence[Path]) -> dict[str, Path]:
    """The Pythons of PYTHONS by version.

    Raises: WheelError if one is missing or lacks its headers.
    """
    found: dict[str, Path] = {}
    pyenv = Path.home() / ".pyenv" / "versions"
    for version in PYTHONS:
        on_path = shutil.which(f"python{version}")
        candidates = [*given, *([Path(on_path)] if on_path else []), *sorted(pyenv.glob(f"{version}.*/bin/python3"))]
        fitting = [candidate for candidate in candidates if version_of(candidate) == version]
        if not fitting:
            raise WheelError(
                f"there is no Python {version} with headers: install it (pyenv install {version}, or the "
                f"system's python{version}-dev and python{version}-venv), or give it as --python"
            )
        found[version] = fitting[0]
    return found


def version_of(python: Path) -> str | None:
    """The version of a Python, as in 3.12; None if it does not run, has no headers or cannot make an environment."""
    code = (
        "import ensurepip, pathlib, sys, sysconfig; assert pathlib.Path(sysconfig.get_path('include'), "
        "'Python.h').exists(); print('%d.%d' % sys.version_info[:2])"
    )
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def environment(name: str, python: Path, requirements: str) -> Path:
    """The directory of the programs of an environment with these packages, made anew if they have changed."""
    folder = WORK / name
    installed = folder / "installed.txt"
    if not installed.is_file() or installed.read_text(encoding="utf-8") != requirements:
        run(f"make the environment {name}", [python, "-m", "venv", "--clear", folder])
        wanted = folder / "wanted.txt"
        wanted.write_text(requirements, encoding="utf-8")
        run(f"fill the environment {name}", pip(folder, "install", "pip>=23.1", "--requirement", wanted))
        wanted.rename(installed)
    return folder / "bin"


def wheel(
    archive: Path, processor: str, version: str, python: Path, folder: Path, kernels: Path | None, tools: Path
) -> Path:
    """Build the wheel of a Python and a processor from the source archive, with Zig, in a folder of its own.

    Without kernels, it compiles them.
    """
    shutil.rmtree(folder, ignore_errors=True)
    builder = environment(f"python{version}", python, "").parent
    defines = {
        "CMAKE_TOOLCHAIN_FILE": "cmake/ManylinuxToolchain.cmake",
        "SALA_PROCESSOR": processor,
        "SALA_ARCHITECTURES": ",".join(map(str, ARCHITECTURES[processor])),
        **({"SALA_COMPILED_KERNELS": str(kernels)} if kernels else {}),
    }
    settings = [f"cmake.define.{name}={value}" for name, value in defines.items()]
    # The toolchain strips, and the system's strip may not know the processor.
    settings += ["install.strip=false", f"build-dir={folder / 'build'}"]
    options = [part for setting in settings for part in ("--config-settings", setting)]
    path = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}  # Zig
    command = pip(builder, "wheel", "--verbose", "--no-deps", *options, "--wheel-dir", folder, archive)
    run(f"build the wheel of Python {version} for {processor}", command, environ=os.environ | path)
    (built,) = folder.glob("*.whl")
    return built


def audit(built: Path, done: Path, tools: Path) -> None:
    """Give a wheel the tag of the oldest systems that have all it needs.

    Raises: WheelError if those are not the ones that the wheels are for.
    """
    path = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}  # patchelf
    # It knows the names of this processor's systems alone, but finds those of another.
    options = ["--plat", "auto", "--only-plat", "--exclude", FROM_TENSORRT]
    command = [tools / "auditwheel", "repair", *options, "--wheel-dir", done, built]
    run(f"audit {built.name}", command, environ=os.environ | path)
    wanted = built.name.replace("-linux_", f"-{PLATFORM}_")
    if not (done / wanted).is_file():
        raise WheelError(f"auditwheel finds that {built.name} runs on other systems than {wanted} would")
    if "-abi3-" in built.name:
        run("audit its use of Python", [tools / "abi3audit", "--strict", built])


def trial(python: Path, version: str, done: Path) -> str:
    """Install a wheel where nothing else is, and take a tiny model all the way.

    First with every package that building takes, then with as few as running takes. No program of this system is on
    PATH meanwhile, so no compiler either.

    Returns: what the model answers.

    Raises: WheelError if a step fails, or if the two answers differ.
    """
    tag = "cp311-cp311" if version == "3.11" else "cp312-abi3"
    (built,) = done.glob(f"*-{tag}-*_{platform.machine()}.whl")
    answers = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ids.txt").write_text("5 17 42 99", encoding="utf-8")
        for env, extras, steps in (("full", "[build,serve]", BUILD), ("light", "", ())):
            programs = folder / env / "bin"
            bare = os.environ | {"PATH": str(programs)}
            run(f"Python {version}: make an environment", [python, "-m", "venv", folder / env])
            run(
                f"Python {version}: install the wheel{extras}",
                pip(folder / env, "install", f"{built}{extras}"),
                folder,
                bare,
            )
            for program, *arguments in steps:
                run(f"Python {version}: {program} {arguments[0]}", [programs / program, *arguments], folder, bare)
            said = [
                run(f"Python {version}: {program} {arguments[0]}", [programs / program, *arguments], folder, bare)
                for program, *arguments in ANSWER
            ]
            answers.append(" | ".join(said))
    if answers[0] != answers[1]:
        raise WheelError(f"Python {version}: with few packages it answers {answers[1]!r}, with all {answers[0]!r}")
    return answers[0]


BUILD = (
    ("sala-export", "random-checkpoint", "tiny", "--preset", "tiny"),
    ("sala-export", "build", "--gpu", "rtx", "--model", "tiny", "--output", "tiny.sala"),
)
ANSWER = (
    ("sala-export", "generate", "tiny.sala", "--prompt", "Hello", "--max-new-tokens", "16"),
    ("sala-run", "tiny.sala", "--tokens", "ids.txt", "--max-new-tokens", "4"),
)
"""The steps of scripts/quickstart.sh, and the program without Python."""


def pip(environment: Path, command: str, *arguments: str | Path) -> list[str | Path]:
    """The command line of a command of pip in an environment."""
    return [environment / "bin" / "python", "-m", "pip", command, "--disable-pip-version-check", *arguments]


def run(what: str, command: Sequence[object], cwd: Path = WORK, environ: Mapping[str, str] | None = None) -> str:
    """Run a program, say what it is for and how long it took, and return its output.

    Raises: WheelError with the end of what it said if it fails.
    """
    started = time.monotonic()
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environ, capture_output=True, text=True, errors="replace", check=False
    )
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"== {what}\n{done.stdout}{done.stderr}")
    if done.returncode:
        lines = (done.stdout + done.stderr).splitlines()[-20:]
        raise WheelError("\n".join((f"{what}: this failed, and said at the end:", *lines, f"All of it is in {LOG}")))
    print(f"{time.monotonic() - started:5.0f} s  {what}", flush=True)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
