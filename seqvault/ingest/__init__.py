"""Filling a store from an ordered event log."""
