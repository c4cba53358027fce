"""What is taken along of a case: a reader's page, PDF and mask files, and a program's answer."""
