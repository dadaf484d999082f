"""The recall model: two towers that find candidates in the whole catalogue.

tensorflow-recommenders needs Keras 2, which the ranker's process must not load: ``run_fn`` runs in
TFX's Trainer and starts a process of its own, whose modules lie in ``keras2``. The others import no
Keras.
"""
