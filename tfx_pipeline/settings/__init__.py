"""Every setting of a pipeline: type, range, default and help in one place, checked before work.

A section of the YAML file is one class (``ModelSettings``, ``TrainingSettings``, and
``PipelineSettings`` for the whole file). A new setting is one more field there: the checks, the
table of settings in the docs and the JSON schema for editors follow from it.
"""
