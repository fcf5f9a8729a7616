"""The interpreter ends while a daemon thread is in the runtime: the process ends like any other."""

from __future__ import annotations

import pytest
from support.interpreter_end import WORKS, end_within


@pytest.mark.parametrize("work", WORKS)
def test_daemon_thread_does_not_end_the_process_early(work: str) -> None:
    """In the torch runtime it may: torch itself ends the process when the interpreter ends within one of its calls."""
    done = end_within(work)
    assert (done.returncode, done.stderr) == (0, "")
