"""Benchmarks, one file per subject; each prints a table and writes json."""
