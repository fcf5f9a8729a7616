"""A loader that gives Polygraphy sessions of ONNX Runtime which know this project's operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnxruntime.capi import onnxruntime_pybind11_state as state
from polygraphy import util
from polygraphy.backend.base import BaseLoader

from ...bundle.reader import Bundle
from ...errors import RequestError
from ...files import absolute
from ...installation import onnxruntime_operators
from .failures import told_by_polygraphy
from .graphs import bind_weights, bundle_of, weights_outside, widen_border

_REFUSALS = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented)
"""What ONNX Runtime raises for a graph that it cannot run."""


class SessionFromSalaOnnx(BaseLoader):
    """Functor that makes a session of `cpu.onnx`, `cpu_fast.onnx`, an exported graph in fp32, or a part of one.

    The graphs of a bundle have their weights as inputs. The session has them inside, taken from the bundle. Inputs and
    outputs in bfloat16 are float32 outside, because numpy has no such type.
    """

    def __init__(self, model: Any, bundle: str | None = None) -> None:
        """Args:
        model: a path, a `ModelProto`, or a callable that returns one of them.
        bundle: the bundle whose weights the graph takes. Found by itself if `model` is a path inside of it.
        """
        self.model, self.bundle = model, bundle

    def call_impl(self) -> onnxruntime.InferenceSession:
        """Returns: the session, on the CPU. Raises: PolygraphyException for a file or graph that is none of ours."""
        with told_by_polygraphy():
            model, _ = util.invoke_if_callable(self.model)
            return _session(model, None if self.bundle is None else Path(self.bundle))


def _session(model: Any, bundle: Path | None) -> onnxruntime.InferenceSession:
    name, folder = "the graph", Path()
    if isinstance(model, str):
        name, path = model, Path(model)
        bundle, folder = bundle or bundle_of(path), absolute(path).parent
        model = _read(path)
    else:
        model = onnx.ModelProto.FromString(model.SerializeToString())  # the caller's own stays as it is
    if bundle is not None and bind_weights(model, Bundle.open(bundle)):
        folder = absolute(bundle)
    elif outside := weights_outside(model):
        raise RequestError(f"{name} takes its weights from a bundle, {outside[0]} first: name it with --sala-bundle")
    widen_border(model)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(onnxruntime_operators()))
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except _REFUSALS as error:
        why = " ".join(str(error).split())
        raise RequestError(
            f"{name}: ONNX Runtime cannot run it, take cpu.onnx, cpu_fast.onnx or an export in fp32: {why}"
        ) from None


def _read(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load_model(path, load_external_data=False)
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from None
    except DecodeError:
        raise RequestError(f"{path} is no ONNX graph") from None
