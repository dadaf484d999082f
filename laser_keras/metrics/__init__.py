"""Metrics over the candidates of a request."""
