"""The pipeline's definition: its components, schema, preprocessing and evaluation."""
