"""The compose file and the unit of systemd, as far as files and `systemd-analyze` can tell."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.documents import ROOT

from sala_export.cli.cmd_serve import serve

COMPOSE_TEXT = (ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8")
UNIT_TEXT = (ROOT / "docker" / "sala-export.service").read_text(encoding="utf-8")
SERVICES = pytest.mark.parametrize("name", ["cpu", "gpu"])
USERS_PATHS = {"SALA_BUNDLE": "/of-the-user/model.sala", "SALA_KEYS": "/of-the-user/keys"}

SAVING_SECONDS = 60
"""What a server gets at least, after its answers have ended, to write contexts to the store."""


def compose(variables: dict[str, str] = USERS_PATHS) -> dict[str, Any]:
    """The compose file with its variables replaced. Raises: KeyError for one that has no default and is not given."""

    def value(match: re.Match[str]) -> str:
        name, kind, text = match.groups()
        return variables.get(name, text) if kind == ":-" else variables[name]

    found = yaml.safe_load(re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", value, COMPOSE_TEXT))
    assert isinstance(found, dict)
    return found


def unit() -> configparser.ConfigParser:
    """The unit, in which no setting may stand twice."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign] # systemd tells capitals apart
    parser.read_string(re.sub(r"\\\n\s*", "", UNIT_TEXT))
    return parser


def options(arguments: list[str]) -> dict[str, Any]:
    """What `sala-export serve` makes of its arguments. Raises: click.UsageError for an option that it lacks."""
    name, *rest = arguments
    return serve.make_context(name, rest).params


def seconds(span: str) -> int:
    """A span of minutes, as compose and systemd write them."""
    match = re.fullmatch(r"(\d+)m(?:in)?", span)
    assert match is not None, span
    return 60 * int(match[1])


@SERVICES
def test_container_runs_the_command_line_behind_a_port_of_this_machine(name: str) -> None:
    service = compose()["services"][name]
    given = options(service["command"])
    assert given["host"] == "0.0.0.0"
    assert service["ports"] == [f"127.0.0.1:8000:{given['port']}"]
    assert seconds(service["stop_grace_period"]) >= given["drain_seconds"] + SAVING_SECONDS
    (dockerfile_port,) = re.findall(r"^EXPOSE (\d+)$", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    assert given["port"] == int(dockerfile_port)  # which the health check asks


@SERVICES
def test_container_gets_its_key_as_a_secret(name: str) -> None:
    whole = compose()
    service = whole["services"][name]
    (secret,) = service["secrets"]
    assert options(service["command"])["api_key_file"] == Path("/run/secrets", secret)
    assert whole["secrets"][secret] == {"file": USERS_PATHS["SALA_KEYS"]}
    assert not {"environment", "env_file"} & service.keys()


@SERVICES
def test_container_may_write_to_its_volume_alone(name: str) -> None:
    whole = compose()
    service = whole["services"][name]
    given = options(service["command"])
    volume, bundle = service["volumes"]
    assert volume["source"] in whole["volumes"]
    # What TensorRT compiles is kept beside the bundle.
    assert {str(given["state_store"].parent), str(given["bundle"].parent)} == {volume["target"]}
    assert (bundle["source"], bundle["target"]) == (USERS_PATHS["SALA_BUNDLE"], str(given["bundle"]))
    assert (bundle["read_only"], service["read_only"]) == (True, True)
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in service  # that of the image


def test_services_differ_in_the_gpu_and_in_memory() -> None:
    cpu, gpu = (compose()["services"][name] for name in ("cpu", "gpu"))
    (device,) = gpu.pop("deploy")["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert (cpu.pop("profiles"), gpu.pop("profiles")) == (["cpu"], ["gpu"])
    assert cpu.pop("mem_limit").endswith("g")
    assert gpu.pop("mem_limit").endswith("g")
    assert cpu == gpu
    assert (cpu["build"]["target"], cpu["restart"]) == ("serve", "unless-stopped")


def test_page_explains_every_variable() -> None:
    page = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
    assert [name for name in re.findall(r"\$\{(\w+)", COMPOSE_TEXT) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", USERS_PATHS)
def test_path_of_the_user_has_no_default(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        compose({key: value for key, value in USERS_PATHS.items() if key != name})


def test_unit_runs_the_command_line_with_the_key_as_a_credential() -> None:
    service = unit()["Service"]
    program, *arguments = service["ExecStart"].split()
    given = options(arguments)
    assert program.endswith("/bin/sala-export")
    name, _, source = service["LoadCredential"].partition(":")
    assert str(given["api_key_file"]) == f"${{CREDENTIALS_DIRECTORY}}/{name}"
    assert not {"Environment", "EnvironmentFile"} & set(service)
    assert seconds(service["TimeoutStopSec"]) >= given["drain_seconds"] + SAVING_SECONDS
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    for path in (program, source, service["BindReadOnlyPaths"].partition(":")[0]):
        assert path in page


def test_unit_may_write_to_its_folder_alone() -> None:
    service = unit()["Service"]
    given = options(service["ExecStart"].split()[1:])
    folder = Path("/var/lib", service["StateDirectory"])
    assert (given["state_store"].parent, given["bundle"].parent) == (folder, folder)
    assert service["BindReadOnlyPaths"].partition(":")[2] == str(given["bundle"])
    assert (service["DynamicUser"], service["NoNewPrivileges"], service["PrivateTmp"]) == ("yes", "yes", "yes")
    assert (service["ProtectSystem"], service["CapabilityBoundingSet"]) == ("strict", "")
    # Either would hide the GPU.
    assert not {"PrivateDevices", "ProtectClock", "DevicePolicy", "DeviceAllow"} & set(service)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="THE UNIT IS NOT VERIFIED: install systemd")
@pytest.mark.parametrize("wrong_line", ["", "NoSuchSetting=yes"])
def test_systemd_knows_every_setting_of_the_unit(tmp_path: Path, wrong_line: str) -> None:
    program = Path(sys.executable).with_name("sala-export")
    text = UNIT_TEXT.replace(unit()["Service"]["ExecStart"].split()[0], str(program))
    file = tmp_path / "sala-export.service"
    file.write_text(text.replace("[Install]", f"{wrong_line}\n[Install]"), encoding="utf-8")
    command = ["systemd-analyze", "verify", "--recursive-errors=no", str(file)]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout
    if wrong_line:
        assert "NoSuchSetting" in said
    else:
        assert said == ""
