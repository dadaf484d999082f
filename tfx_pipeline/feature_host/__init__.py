"""Hosts that join requests with histories and items and stream batches to training workers."""
