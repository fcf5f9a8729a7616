"""Parts of the InfLLMv2Attention kernels that whole calls reach only by chance, or at sizes that no test can afford."""

from __future__ import annotations

import pytest
from support.kernel_probes import FAR_TOKENS, attend_far_into_a_cache
from support.triton_interpreter import call_interpreting


@pytest.mark.parametrize("tokens", [9, 1])
def test_caches_of_more_values_than_an_int32_counts_are_addressed_right(tokens: int) -> None:
    y, expected = call_interpreting(attend_far_into_a_cache, tokens, FAR_TOKENS // 64 - 50)
    assert float((y.double() - expected).abs().max()) <= 4e-3 * float(expected.abs().max())
