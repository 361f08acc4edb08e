"""Attention over shared prefixes: the one part of a model that the flat layout of pairs touches."""
