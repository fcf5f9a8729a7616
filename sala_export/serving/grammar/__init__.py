"""Answers of a given form, through llguidance: which tokens may come next."""

from .constraint import GrammarConstraint
from .grammars import Grammars

__all__ = ["GrammarConstraint", "Grammars"]
