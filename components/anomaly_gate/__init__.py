"""AnomalyGate: ends a run before training if the Examples do not fit their schema."""
