"""Which tokens may come next in an answer, for example by a grammar."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import SessionError
from .options import shown


class TokenConstraint(Protocol):
    """What an answer asks before each draw which tokens may come, and tells which one came.

    Make a new one for each answer. With a scheduler its methods are called in the scheduler's thread, and all requests
    wait meanwhile. What a method raises ends the answer and comes out of it. The session stays usable.
    """

    def allowed(self) -> NDArray[np.uint32] | None:
        """Tell which tokens may come next, uint32 [words]. None: every token may.

        Bit `i % 32` of word `i // 32` is for token i. Tokens behind the last word may not come. Stop tokens need their
        bits too. The array must stay as it is until `take` is called.
        """

    def take(self, token_id: int) -> None:
        """Hear of the token that was drawn, a stop token too. It is in the context, also if this raises."""


def token_constraint(value: object) -> TokenConstraint | None:
    """The value of the option `constraint`. Raises: SessionError unless it is None or has the two methods."""
    if value is None or (callable(getattr(value, "allowed", None)) and callable(getattr(value, "take", None))):
        return value  # type: ignore[return-value]
    raise SessionError(f"constraint is {shown(value)}, expected an object with the methods allowed and take")
