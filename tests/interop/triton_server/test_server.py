"""A real Triton Inference Server with models that `sala-export triton-repository` wrote, asked by its own clients."""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.documents import ROOT
from support.text_bundles import tiny_text_bundle
from support.triton_server import FOLDER, IS_INSTALLED, RunningTriton, client_of, running_triton

import sala_export
from sala_export.cli.app import cli
from sala_export.runtime.model import Model
from sala_export.runtime.text import Tokenizer

pytestmark = pytest.mark.skipif(not IS_INSTALLED, reason="Triton Inference Server is not installed")

PROMPT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on."
IDLE_SECONDS = 12
LONG = 1 << 13
STORY = "A long story about nothing that nobody has told before. " * 8


def write(repository: Path, *options: str) -> None:
    done = CliRunner().invoke(
        cli, ["triton-repository", str(tiny_text_bundle()), "-o", str(repository), "--link", *options]
    )
    assert done.exit_code == 0, done.output


def edit(folder: Path, old: str, new: str) -> None:
    """Change the configuration of a model."""
    config = folder / "config.pbtxt"
    text = config.read_text()
    assert text.count(old) == 1
    config.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """With the models `sala` and `led`, which has sequence batching and two instances. `broken` cannot be loaded."""
    repository = tmp_path_factory.mktemp("repository")
    write(repository, "--max-idle", str(IDLE_SECONDS), "--max-context", "16K", "--max-contexts", "99")
    write(repository, "--name", "led", "--sequence-batching", "--max-contexts", "4")
    edit(repository / "led", "kind: KIND_MODEL count: 1", "kind: KIND_CPU count: 2")
    write(repository, "--name", "broken", "--max-context", "16K")
    edit(repository / "broken", '"16384"', '"many"')
    with running_triton(repository, "sala", "led") as running:
        running.generate(text_input=STORY + "idle", max_tokens=1, sequence_id="idle", sequence_start=True)
        yield running


@pytest.fixture(scope="module")
def model() -> Model:
    return sala_export.load(tiny_text_bundle(), threads=1)


def drawn(model: Model, *prompts: str | list[int], **options: Any) -> list[list[int]]:
    """Ids of the answers to texts that one session reads, one after the other."""
    session = model.session()
    answers = []
    for prompt in prompts:
        session.prefill(prompt)
        answers.append([*session.generate_tokens(**options)])
    return answers


