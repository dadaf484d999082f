"""Sequence encoders: layers that turn a target and its history into tokens."""
