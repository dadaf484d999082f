"""Training of the ranker: one code path for one process and for a parameter-server cluster."""
