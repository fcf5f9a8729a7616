"""Tasks run by lm-evaluation-harness on a bundle, compared with the torch module and with sessions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import tiny_checkpoint
from support.runtime_bundles import tiny_cpu_bundle
from support.text_bundles import tiny_text_bundle

import sala_export
from sala_export import SalaForCausalLM
from sala_export.errors import InputError
from sala_export.interop.lm_eval import register
from sala_export.runtime.model import Model
from sala_export.runtime.text import Tokenizer

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

register()

EXAMPLES = "Q: 1 + 1\nA: two\n\nQ: 2 + 2\nA: four\n\n" * 2
DOCUMENTS = [
    {
        "text": f"{EXAMPLES}Q: {number} + {number}\nA:",
        "choices": [" two", " four", " a much longer answer"],
        "gold": number % 3,
    }
    for number in range(3, 7)
]
MAX_CONTEXT = 160
"""Fewer than the tokens of two documents together, so that rolling windows are cut."""
COMMON = {"dataset_path": "json", "test_split": "test", "doc_to_text": "{{text}}"}
TASKS = {
    "choice": {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"},
    "letters": {
        "output_type": "multiple_choice",
        "doc_to_choice": ["A", "B"],
        "doc_to_target": 0,
        "target_delimiter": "",
    },
    "answer": {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["e", "<|im_end|>"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
    "drawn": {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"do_sample": True, "temperature": 0.7, "top_k": 40, "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
        "repeats": 2,
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text * 3}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}


def write_tasks(folder: Path) -> Path:
    """Write the tasks and their documents; the folder."""
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in DOCUMENTS), encoding="utf-8")
    for name, fields in TASKS.items():
        source = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
        task = {"task": name, "dataset_kwargs": source, **COMMON, **fields}
        (folder / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    return folder


def evaluated(folder: Path, **options: Any) -> dict[str, Any]:
    """What the harness finds, with its samples."""
    found = lm_eval.simple_evaluate(
        "sala",
        model_args={"pretrained": str(tiny_text_bundle()), "max_context": MAX_CONTEXT, "threads": 2},
        tasks=[*TASKS],
        task_manager=TaskManager(include_path=str(write_tasks(folder)), include_defaults=False),
        bootstrap_iters=0,
        **options,
    )
    return dict(found)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return evaluated(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """With the chat template, and answers drawn in twos."""
    return evaluated(tmp_path_factory.mktemp("chat"), apply_chat_template=True, batch_size=2)


@pytest.fixture(scope="module")
def short() -> Any:
    """The model of the harness, of few tokens."""
    return get_model("sala")(pretrained=str(tiny_text_bundle()), max_context=16)


@pytest.fixture(scope="module")
def model() -> Model:
    return sala_export.load(tiny_text_bundle(), threads=2)


@pytest.fixture(scope="module")
def reference() -> SalaForCausalLM:
    return SalaForCausalLM.from_pretrained(tiny_checkpoint(), torch.float32)


def tokenizer_of(model: Model) -> Tokenizer:
    assert isinstance(model.tokenizer, Tokenizer)
    return model.tokenizer


def right_score(reference: SalaForCausalLM, context: list[int], tokens: list[int]) -> tuple[float, bool]:
    text = torch.tensor([[*context, *tokens]])
    logprobs = reference(text)[0].double().log_softmax(-1)[len(context) - 1 : -1]
    right = logprobs.gather(1, text[0, len(context) :, None]).sum().item()
    return right, logprobs.argmax(-1).tolist() == tokens


def split(tokenizer: Tokenizer, context: str, answer: str, *, begins: bool) -> tuple[list[int], list[int]]:
    """Ids of both. White space between them is the answer's, as the harness has it."""
    ids = tokenizer.encode(context.rstrip(), add_special_tokens=begins)
    whole = tokenizer.encode(context + answer, add_special_tokens=begins)
    return ids, whole[len(ids) :]


@pytest.mark.parametrize("task", ["choice", "letters"])
@pytest.mark.parametrize("mode", ["plain", "chat"])
def test_multiple_choice_is_scored_as_by_the_reference(
    task: str, mode: str, reference: SalaForCausalLM, model: Model, request: pytest.FixtureRequest
) -> None:
    done = request.getfixturevalue(mode)
    assert len(done["samples"][task]) == len(DOCUMENTS)
    hits = []
    for sample in done["samples"][task]:
        scores = []
        for (context, answer), ((logprob, is_greedy),) in zip(sample["arguments"], sample["resps"], strict=True):
            ids, tokens = split(tokenizer_of(model), context, answer, begins=mode == "plain")
            assert ids[0] == 1
            right, right_greedy = right_score(reference, ids, tokens)
            assert logprob == pytest.approx(right, abs=1e-4 * len(tokens))
            assert is_greedy == right_greedy
            scores.append(right)
        hits.append(scores.index(max(scores)) == sample["target"])
    assert done["results"][task]["acc,none"] == pytest.approx(sum(hits) / len(hits))


