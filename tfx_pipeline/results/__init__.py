"""What runs left: ML Metadata's records, the report of a run, floors to compare with."""
