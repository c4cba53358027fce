"""`python -m student.search`: the best student that keeps a latency budget on this machine."""
