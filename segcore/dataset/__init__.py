"""Data sets: the cases of a folder, an index.csv or a phantom, their splits, and what a teacher says of them."""
