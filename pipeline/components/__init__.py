"""TFX components, one per pipeline node."""
