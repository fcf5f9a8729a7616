"""Evaluation of a loaded model: how well it finds things in long contexts, and its perplexity on a text."""
