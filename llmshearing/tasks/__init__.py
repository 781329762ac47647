"""Benchmark tasks: suites of them, and definitions that read their documents from JSON lines."""
