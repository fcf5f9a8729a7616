"""The model for TensorRT-LLM, imported on fakes."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from support.fake_tensorrt_llm import fake_tensorrt_llm


@pytest.fixture(scope="package")
def shell() -> Iterator[ModuleType]:
    """`sala_export.tensorrt_llm.modeling`. Steps are small: threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with fake_tensorrt_llm() as module:
        yield module
    torch.set_num_threads(threads)
