"""One engine for three architectures and one for a single GPU, built once for all tests that look at them."""

from __future__ import annotations

import pytest
from support.engines import BuiltEngine, build_mini_engine


@pytest.fixture(scope="session", params=["rtx", "a6000"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BuiltEngine:
    return build_mini_engine(tmp_path_factory.mktemp(f"engine-{request.param}"), request.param)
