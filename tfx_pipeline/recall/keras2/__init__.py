"""What runs in the process that trains the recall model, and nowhere else.

tensorflow-recommenders imports only where ``TF_USE_LEGACY_KERAS`` was set before TensorFlow was
imported; ``tfx_pipeline.recall.run_fn`` starts such a process.
"""
