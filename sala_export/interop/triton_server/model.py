"""The model that the Python backend of Triton Inference Server runs, one in a process of its own for each instance.

The server imports this module in a further process, too, to look at the class. So what takes time is imported later.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ...errors import SalaError, UnsupportedError
from ...extras import extras_named
from .options import ModelParameters, keeps_conversations


class TritonPythonModel:
    """What the server makes, asks and lets go. Triton gives the class and its methods their names."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle. Raises: TritonModelException of one line."""
        config = json.loads(args["model_config"])
        if args["model_instance_kind"] == "GPU":
            _see_one_gpu(int(args["model_instance_device_id"]))
        try:
            _require_arrays()
            parameters = ModelParameters.of_config(config)
            with extras_named():
                from .instance import Instance
            self._instance = Instance(
                parameters,
                folder=Path(args["model_repository"]) / args["model_version"],
                model_name=args["model_name"],
                name=args["model_instance_name"],
                keeps_conversations=keeps_conversations(config),
            )
        except SalaError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def execute(self, requests: Sequence[Any]) -> None:
        """Begin answers. They come by themselves, and `execute` returns at once."""
        for request in requests:
            self._instance.answer(request)

    def finalize(self) -> None:
        """Let all answers end, and free the model."""
        self._instance.close()


def _see_one_gpu(number: int) -> None:
    """Let the CUDA driver, which is not loaded yet, see only the instance's GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number] if visible else str(number)


def _require_arrays() -> None:
    """Raises: UnsupportedError if the server reads arrays of this NumPy wrongly, as old ones do those of NumPy 2."""
    values = np.arange(4, dtype=np.int32)
    read = pb_utils.Tensor.from_dlpack("values", pb_utils.Tensor("values", values).to_dlpack()).as_numpy()
    if not np.array_equal(read, values):
        raise UnsupportedError(
            f"the Python backend of this Triton Inference Server cannot read arrays of NumPy {np.__version__}: install "
            "'numpy<2' for it, or take a newer server"
        )
