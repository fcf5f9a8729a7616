"""The file of keys, with the limits that stand behind them."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from sala_export.errors import RequestError
from sala_export.serving.settings import Caller, Keys, Quota

FIRST, SECOND = "a-key-of-a-client-0123456789", "another-key-of-a-client-00000"


def test_keys_and_their_limits_are_read(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# who may\n\n{FIRST}\n  {SECOND}\tcontexts=8 context-tokens=4M \n", encoding="utf-8")
    keys = Keys.read(path)
    assert keys.caller(FIRST) == Caller(owner=sha256(FIRST.encode()).hexdigest(), quota=Quota())
    second = keys.caller(SECOND)
    assert second is not None
    assert second.quota == Quota(contexts=8, context_tokens=4 << 20)
    assert keys.caller(FIRST[:-1]) is None
    assert keys.caller(f"{SECOND} contexts=8") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# nobody\n", "holds no key: write one"),
        ("short", "line 1: a key has at least 16 characters"),
        (f"{FIRST}\nwho-änders-Schlüssel-0123", "line 2: a key has at least 16 characters"),
        (f"{FIRST}\n{FIRST} contexts=1", "line 2 has a key that is in the file already"),
        (f"{FIRST} {SECOND}", "line 1: what stands behind the key is no limit: behind a key contexts=8 and"),
        (f"{FIRST} tokens=4M", "line 1: 'tokens=4M' is no limit"),
        (f"{FIRST} contexts=1 contexts=2", "line 1: 'contexts=2' is no limit"),
        (f"{FIRST} contexts=-1", "line 1, contexts: '-1' is no number"),
        (f"{FIRST} context-tokens=", "line 1, context-tokens: '' is no number"),
    ],
)
def test_faults_of_the_file_are_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RequestError) as raised:
        Keys.read(path)
    assert f"{path}" in str(raised.value)
    assert expected in str(raised.value)
    assert FIRST not in str(raised.value)
    assert SECOND not in str(raised.value)


def test_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No such file"):
        Keys.read(tmp_path / "keys")
    (tmp_path / "keys").write_bytes(b"\xff" * 20)
    with pytest.raises(RequestError, match="it is not UTF-8 text"):
        Keys.read(tmp_path / "keys")
