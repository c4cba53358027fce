"""Pretrained encoders that are not part of a package of their own."""
