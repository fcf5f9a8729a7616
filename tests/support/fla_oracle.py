"""The recurrence of flash-linear-attention on the CPU, as an oracle that shares no code with ours."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

from torch import Tensor


def fla_naive_recurrent_simple_gla() -> Callable[..., tuple[Tensor, Tensor]]:
    """The recurrence of flash-linear-attention, from the one file that holds it.

    Importing its package would load GPU kernels and look for a driver; the file needs torch and einops only.
    """
    files = importlib.metadata.files("fla-core")
    assert files is not None
    (path,) = (file.locate() for file in files if file.as_posix() == "fla/ops/simple_gla/naive.py")
    spec = importlib.util.spec_from_file_location("fla_naive", str(path))
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[..., tuple[Tensor, Tensor]] = module.naive_recurrent_simple_gla
    return function
