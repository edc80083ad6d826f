"""Find, read, prepare and check data sets on disk."""
