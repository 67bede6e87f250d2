"""Rows of batches in files: where they are, how they are read, what is made of them, and how they are written."""
