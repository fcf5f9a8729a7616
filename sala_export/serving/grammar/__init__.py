"""Answers of a given form, through llguidance: which tokens may come next."""

from .constraint import TokenConstraint
from .grammars import Grammars

__all__ = ["Grammars", "TokenConstraint"]
