"""The rank gateway: live histories from SeqVault, one scoring function, ranked answers.

It runs without TensorFlow (it starts in two seconds instead of ten, and needs a tenth of the
memory): requests to the model server are built from ``predict_messages``.
"""
