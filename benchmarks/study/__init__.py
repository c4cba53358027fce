"""`python -m benchmarks.study`: teachers compared on equal terms."""
