"""A request of Triton Inference Server, and the way back to its client."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from ...serving.errors import ApiError
from .requests import GenerateRequest, SequenceFlags
from .tensors import array_of, value_of

if TYPE_CHECKING:
    from ...serving.answers import Usage
    from .turns import Part

CANCELLED = 499
"""Status of an answer that its client wants no more."""
_CODES = {
    400: "INVALID_ARG",
    404: "NOT_FOUND",
    429: "UNAVAILABLE",
    CANCELLED: "CANCELLED",
    503: "UNAVAILABLE",
}
"""Names of Triton's codes, by the status that a server of HTTP would answer."""


class Call:
    """A request of the server, and the way back."""

    def __init__(self, request: Any) -> None:
        """Take all that is in a request: its tensors belong to the server."""
        self._sender = request.get_response_sender()
        self._outputs = set(request.requested_output_names())
        self._inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        self._conversation, self._flags = request.correlation_id(), request.flags()
        self._parameters: str = request.parameters()
        self._is_over = False  # then the server has freed what the sender stands for, and ends if somebody asks it
        self.seconds: float = request.timeout() / 1e6
        """That the answer may take. 0: no limit."""

    def flags(self) -> SequenceFlags:
        """The request's conversation. Raises: RequestError for what cannot be one."""
        return SequenceFlags(
            self._conversation,
            self._parameters,
            is_first=bool(self._flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START),
            is_last=bool(self._flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END),
        )

    def request(self) -> GenerateRequest:
        """What is asked for. Raises: ApiError or RequestError for the first thing that is wrong."""
        values = {name: value_of(name, tensor) for name, tensor in self._inputs.items()}
        return GenerateRequest.of(values, self._parameters)

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to answer."""
        return not self._inputs.keys() & {"text_input", "input_ids", "messages"}

    def is_cancelled(self) -> bool:
        """True if the client wants no answer any more."""
        return not self._is_over and bool(self._sender.is_cancelled())

    def send(self, part: Part, usage: Usage, *, is_last: bool) -> None:
        """Send a part of the answer, or all of it. The last one tells how it ended."""
        values: dict[str, Any] = {"text_output": part.text, "output_ids": part.ids}
        if part.reasoning:
            values["reasoning_output"] = part.reasoning
        if is_last:
            values["finish_reason"] = part.reason
            values["num_input_tokens"] = usage.prompt_tokens
            values["num_cached_tokens"] = usage.cached_tokens
            values["num_output_tokens"] = usage.completion_tokens
        tensors = [pb_utils.Tensor(name, array_of(name, values[name])) for name in values if name in self._outputs]
        self._respond(pb_utils.InferenceResponse(output_tensors=tensors), is_last=is_last)

    def _respond(self, response: Any, *, is_last: bool) -> None:
        self._is_over = is_last
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if is_last else 0)

    def fail(self, error: ApiError) -> None:
        """Send the error that ends the answer, if it has not ended."""
        if self._is_over:
            return
        code = getattr(pb_utils.TritonError, _CODES.get(error.status_code, "INTERNAL"))
        told = pb_utils.TritonError(error.message, code)
        self._respond(pb_utils.InferenceResponse(error=told), is_last=True)

    def end(self, done: Future[None]) -> None:
        """Tell the client of a fault of ours, which would else wait for ever. The log has more."""
        if (fault := done.exception()) is not None:
            pb_utils.Logger.log_error(f"a fault of sala-export: {fault!r}")
            self.fail(ApiError(500, f"a fault of this model ({type(fault).__name__}): the server's log tells more"))
