"""Appends and writes of items."""
