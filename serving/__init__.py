"""Serving: the rank gateway, the embedded model server and TensorFlow Serving's configuration."""
