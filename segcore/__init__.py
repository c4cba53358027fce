"""What every stage of sam2edge agrees on: case, dataset, bundle, preprocessing, metrics, record. No torch here."""

__version__ = "0.1.0"