@pytest.mark.parametrize("mode", ["plain", "chat"])
def test_answers_are_those_of_a_session(mode: str, model: Model, request: pytest.FixtureRequest) -> None:
    samples = request.getfixturevalue(mode)["samples"]["answer"]
    for sample in samples:
        ((prompt, _),), ((answer,),) = sample["arguments"], sample["resps"]
        ids = tokenizer_of(model).encode(prompt, add_special_tokens=mode == "plain")
        session = model.session()
        session.prefill(ids[-(MAX_CONTEXT - 12) :])
        assert answer == "".join(session.generate(max_new_tokens=12, stop_strings="e"))
    assert any(sample["resps"][0][0] for sample in samples)


def test_equal_requests_are_sampled_with_seeds_of_their_own(plain: dict[str, Any], model: Model) -> None:
    for sample in plain["samples"]["drawn"]:
        ((prompt, _),), (answers,) = sample["arguments"], sample["resps"]
        session = model.session()
        right = []
        for seed in range(2):
            session.reset()
            session.prefill(tokenizer_of(model).encode(prompt)[-(MAX_CONTEXT - 8) :])
            right.append("".join(session.generate(max_new_tokens=8, temperature=0.7, top_k=40, seed=seed)))
        assert answers == right


def test_rolling_windows_are_full(plain: dict[str, Any], reference: SalaForCausalLM, model: Model) -> None:
    for sample in plain["samples"]["rolling"]:
        (((text,),), ((logprob,),)) = sample["arguments"], sample["resps"]
        ids = [1, *tokenizer_of(model).encode(text, add_special_tokens=False)]
        assert len(ids) > MAX_CONTEXT
        right, scored = 0.0, 1
        while scored < len(ids):
            end = min(scored + MAX_CONTEXT - 1, len(ids))
            right += right_score(reference, ids[max(0, end - MAX_CONTEXT) : scored], ids[scored:end])[0]
            scored = end
        assert logprob == pytest.approx(right, abs=1e-4 * len(ids))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "model_args has no pretrained"),
        ({"pretrained": "nowhere.sala"}, "nowhere.sala"),
        ({"pretrained": str(tiny_cpu_bundle())}, "has no tokenizer, and tasks are made of text"),
        ({"pretrained": str(tiny_text_bundle()), "precision": "fp16"}, "precision fp16 is for the torch runtime"),
    ],
)
def test_wrong_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_model("sala").create_from_arg_obj(arguments)


@pytest.mark.parametrize(
    ("kind", "request_arguments", "message"),
    [
        ("generate_until", ("Hello", {"max_gen_toks": 16}), "max_gen_toks is 16, and max_context is 16, which leaves"),
        ("generate_until", ("Hello", {"max_gen_toks": 2, "typical_p": 1}), "option typical_p=1 is none of"),
        (
            "generate_until",
            ("Hello", {"max_gen_toks": 2, "until": [5]}),
            "a string of stop_strings is 5, expected a text",
        ),
        ("loglikelihood", ("Hello", ""), "has no token of its own"),
        ("loglikelihood", ("Hello", " one two three four five six"), "and max_context is 16: give a larger"),
    ],
)
def test_wrong_request_is_refused(short: Any, kind: str, request_arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        getattr(short, kind)([Instance(kind, {}, request_arguments, 0)])


def test_long_context_is_cut_on_the_left_with_a_warning(
    short: Any, reference: SalaForCausalLM, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    context, answer = "one two three four five six seven", " eight"
    ((logprob, _),) = short.loglikelihood([Instance("loglikelihood", {}, (context, answer), 0)], disable_tqdm=True)
    ids, tokens = split(tokenizer_of(model), context, answer, begins=True)
    assert len(ids) + len(tokens) > 16
    assert logprob == pytest.approx(right_score(reference, ids[len(tokens) - 16 :], tokens)[0], abs=1e-3)
    assert f"the context loses its first {len(ids) + len(tokens) - 16} tokens" in caplog.text


def test_error_of_a_task_is_that_of_the_harness(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(json.dumps({"task": "other", **COMMON, "dataset_path": f"{tmp_path}/none"}))
    with pytest.raises(FileNotFoundError, match="none"):
        lm_eval.simple_evaluate(
            "sala",
            model_args={"pretrained": str(tiny_text_bundle())},
            tasks=["other"],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        )


def test_command_line_is_that_of_the_harness(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sala_export.interop.lm_eval", "--model", "sala", "--tasks", "letters"]
    options = ["--include_path", str(write_tasks(tmp_path)), "--model_args", "max_context=9"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: model_args has no pretrained: name the model")
    assert "Traceback" not in done.stderr
