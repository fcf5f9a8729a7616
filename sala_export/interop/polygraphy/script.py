"""Writes the script through which Polygraphy's tools get a bundle's inputs, network and configuration."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

from ...bundle.reader import Bundle
from ...errors import RequestError
from ...extras import extras_named
from ...staging import staged_file

_SUFFIX = ".py"
"""By it Polygraphy knows a script."""


def write_script(bundle: Path, output: Path, *, tokens: int, past: int, seed: int, force: bool) -> None:
    """Write the script for the bundle at the absolute path `bundle`.

    Raises: RequestError for a file that is there, a name without .py, or tokens that do not fit; UnsupportedError for a
        bundle without weights; BundleError.
    """
    with extras_named():
        import polygraphy  # noqa: F401 # first, since its extra brings torch too

        from .step_data import step_weights
    if output.suffix != _SUFFIX:
        raise RequestError(f"{output}: give the script a name that ends with {_SUFFIX}, by which Polygraphy knows it")
    if output.exists() and not force:
        raise RequestError(f"{output} exists: choose another place, or replace it with --force")
    step_weights(Bundle.open(bundle), tokens, past)
    text = f'''\
        """Inputs, network and configuration of a bundle for Polygraphy: edit and keep it as you like."""

        from sala_export.interop.polygraphy.step_data import StepDataLoader

        BUNDLE = {str(bundle)!r}


        def load_data():
            """For --data-loader-script: the inputs of one step."""
            return StepDataLoader(BUNDLE, tokens={tokens}, past={past}, seed={seed})


        def load_network():
            """For this script as a model: builder, network and parser of TensorRT."""
            from sala_export.interop.polygraphy.network import NetworkFromBundle

            return NetworkFromBundle(BUNDLE)()


        def load_config(builder, network):
            """For --trt-config-script: targets, profiles and plugins of the engine."""
            from sala_export.interop.polygraphy.network import ConfigFromBundle

            return ConfigFromBundle(BUNDLE)(builder, network)
        '''
    with staged_file(output) as content:
        content.write_text(dedent(text), encoding="utf-8")
