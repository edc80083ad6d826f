"""Read the annotations of other tools and write them as a folder dataset."""
