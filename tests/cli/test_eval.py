"""`sala-export eval` on the passkey model, whose answers are known, resumed, and given bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.evaluation import write_passkey_words
from support.passkey import passkey_config, write_passkey_checkpoint
from support.passkey_text import passkey_text_bundle
from support.runtime_bundles import write_cpu_bundle

from sala_export.cli.app import run
from sala_export.evaluation.retrieval import HaystackReader

Capture = pytest.CaptureFixture[str]


def evaluated(capsys: Capture, folder: Path, *options: str) -> dict[str, Any]:
    """Run on the passkey model; returns the JSON on stdout."""
    words = folder / "words.json"
    if not words.exists():
        write_passkey_words(words)
    command = ["eval", str(passkey_text_bundle()), "--prompts", str(words), "--max-new-tokens", "2", "--json"]
    assert run([*command, *options]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_constructed_model_finds_every_needle_at_8k(capsys: Capture, tmp_path: Path) -> None:
    plot, results = tmp_path / "heat.png", tmp_path / "results"
    told = evaluated(capsys, tmp_path, "--lengths", "8K,2K", "--samples", "2", "--plot", str(plot), "-o", str(results))
    assert told["by_length"] == [
        {"task": task, "length": length, "score": 1.0} for task in ("passkey", "multi-key") for length in (2048, 8192)
    ]
    assert [cell["depth"] for cell in told["retrieval"][:5]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert {cell["samples"] for cell in told["retrieval"]} == {2}
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads((results / "summary.json").read_text()) == {
        name: value for name, value in told.items() if name != "schema_version"
    }
    lines = [json.loads(line) for line in (results / "results.jsonl").read_text().splitlines()][1:]
    assert len(lines) == 40
    assert len({line["read_seconds"] for line in lines}) == 4  # each text is read once
    for line in lines:
        assert line["answer"].split()[0] == line["expected"][0]
        assert 0.99 * line["length"] <= line["context_tokens"] + 2 <= line["length"]


def test_values_that_the_model_cannot_say_are_not_found(capsys: Capture, tmp_path: Path) -> None:
    write_passkey_words(tmp_path / "words.json", values=[f"w{40 + pair}" for pair in range(16)])
    told = evaluated(capsys, tmp_path, "--task", "passkey", "--lengths", "2K")
    assert told["by_length"] == [{"task": "passkey", "length": 2048, "score": 0.0}]


def test_tables_tell_lengths_and_depths(capsys: Capture, tmp_path: Path) -> None:
    words = write_passkey_words(tmp_path / "words.json")
    command = ["eval", str(passkey_text_bundle()), "--prompts", str(words), "--max-new-tokens", "1", "--no-chat"]
    assert run([*command, "--lengths", "1K,1500", "--depths", "3", "--task", "passkey"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "passkey" in line]
    assert rows == [["passkey", length, *["100%"] * 4] for length in ("1K", "1500")]


def without_times(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith("_seconds")} for line in lines]


def test_run_that_was_killed_goes_on_and_asks_only_what_is_missing(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    answer = HaystackReader._asked

    def noted(reader: HaystackReader, base: Any, key: Any, *rest: Any) -> Any:
        asked.append(key)
        return answer(reader, base, key, *rest)

    monkeypatch.setattr(HaystackReader, "_asked", noted)
    options = ("--lengths", "1K,2K", "--depths", "2", "-o", str(tmp_path / "results"))
    path = tmp_path / "results" / "results.jsonl"
    first = evaluated(capsys, tmp_path, *options)
    assert len(asked) == 8
    whole, expected = path.read_bytes(), without_times(path)
    for size in (0, 10, len(whole) // 3, len(whole) // 2, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:size])
        asked.clear()
        again = evaluated(capsys, tmp_path, *options)
        assert len(asked) == 8 - max(whole[:size].count(b"\n") - 1, 0)
        assert without_times(path) == expected
        assert again["retrieval"] == first["retrieval"]
    words = ["--prompts", str(tmp_path / "words.json"), "--max-new-tokens", "2"]
    assert run(["eval", str(passkey_text_bundle()), *words, *options, "--seed", "5"]) == 2
    assert "options.seed is 0 there and 5 here" in capsys.readouterr().err
    assert without_times(path) == expected


def with_words(**changed: object) -> Callable[[Path], list[str]]:
    return lambda folder: ["--prompts", str(write_passkey_words(folder / "w.json", **changed))]


def with_file(option: str, content: bytes) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        (folder / "file").write_bytes(content)
        return [option, str(folder / "file")]

    return write


BAD: dict[str, tuple[Callable[[Path], list[str]], list[str]]] = {
    "longer than the model": (lambda _: ["--lengths", "8K,2M"], ["--lengths 2M", "up to 1M"]),
    "shorter than a question": (lambda _: ["--lengths", "64"], ["--lengths 64", "choose a larger length"]),
    "no room for needles": (
        lambda _: ["--lengths", "256", "--depths", "20", "--max-new-tokens", "8"],
        ["needles and instructions of"],
    ),
    "unknown task": (lambda _: ["--task", "haystack"], ["'haystack' is not one of"]),
    "a field is missing": (with_words(needle=None, keys=None), ["lacks needle, keys"]),
    "an unknown field": (with_words(needles="x"), ["'needles' is no field"]),
    "no place for the value": (with_words(needle="{key} is"), ["needle has no {value}"]),
    "a list of something else": (with_words(keys=[1]), ["keys is no list of texts"]),
    "a key twice": (with_words(keys=["a", "a"]), ["keys has a text twice"]),
    "too few keys": (with_words(keys=["a", "b"]), ["passkey needs 5 keys", "there are 2"]),
    "words for another task": (
        lambda folder: [*with_words()(folder), "--task", "aggregation"],
        ["not for --task aggregation"],
    ),
    "prompts that are no JSON": (with_file("--prompts", b"{"), ["cannot be read as JSON"]),
    "a haystack without words": (with_file("--haystack", b"... !\n"), ["has no sentence"]),
    "a haystack that is not UTF-8": (with_file("--haystack", b"ab\xff"), ["is not UTF-8 at byte 2"]),
    "a text that nobody reads": (with_file("--text", b"A text."), ["is for perplexity"]),
    "a missing text": (lambda f: ["--task", "perplexity", "--text", str(f / "no.txt")], ["no.txt does not exist"]),
    "nothing to predict": (lambda _: ["--task", "perplexity", "--lengths", "1"], ["perplexity needs at least 2"]),
    "a system message without a chat": (lambda _: ["--no-chat", "--system", "x"], ["--system is for the chat"]),
    "a folder that is a file": (
        lambda folder: [*with_file("-o", b"")(folder), "--lengths", "1K"],
        ["cannot be written"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, capsys: Capture, tmp_path: Path) -> None:
    make, words = BAD[case]
    assert run(["eval", str(passkey_text_bundle()), *make(tmp_path)]) == 2
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert printed.out == ""
    assert all(word in line for word in words), line


def test_lengths_end_where_the_memory_does(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The passkey model takes a little more than 1 KiB for a token."""
    monkeypatch.setattr("sala_export.engine.host.available_host_bytes", lambda: 12 << 20)
    told = evaluated(capsys, tmp_path, "--task", "passkey")
    assert [row["length"] for row in told["by_length"]] == [4096, 8192]
    results = tmp_path / "results"
    for free, lengths, named in ((12 << 20, ["--lengths", "4K,16K"], "16K"), (1 << 20, [], "4K")):
        monkeypatch.setattr("sala_export.engine.host.available_host_bytes", lambda free=free: free)
        assert run(["eval", str(passkey_text_bundle()), "-o", str(results), *lengths]) == 2
        assert f"--lengths {named} needs" in capsys.readouterr().err
    assert not results.exists()


def test_model_without_a_tokenizer_is_refused(capsys: Capture, tmp_path: Path) -> None:
    checkpoint = write_passkey_checkpoint(tmp_path / "checkpoint", passkey_config(num_attention_heads=4))
    bundle = write_cpu_bundle(checkpoint, tmp_path / "ids.sala")
    assert run(["eval", str(bundle), "-o", str(tmp_path / "results")]) == 2
    assert "has no tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
