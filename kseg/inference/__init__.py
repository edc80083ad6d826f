"""Predict class ids for images and videos with a trained model."""
