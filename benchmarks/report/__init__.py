"""The report of `python -m benchmarks`: measurements of bundles side by side, and the page that shows them."""
