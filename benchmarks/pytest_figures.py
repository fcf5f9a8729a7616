"""A plugin of pytest for `benchmarks.first_light`: every test that fails becomes a figure of the kind `problem`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.figures import FigureWriter


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", type=Path, help="Append failures to this file as they come (JSON lines).")
    parser.addoption("--step", default="", help="Name of the step that the failures belong to.")


class _Failures:
    def __init__(self, figures: FigureWriter) -> None:
        self._figures = figures

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = crash.message if crash is not None else str(report.longrepr)
            self._figures.write("problem", where=report.nodeid, message=" ".join(message.split())[:300])


def pytest_configure(config: pytest.Config) -> None:
    # In processes side by side, the first one reports for all.
    if not hasattr(config, "workerinput"):
        figures = FigureWriter(config.getoption("--figures"), config.getoption("--step"))
        config.pluginmanager.register(_Failures(figures))
