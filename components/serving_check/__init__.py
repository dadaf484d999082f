"""ServingCheck: a model is pushed only if a model server gives its own answers over REST."""
