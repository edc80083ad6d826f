"""Load weights of any origin into a model, strictly and by name."""
