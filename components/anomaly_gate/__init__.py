"""AnomalyGate: stops a run before training if the Examples violate their schema."""
