"""ServingCheck: blesses a model if a model server returns the model's own answers over REST."""
