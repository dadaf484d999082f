"""The TFX pipeline of LASER: datasets, pipeline definition, training, runners and the demo."""
