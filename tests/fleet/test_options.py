"""Arguments of a fleet: as a command line and a YAML file give them, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sala_export.errors import RequestError
from sala_export.fleet.options import FleetOptions


def test_texts_of_a_command_line_and_values_of_a_file_are_the_same(tmp_path: Path) -> None:
    typed = {"bundle": "x/out.sala", "replicas": "1-4", "num_gpus": "0", "max_context": "64K", "model_name": "a, b"}
    written: dict[str, Any] = {**typed, "num_gpus": 0, "max_context": 65536, "model_name": ["a", "b"]}
    options = FleetOptions.of(typed)
    assert options == FleetOptions.of(written)
    assert (options.replicas, options.settings().model_names) == ((1, 4), ("a", "b"))
    assert FleetOptions.of({"bundle": "x/out.sala", "replicas": 2}).replicas == (2, 2)


def test_strangers_cannot_call_a_fleet_without_keys_by_a_name_of_their_own(tmp_path: Path) -> None:
    plain = FleetOptions.of({"bundle": "out.sala", "allow_host": "Chat.example"}).settings()
    assert {"localhost", "127.0.0.1", "chat.example"} <= {*plain.hosts}
    (tmp_path / "keys").write_text("0123456789abcdef0123\n")
    assert FleetOptions.of({"bundle": "out.sala", "api_key_file": str(tmp_path / "keys")}).settings().hosts == ()


def test_a_turn_ends_when_it_is_stored_if_there_is_a_store() -> None:
    assert not FleetOptions.of({"bundle": "out.sala"}).settings().waits_for_store
    assert FleetOptions.of({"bundle": "out.sala", "state_store": "states"}).settings().waits_for_store


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "bundle: Field required"),
        ({"bundle": "b", "replica": 2}, "does not know replica: did you mean replicas?"),
        ({"bundle": "b", "replicas": "4-2"}, "'4-2' is no number of replicas"),
        ({"bundle": "b", "replicas": "0"}, "'0' is no number of replicas"),
        ({"bundle": "b", "max_cache": "lots"}, "max_cache: 'lots' is not a size in bytes"),
        ({"bundle": "b", "num_gpus": -1}, "num_gpus: Input should be greater than or equal to 0"),
        ({"bundle": "b", "num_cpus": "inf"}, "num_cpus: Input should be a finite number"),
        ({"bundle": "b", "max_wait": "nan"}, "max_wait: Input should be a finite number"),
        ({"bundle": "b", "max_waiting": 0}, "max_waiting: Input should be greater than or equal to 1"),
        ({"bundle": "b", "allow_host": ""}, "allow_host.0: String should have at least 1 character"),
        ({"bundle": "b", 1: 2}, "does not know 1: did you mean"),
        ({"bundle": "b", "state_store_bytes": "1G"}, "give state_store=DIR, too"),
    ],
)
def test_wrong_arguments_are_one_line(given: dict[Any, Any], told: str) -> None:
    with pytest.raises(RequestError, match=told.replace("?", r"\?")) as caught:
        FleetOptions.of(given)
    assert "\n" not in str(caught.value)
