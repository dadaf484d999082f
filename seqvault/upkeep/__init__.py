"""Recovery, verification, snapshots and statistics."""
