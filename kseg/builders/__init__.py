"""Data sets as tensorflow-datasets builders."""
