"""Points, boxes and masks that a promptable teacher is asked with, when no human is there to ask."""
