"""Commands and Python snippets of the documents, and a folder with everything that they name, on a tiny model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from support.documents import ROOT, Document, documents

_BLOCK = re.compile(r"^```(\w*)[ \w]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"\s+# .*$", re.MULTILINE)
_PROGRAM = re.compile(
    r"((?:POLYGRAPHY_\w+=1 )?polygraphy|cat|cd|docker|git|pip|python3?|pre-commit|sala-export|sala-run|source|"
    r"\.?[\w/-]+\.(?:py|sh)) "
)

TESTED_ELSEWHERE = {"docs/embedding.md": "tests/embedding/test_page.py"}
"""Pages whose commands another test runs."""

GPU = "needs an NVIDIA GPU"
NOT_RUN = {
    "docker ": "needs an engine for images",
    "scripts/install.sh": "changes the installation that the tests run in",
    "scripts/test.sh": "runs the tests that run this one",
    "scripts/build_wheels.py": "takes half an hour; tests/scripts/ builds them before a release",
    "scripts/gpu_pack.sh": "builds for another Python, minutes; tests/scripts/ tests it",
    "sala-export kernels": "takes two minutes to take every kernel apart; tests/kernel_report/ does it",
    "sala-export build --gpu orin64": "is for the board itself; tests/engine/test_flavours.py",
    "sala-export serve": "does not end by itself; tests/serving/ runs it",
    "source ": "changes the shell of the reader",
    "pip install": "changes the installation that the tests run in",
    "python3 -m venv": "is for the reader's own environment; tests/test_extras.py makes one",
    "python -m pytest --release": "takes an hour, before a release",
    "python -m pip wheel": "compiles for minutes; tests/test_extras.py makes a wheel before a release",
    "python -m http.server": "does not end by itself",
    "python -m scripts.build_site": "tests/docs/test_site.py runs it",
    "python -m sala_export.interop.lm_eval": "downloads a task; tests/interop/ runs tasks of its own",
    "python -m sala_export.fleet.dynamo": "needs NVIDIA Dynamo; tests/fleet/ runs a worker",
    "python -m dynamo.frontend": "needs NVIDIA Dynamo; tests/fleet/ runs one",
    "python3 -m benchmarks.first_light": GPU,
    "python -m benchmarks.first_light": GPU,
    "python -m benchmarks.record figures": "needs what a GPU brought back; tests/benchmarks/ records made-up figures",
    "python -m benchmarks.cpu_peers": "needs llama.cpp and a model of the published widths",
    "python -m benchmarks.kernels": GPU,
    "python -m benchmarks.ttft": GPU,
    "python -m benchmarks.passkey": GPU,
    "python -m benchmarks.block_overlap": GPU,
    "POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy run": GPU,
    "polygraphy debug reduce": "takes minutes; tests/interop/polygraphy/ reduces a graph in few steps",
    "python -m pytest -m gpu": GPU,
    "python3 -m pytest -m gpu": GPU,
}
"""Commands that the test of a page leaves out, by how they begin, and why."""

SNIPPETS_NOT_RUN = {
    "cuda:1": GPU,
    "client.chat.completions": "needs a server; tests/serving/ asks one",
    "tritonclient": "needs a server; tests/interop/triton_server/ runs it on one",
    "lm_eval.simple_evaluate": "downloads a task; tests/interop/ runs tasks of its own",
}
"""Python snippets that are left out, by a text in them, and why."""

QUICKLY = {
    "sala-export bench ": {"--context": "16", "--new-tokens": "2"},
    "sala-export eval ": {"--lengths": "2K", "--depths": "1", "--max-new-tokens": "2"},
    "sala-export generate ": {"--max-new-tokens": "4"},
    "sala-export quantize --model DIR --precision mxfp8": {},
    "sala-export quantize ": {"--samples": "2", "--sequence-length": "64"},
    "sala-export verify ": {"--tokens": "128"},
}
"""Options of commands that would else take minutes here, by how a command begins, the first that fits. They replace
what the page says."""

CHECKPOINTS = ("DIR", "DIR_OR_HUB_ID", "checkpoint", "openbmb/MiniCPM-SALA", "tiny")
FINE_TUNES = ("fine-tune", "my-fine-tune")
BUNDLES = ("out.sala", "OUT.sala", "sala.sala", "tiny.sala", "MiniCPM-SALA-rtx-bf16.sala")


def pages_with_commands() -> list[Path]:
    """Documents with a command or a Python snippet, sorted."""
    found = (path for path in documents() if path.relative_to(ROOT).as_posix() not in TESTED_ELSEWHERE)
    return [path for path in found if commands(path) or snippets(path)]


def commands(page: Path) -> list[str]:
    """What a reader would type, one entry a line; a line that ends with a backslash goes on in the next."""
    found = []
    for language, body in _BLOCK.findall(Document(page).text):
        if language in ("", "sh", "bash", "console"):
            lines = _COMMENT.sub("", body.replace("\\\n", " ")).splitlines()
            found += [" ".join(line.split()) for line in lines if _PROGRAM.match(f"{line} ")]
    return found


def snippets(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return [body for language, body in _BLOCK.findall(Document(page).text) if language == "python"]


def why_not_run(command: str) -> str | None:
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), None)


def why_no_snippet(snippet: str) -> str | None:
    return next((why for part, why in SNIPPETS_NOT_RUN.items() if part in snippet), None)


def make_workshop(folder: Path) -> Path:
    """Fill a folder with checkpoints, bundles and texts under the names that the pages use."""
    first = folder / CHECKPOINTS[0]
    write_checkpoint(first, seed=0)
    for name in CHECKPOINTS[1:]:
        link(first, folder / name)
    for seed, name in enumerate(FINE_TUNES, start=1):
        write_checkpoint(folder / name, seed=seed)
    run(f"sala-export build --gpu rtx --model openbmb/MiniCPM-SALA -o {BUNDLES[0]}", folder)
    for name in BUNDLES[1:]:
        link(folder / BUNDLES[0], folder / name)
    for name in ("text.jsonl", "other-text.jsonl"):
        lines = [json.dumps({"text": f"{name} {number} " * 60}) for number in range(16)]
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    (folder / "book.txt").write_text("It was a dark and stormy night. " * 40, encoding="utf-8")
    (folder / "letter.txt").write_text("Deer Sir, I hope this finds you well. " * 3, encoding="utf-8")
    (folder / "question.txt").write_text("How does it end?", encoding="utf-8")
    shutil.copy(ROOT / "engines" / "rtx5090.toml", folder / "my-card.toml")
    (folder / "ids.txt").write_text("5 17 42 99\n", encoding="utf-8")
    return folder


def write_checkpoint(directory: Path, *, seed: int) -> None:
    run(f"sala-export random-checkpoint {directory} --preset tiny --seed {seed}", directory.parent)


def link(source: Path, target: Path) -> Path:
    """A copy of a folder whose files are hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, copy_function=lambda one, other: Path(other).hardlink_to(one))
    return target


def run(command: str, folder: Path) -> str:
    """Run one command of a page in a folder, with sizes that take seconds. What it would overwrite may be there.

    Random weights do not stand quantisation, so `verify` may answer that a model fails, which is exit code 1.
    """
    command = _quick(command)
    if re.match(r"sala-export (build|export|quantize|random-checkpoint) ", command):
        command += " --force"
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": path, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "HOME": str(folder)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    has_verdict = command.startswith("sala-export verify ") and "\nfails: " in done.stdout
    assert done.returncode == (1 if has_verdict else 0), f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def _quick(command: str) -> str:
    for start, options in QUICKLY.items():
        if command.startswith(start):
            for option, value in options.items():
                command = f"{re.sub(rf'{option} [^ ]+', '', command)} {option} {value}"
            break
    return command
