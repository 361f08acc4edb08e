"""Judging what was trained: on held-out pairs, by answers that a judge compares, and on general text."""
