"""Benchmarks, methods, teleports and models by name, with options from their signatures."""