class Stream:
    """A stream of gRPC, with what has come of it."""

    def __init__(self, server: RunningTriton) -> None:
        self._client = client_of(server)
        self._came: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client.start_stream(lambda result, error: self._came.put((result, error)))

    def ask(self, model: str = "sala", **given: Any) -> None:
        """Send a request. Arguments that are no inputs go to the client."""
        from tritonclient.grpc import InferInput

        inputs = []
        for name, kind in (
            ("text_input", "BYTES"),
            ("max_tokens", "INT32"),
            ("temperature", "FP32"),
            ("stream", "BOOL"),
        ):
            if name in given:
                value = given.pop(name)
                tensor = InferInput(name, [1], kind)
                types = {"BYTES": np.object_, "INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_}
                tensor.set_data_from_numpy(np.array([value.encode() if kind == "BYTES" else value], types[kind]))
                inputs.append(tensor)
        self._client.async_stream_infer(model, inputs, enable_empty_final_response=True, **given)

    def next(self) -> tuple[Any, Any]:
        return self._came.get(timeout=30)

    def answer(self) -> tuple[list[int], dict[str, Any]]:
        """Ids of the next answer, and the response behind which none comes."""
        ids: list[int] = []
        while True:
            result, error = self.next()
            assert error is None, error
            ids += result.as_numpy("output_ids").tolist()
            if result.get_response().parameters["triton_final_response"].bool_param:
                names = [each.name for each in result.get_response().outputs]
                return ids, {
                    name: result.as_numpy(name).tolist()[0] for name in names if name.startswith(("num", "fin"))
                }

    def close(self, *, cancels: bool = False) -> None:
        self._client.stop_stream(cancel_requests=cancels)


@pytest.fixture
def stream(server: RunningTriton) -> Iterator[Stream]:
    opened = Stream(server)
    yield opened
    opened.close()


def eventually(is_so: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def at_rest(value: Callable[[], float], seconds: float = 1) -> float:
    """A metric that has stayed as it is for so long: states of the tests before go behind their answers."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.1)
        if (now := value()) != last:
            last, since = now, time.monotonic()
    return last


def events(server: RunningTriton, **fields: object) -> list[dict[str, Any]]:
    """What the endpoint `generate_stream` sends."""
    lines = server.post("models/sala/generate_stream", fields).text.split("\n")  # texts may have other ends of lines
    return [json.loads(line.removeprefix("data: ")) for line in lines if line]


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.75, "seed": 11, "top_k": 50}])
def test_answer_is_that_of_a_session(server: RunningTriton, model: Model, sampling: dict[str, Any]) -> None:
    (right,) = drawn(model, PROMPT, max_new_tokens=12, **sampling)
    session = model.session()
    session.prefill(PROMPT)
    text = "".join(session.generate(max_new_tokens=12, **sampling))
    answer = server.generate(text_input=PROMPT, max_tokens=12, **sampling)
    assert answer["output_ids"] == right
    assert answer["text_output"] == text
    assert (answer["finish_reason"], answer["num_output_tokens"]) == ("length", 12)
    # As clients of the vLLM backend send it, and with other names for the same.
    nested = server.generate(text_input=PROMPT, parameters={"max_new_tokens": 12, "stream": False, **sampling})
    as_json = server.generate(text_input=PROMPT, sampling_parameters=json.dumps({"max_tokens": 12, **sampling}))
    assert nested["output_ids"] == as_json["output_ids"] == right
    assert nested["num_cached_tokens"] > 0
    pieces = events(server, text_input=PROMPT, max_tokens=12, stream=True, **sampling)
    assert len(pieces) > 3
    assert "".join(each["text_output"] for each in pieces) == text
    assert pieces[-1]["finish_reason"] == "length"


def test_stop_string_ends_an_answer(server: RunningTriton) -> None:
    whole = server.generate(text_input=PROMPT, max_tokens=40, temperature=0)["text_output"]
    stop = whole[10:14]
    answer = server.generate(text_input=PROMPT, max_tokens=40, temperature=0, stop_words=[stop, "never in it"])
    assert (answer["text_output"], answer["finish_reason"]) == (whole[: whole.index(stop)], "stop")


def test_messages_are_written_by_the_chat_template(server: RunningTriton, model: Model) -> None:
    assert isinstance(model.tokenizer, Tokenizer)
    assert model.tokenizer.chat is not None
    turns = [{"role": "user", "content": f"{PROMPT} Who {verb}?"} for verb in ("sleeps", "jumps")]
    given = {"max_tokens": 8, "temperature": 0, "sequence_id": "chat"}
    first = server.generate(messages=json.dumps(turns[:1]), sequence_start=True, **given)
    ids = model.tokenizer.encode(model.tokenizer.chat.render(turns[:1]), add_special_tokens=False)
    assert [first["output_ids"]] == drawn(model, ids, max_new_tokens=8, temperature=0)
    assert first["num_input_tokens"] == len(ids)
    second = server.generate(messages=json.dumps(turns[1:]), sequence_end=True, **given)
    said = {"role": "assistant", "content": first["text_output"]}
    whole = model.tokenizer.chat.render([turns[0], said, turns[1]])
    assert second["num_input_tokens"] == len(model.tokenizer.encode(whole, add_special_tokens=False))
    assert second["num_cached_tokens"] >= len(ids)


def test_conversations_side_by_side_go_on_from_their_own_states(
    server: RunningTriton, model: Model, stream: Stream
) -> None:
    turns = {"fox": [PROMPT, " What did the fox do?"], 7: ["Seven swans are a-swimming. " * 3, " How many swans?"]}
    given = {"max_tokens": 12, "temperature": 0.0, "stream": True}
    other = Stream(server)
    streams = {"fox": stream, 7: other}
    held = {}
    for place in range(2):
        for name, texts in turns.items():
            streams[name].ask(text_input=texts[place], sequence_id=name, sequence_start=place == 0, **given)
        for name, texts in turns.items():
            ids, last = streams[name].answer()
            assert ids == drawn(model, *texts, max_new_tokens=12, temperature=0)[place]
            if place:
                # All that the first turn left but for its last token, which had not run.
                assert last["num_cached_tokens"] >= held[name] - 1
                assert last["num_input_tokens"] - last["num_cached_tokens"] < 40
            held[name] = last["num_input_tokens"] + last["num_output_tokens"]
    for name in turns:
        streams[name].ask(sequence_id=name, sequence_end=True)
        assert streams[name].answer()[0] == []
    other.close()


def test_turns_of_a_conversation_run_in_their_order(model: Model, stream: Stream) -> None:
    texts = [PROMPT, " And then?", " At last?"]
    for place, text in enumerate(texts):
        flags = {"sequence_start": place == 0, "sequence_end": place == 2}
        stream.ask(text_input=text, max_tokens=6, temperature=0.0, sequence_id="queue", **flags)
    found = [stream.answer()[0] for _ in texts]
    assert found == drawn(model, *texts, max_new_tokens=6, temperature=0)


def test_end_of_a_conversation_frees_its_state_but_not_that_of_others(server: RunningTriton) -> None:
    before = at_rest(lambda: server.metric("sala_cache_bytes"))
    given = {"text_input": f"Another one. {STORY}", "max_tokens": 4, "temperature": 0}
    for name in ("first", "second"):
        server.generate(sequence_id=name, sequence_start=True, **given)
    assert eventually(lambda: server.metric("sala_cache_bytes") > before)
    server.generate(sequence_id="first", sequence_end=True)
    assert "there is no conversation 'first'" in server.refused(sequence_id="first", **given)
    going_on = server.generate(text_input=" And?", max_tokens=1, sequence_id="second", sequence_end=True)
    assert going_on["num_cached_tokens"] > 100
    assert eventually(lambda: server.metric("sala_cache_bytes") == before)


def test_conversation_that_never_had_a_turn_takes_nothing_with_it(server: RunningTriton) -> None:
    given = {"text_input": f"Kept. {STORY}", "max_tokens": 2, "temperature": 0}
    server.generate(**given)
    assert "top_p" in server.refused(text_input="a", top_p=7, sequence_id="bad", sequence_start=True, sequence_end=True)
    assert server.generate(**given)["num_cached_tokens"] > 100


def test_cancelled_answer_ends(server: RunningTriton) -> None:
    opened = Stream(server)
    opened.ask(text_input=PROMPT, max_tokens=LONG, stream=True, parameters={"ignore_eos": True})
    assert opened.next()[1] is None
    assert eventually(lambda: server.metric("sala_requests_generate") == 1)
    opened.close(cancels=True)
    assert eventually(lambda: server.metric("sala_requests_generate") == 0)
    assert server.metric("sala_generated_tokens_total") < LONG / 2


def test_timeout_ends_an_answer(server: RunningTriton, stream: Stream) -> None:
    line = "the answer has taken longer than the request's timeout"
    assert server.refused(text_input=PROMPT, max_tokens=LONG, ignore_eos=True, timeout=200_000) == line
    stream.ask(text_input=PROMPT, max_tokens=LONG, parameters={"ignore_eos": True}, timeout=200_000)
    assert line in str(stream.next()[1])


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({}, "the request has no prompt: give text_input, input_ids or messages"),
        ({"text_input": "a", "input_ids": [1]}, "the request has text_input and input_ids: give one of them"),
        ({"text_input": "a", "warmth": 1}, "warmth is neither an input nor a parameter of this model"),
        ({"text_input": "a", "temperature": -1}, "temperature: Input should be greater than or equal to 0"),
        ({"text_input": "a", "max_tokens": 4, "max_new_tokens": 4}, "max_new_tokens is given twice: leave one"),
        ({"text_input": "a", "max_tokens": 1 << 20}, "this server holds 16384 tokens of context: the prompt has"),
        ({"input_ids": [1, 1 << 20]}, "token 1 of the prompt is 1048576, expected 0 to"),
        ({"messages": "hello"}, "messages is no JSON text"),
        ({"messages": '[{"role": "poet"}]'}, "messages.0.role: Input should be 'system'"),
        ({"text_input": "a", "n": 2}, "n is not supported: send the request so often with other seeds"),
        ({"text_input": "a", "sampling_parameters": "[]"}, "sampling_parameters is no JSON object"),
        ({"text_input": "a", "sequence_start": True}, "a sequence begins or ends, and has no id: give sequence_id"),
        ({"text_input": "a", "sequence_id": 1, "sequence_end": "yes"}, "sequence_end is neither true nor false"),
        ({"text_input": "a", "sequence_id": "lost"}, "there is no conversation 'lost'"),
    ],
)
def test_wrong_request_is_told_in_one_line(server: RunningTriton, fields: dict[str, Any], error: str) -> None:
    told = server.refused(**fields)
    assert error in told
    assert "\n" not in told


def test_infer_without_a_stream_is_refused_by_the_server(server: RunningTriton) -> None:
    tensor = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["hi"]}
    answer = server.post("models/sala/infer", {"inputs": [tensor]})
    assert "decoupled transaction policy" in answer.json()["error"]


def test_sequence_batching_leads_turns_to_the_instance_with_the_state(
    server: RunningTriton, model: Model, stream: Stream
) -> None:
    assert "correlation ID" in server.refused("led", text_input=PROMPT)
    texts = {name: [f"{PROMPT} Number {name}.", " And then?"] for name in ("one", "two", "three")}
    for place in range(2):
        for name, turns in texts.items():
            flags = {"sequence_id": name, "sequence_start": place == 0, "sequence_end": place == 1}
            stream.ask("led", text_input=turns[place], max_tokens=6, temperature=0.0, **flags)
            ids, last = stream.answer()
            assert ids == drawn(model, *turns, max_new_tokens=6, temperature=0)[place]
            assert (last["num_cached_tokens"] > 20) is (place == 1)
    assert eventually(lambda: server.metric("sala_generated_tokens_total", "led") == 36)
    assert 0 < server.metric("sala_generated_tokens_total", "led", 'instance="led_0_1"') < 36


def test_many_requests_are_answered_together(server: RunningTriton, model: Model) -> None:
    prompts = [f"{PROMPT} Number {number}" for number in range(6)]
    found: dict[str, list[int]] = {}

    def ask(prompt: str) -> None:
        found[prompt] = server.generate(text_input=prompt, max_tokens=8, temperature=0)["output_ids"]

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {prompt: drawn(model, prompt, max_new_tokens=8, temperature=0)[0] for prompt in prompts}


def test_conversation_that_nobody_continues_ends(server: RunningTriton) -> None:
    """It began with the server, so that little is left to wait."""
    assert eventually(lambda: server.metric("sala_conversations") == 0, IDLE_SECONDS + 5)
    assert "there is no conversation 'idle'" in server.refused(text_input="a", sequence_id="idle")
    again = server.generate(text_input=STORY + "idle", max_tokens=1)
    assert (again["num_cached_tokens"], again["num_input_tokens"] > 100) == (0, True)


def on(server: RunningTriton, text: str) -> str:
    """What the page tells to type, with the addresses of this server."""
    for port, address in (
        (8000, server.http.removeprefix("http://")),
        (8001, server.grpc),
        (8002, server.metrics_url.removeprefix("http://").removesuffix("/metrics")),
    ):
        text = text.replace(f"127.0.0.1:{port}", address)
    return text


def test_what_the_page_tells_to_type_works(server: RunningTriton) -> None:
    page = (ROOT / "docs" / "triton_server.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^curl .*$", page, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        done = subprocess.run(["bash", "-c", on(server, command)], capture_output=True, text=True, check=True)
        assert '"error"' not in done.stdout
        assert '"text_output":' in done.stdout or "sala_conversations{" in done.stdout
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    path = os.pathsep.join([*filter(None, sys.path), str(FOLDER)])
    done = subprocess.run(
        [sys.executable, "-c", on(server, snippet)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert len(done.stdout) > 2
    assert "Exception" not in done.stdout + done.stderr


def test_wrong_parameter_keeps_a_model_from_loading_in_one_line(server: RunningTriton) -> None:
    error = server.post("repository/models/broken/load").json()["error"]
    assert "config.pbtxt, parameter max_context: Input should be a valid integer" in error
    assert "Traceback" not in error


def test_model_is_unloaded_when_its_answers_have_ended(server: RunningTriton) -> None:
    """Last, because the model is gone then."""
    pieces: list[dict[str, Any]] = []
    given = {"text_input": PROMPT, "max_tokens": 3000, "stream": True, "ignore_eos": True}
    thread = threading.Thread(target=lambda: pieces.extend(events(server, **given)))
    thread.start()
    assert eventually(lambda: server.metric("sala_requests_generate") == 1)
    assert server.post("repository/models/sala/unload").status_code == 200
    thread.join()
    assert pieces[-1]["num_output_tokens"] == 3000
    assert eventually(lambda: "successfully unloaded 'sala'" in server.log.read_text())
    assert "Traceback" not in server.log.read_text()
