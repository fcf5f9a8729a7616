"""The sampling options of `generate`, next to the same through the library."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner
from support.text_bundles import tiny_text_bundle

import sala_export
from sala_export.cli.app import run
from sala_export.cli.sampling_options import Sampling, sampling_options
from sala_export.runtime.model import Model
from sala_export.runtime.options import GenerateOptions

Capture = pytest.CaptureFixture[str]
PROMPT = "dudelu kiga muki sete"
COUNT = 24


@pytest.fixture(scope="module")
def model() -> Model:
    return sala_export.load(tiny_text_bundle(), threads=2)


def generated(capsys: Capture, *arguments: str) -> tuple[str, str]:
    """What a successful run prints, and what it tells."""
    capsys.readouterr()
    common = ("--prompt", PROMPT, "--max-context", "1K", "--max-new-tokens", str(COUNT))
    assert run(["generate", str(tiny_text_bundle()), *common, *arguments]) == 0
    return capsys.readouterr()


def answer(model: Model, options: GenerateOptions) -> str:
    session = model.session(max_context=1024)
    session.prefill(PROMPT)
    return "".join(session.generate(**options, max_new_tokens=COUNT))


OPTIONS: dict[str, tuple[list[str], GenerateOptions]] = {
    "min-p": (["--min-p", "0.3", "--temperature", "1.5"], {"min_p": 0.3, "temperature": 1.5}),
    "frequency": (["--frequency-penalty", "1.5"], {"frequency_penalty": 1.5}),
    "presence": (["--presence-penalty", "-2"], {"presence_penalty": -2}),
    "bias": (["--logit-bias", "70=3.25", "--logit-bias", "71=-100"], {"logit_bias": {70: 3.25, 71: -100}}),
}


@pytest.mark.parametrize(("arguments", "options"), OPTIONS.values(), ids=OPTIONS)
def test_options_sample_what_the_library_samples(
    capsys: Capture, model: Model, arguments: list[str], options: GenerateOptions
) -> None:
    text, _ = generated(capsys, *arguments)
    assert text == answer(model, options) + "\n"


def test_answer_ends_before_a_stop_string(capsys: Capture, model: Model) -> None:
    whole = answer(model, {})
    middle = whole[len(whole) // 2 : len(whole) // 2 + 4]
    text, told = generated(capsys, "--stop", "never in it", "--stop", middle)
    assert text == whole[: whole.index(middle)] + "\n"
    assert "ended by stop-string" in told


def test_bias_of_a_token_outside_the_vocabulary_is_refused(capsys: Capture) -> None:
    assert run(["generate", str(tiny_text_bundle()), "--prompt", "a", "--logit-bias", "999999=1"]) == 2
    assert "logit_bias has token 999999" in capsys.readouterr().err


def test_decorator_gives_a_command_all_options_that_the_library_has() -> None:
    given: list[Sampling] = []

    @click.command()
    @sampling_options
    def command(**sampling: object) -> None:
        given.append(sampling)  # type: ignore[arg-type]

    assert CliRunner().invoke(command, ["--logit-bias", "3=-1.5"]).exit_code == 0
    (sampling,) = given
    assert sampling["logit_bias"] == {3: -1.5}
    assert sampling.keys() == Sampling.__annotations__.keys()
    assert sampling.keys() == GenerateOptions.__annotations__.keys() - {"stop_tokens", "logprobs", "constraint"}
