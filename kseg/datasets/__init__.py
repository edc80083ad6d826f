"""Find, read, prepare and check datasets on disk."""
