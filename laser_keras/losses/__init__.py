"""Losses over the candidates of a request."""
