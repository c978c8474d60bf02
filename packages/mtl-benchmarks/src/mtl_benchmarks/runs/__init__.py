"""Runs: their configuration, one or many of them, and what belongs together."""
