"""The model `sala` of lm-evaluation-harness, which runs its tasks on a bundle or checkpoint.

The harness finds models of others in its registry alone, so something must call `register` first. On the command line
`python -m sala_export.interop.lm_eval` does, and then is the harness's own command. It takes version 0.4.13 or newer.
"""

from __future__ import annotations

from ...extras import extras_named

MODEL_NAME = "sala"
_MODEL = "sala_export.interop.lm_eval.model:SalaLM"


def register() -> None:
    """Let the harness know the model `sala`, for `lm_eval.simple_evaluate(model="sala", ...)`.

    Raises: UnsupportedError if the harness is not installed.
    """
    with extras_named():
        from lm_eval.api.registry import model_registry
    # The harness imports the model when a run asks for it, and refuses the name after that.
    if MODEL_NAME not in model_registry:
        model_registry.register(MODEL_NAME, target=_MODEL)
