"""Results of runs: records in ML Metadata, the report of a run, baselines."""
