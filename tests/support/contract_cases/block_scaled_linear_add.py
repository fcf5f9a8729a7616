"""A small call of BlockScaledLinearAdd, and what breaks each of its rules."""

from __future__ import annotations

from dataclasses import replace

from .block_scaled_linear import CASE as PRODUCT

CASE = replace(PRODUCT, attributes={"factor": 0.375})
