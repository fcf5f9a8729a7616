"""The tiny model in the CPU runtime, loaded once."""

from __future__ import annotations

import pytest
from support.runtime_bundles import tiny_cpu_bundle

import sala_export
from sala_export.runtime.model import Model


@pytest.fixture(scope="session")
def model() -> Model:
    return sala_export.load(tiny_cpu_bundle(), threads=2)
