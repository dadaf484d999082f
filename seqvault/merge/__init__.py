"""Merging of events in the log into segments, and bulk loads."""
