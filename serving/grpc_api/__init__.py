"""Serve TensorFlow Serving's gRPC services."""
