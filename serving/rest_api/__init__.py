"""Serve TensorFlow Serving's REST API and the web page."""
