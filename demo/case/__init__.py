"""What a reader takes along of a case: a page, a PDF, mask files."""
