"""SAM 2 with parameter-efficient adapters as a segmentation teacher."""
