"""Write SavedModels for TF Serving."""
