"""Measures accuracy, latency and memory of bundles side by side, and writes the report."""
