"""Read ML Metadata, and describe and judge what the pipeline made."""
