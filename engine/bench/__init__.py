"""Benchmarks: each measures one subject, prints a table and writes a json file."""
