"""Model repositories as they are written: what lies in them, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.runtime_bundles import tiny_cpu_bundle
from support.text_bundles import tiny_text_bundle

from sala_export.bundle.reader import Bundle
from sala_export.cli.app import run
from sala_export.errors import BundleError, ConfigError, InputError, RequestError, UnsupportedError
from sala_export.interop.triton_server.options import ModelParameters, keeps_conversations
from sala_export.interop.triton_server.repository import RepositoryRequest, config_text, write_repository


def parameters(**changes: Any) -> ModelParameters:
    return ModelParameters(bundle="tiny.sala", max_context=4096, chat_template='a "name" \\ ü', **changes)


def request(output: Path, **changes: object) -> RepositoryRequest:
    asked = RepositoryRequest(bundle=tiny_text_bundle(), output=output, name="sala", parameters=parameters())
    return replace(asked, **changes)  # type: ignore[arg-type]


def test_bundle_lies_in_the_repository_beside_other_models(tmp_path: Path) -> None:
    other = tmp_path / "models" / "other" / "config.pbtxt"
    other.parent.mkdir(parents=True)
    other.write_text("ours")
    for name, link in (("copied", False), ("linked", True)):
        folder = write_repository(request(other.parents[1], name=name, link=link))
        assert sorted(path.name for path in folder.iterdir()) == [".sala-export", "1", "config.pbtxt"]
        bundle = Bundle.open(folder / "1" / "tiny.sala")
        bundle.verify_hashes()
        weights = next(iter(bundle.manifest.weights.files)).path
        assert (folder / "1" / "tiny.sala" / weights).samefile(tiny_text_bundle() / weights) is link
    assert other.read_text() == "ours"


def test_configuration_is_read_as_it_was_written(tmp_path: Path) -> None:
    text = config_text(request(tmp_path, gpus=(0, 3), sequence_batching=True))
    assert "gpus: [ 0, 3 ]" in text
    assert "max_sequence_idle_microseconds: 600000000" in text
    given = {"bundle": "tiny.sala", "max_context": "4096", "chat_template": 'a "name" \\ ü'}
    for name, value in given.items():
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        assert f'parameters {{ key: "{name}" value {{ string_value: "{escaped}" }} }}' in text
    config = {name: {"string_value": value} for name, value in {**given, "EXECUTION_ENV_PATH": "/env"}.items()}
    assert ModelParameters.of_config({"parameters": config}) == request(tmp_path).parameters


@pytest.mark.parametrize(
    ("group", "further", "keeps"),
    [
        ({"count": 1, "gpus": []}, {}, True),
        ({"count": 1, "gpus": [3]}, {}, True),
        ({"count": 1, "gpus": [0, 1]}, {}, False),
        ({"count": 2, "gpus": []}, {}, False),
        ({"count": 1, "gpus": [0, 1]}, {"sequence_batching": {}}, True),
    ],
)
def test_conversations_need_one_instance_or_sequence_batching(
    group: dict[str, object], further: dict[str, object], keeps: bool
) -> None:
    assert keeps_conversations({"instance_group": [group], **further}) is keeps


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("max_context", "4K", "config.pbtxt, parameter max_context: Input should be a valid integer"),
        ("max_idle", "nan", "config.pbtxt, parameter max_idle: Input should be"),
        ("max_contxt", "1", "config.pbtxt, parameter max_contxt: there is no such parameter"),
    ],
)
def test_wrong_parameter_is_named(name: str, value: str, error: str) -> None:
    config = {"bundle": {"string_value": "a"}, name: {"string_value": value}}
    with pytest.raises(ConfigError, match=error):
        ModelParameters.of_config({"parameters": config})


@pytest.mark.parametrize(
    ("changes", "kind", "error"),
    [
        ({"name": "../sala"}, RequestError, "--name '../sala': take letters"),
        ({"gpus": (1, 1)}, RequestError, "--gpus has a GPU twice"),
        ({"parameters": parameters(state_store_bytes=9)}, RequestError, "the limit of a store: give --state-store DIR"),
        (
            {"parameters": parameters(max_idle=1e300)},
            RequestError,
            "--max-idle 1e[+]300: give seconds from 1e-06 to 1e",
        ),
        ({"parameters": parameters(max_idle=1e-9)}, RequestError, "--max-idle 1e-09: give seconds"),
        ({"bundle": Path("nowhere")}, BundleError, "nowhere"),
        ({"bundle": tiny_cpu_bundle()}, UnsupportedError, "has no tokenizer"),
    ],
)
def test_what_is_refused_leaves_nothing(
    changes: dict[str, object], kind: type[InputError], error: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=error):
        write_repository(request(tmp_path / "new", **changes))
    assert [*tmp_path.iterdir()] == []


def test_model_that_is_there_is_replaced_with_force_if_this_command_wrote_it(tmp_path: Path) -> None:
    folder = write_repository(request(tmp_path))
    with pytest.raises(RequestError, match="exists: choose another place"):
        write_repository(request(tmp_path))
    write_repository(request(tmp_path, force=True, gpus=(7,)))
    assert "gpus: [ 7 ]" in (folder / "config.pbtxt").read_text()
    (folder / ".sala-export").unlink()
    with pytest.raises(RequestError, match="--force only replaces what this command wrote"):
        write_repository(request(tmp_path, force=True))


@pytest.mark.parametrize("numbers", ["9" * 5000, "0,10000", "1,", "²"])
def test_what_is_no_list_of_gpus_is_one_line(numbers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["triton-repository", str(tiny_text_bundle()), "-o", str(tmp_path / "new"), "--gpus", numbers]) == 2
    shown = capsys.readouterr().err
    assert "is no list of numbers up to 9999: write 0 or 0,1." in " ".join(shown.split())
    assert len(shown) < 500
    assert [*tmp_path.iterdir()] == []
