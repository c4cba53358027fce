"""SAM 2's memory over the slices of a volume: one prompt on one slice, and the others follow."""
