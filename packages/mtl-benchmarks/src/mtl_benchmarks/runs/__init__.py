"""Runs: one or many of them, resumed and repeated, and what belongs together."""
