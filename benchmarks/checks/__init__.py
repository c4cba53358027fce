"""Our own measuring tools, a command each: `python -m benchmarks.checks.NAME --help`."""
