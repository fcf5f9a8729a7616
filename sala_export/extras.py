"""Names the extra of an installation that brings a missing package. Running a bundle needs none of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import UnsupportedError

PACKAGE_EXTRAS = {
    "fastapi": "serve",
    "httptools": "serve",
    "httpx2": "onnx",
    "huggingface_hub": "onnx",
    "llguidance": "serve",
    "lm_eval": "eval",
    "onnx": "onnx",
    "onnx_ir": "onnx",
    "polygraphy": "polygraphy",
    "prometheus_client": "serve",
    "ray": "fleet",
    "starlette": "serve",
    "tensorrt_rtx": "build",
    "torch": "torch",
    "triton": "build",
    "uvicorn": "serve",
}
"""The extra of pyproject.toml that brings a package, by the name that you import."""


@contextmanager
def extras_named() -> Iterator[None]:
    """Around imports of packages that a light installation leaves out.

    Raises: UnsupportedError that says what to install, in the place of ModuleNotFoundError for such a package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in PACKAGE_EXTRAS:
            raise
        raise UnsupportedError(
            f"this needs the package {error.name}, which is not installed: "
            f"pip install 'sala-export[{PACKAGE_EXTRAS[error.name]}]'"
        ) from error
