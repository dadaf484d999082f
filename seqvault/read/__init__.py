"""Reads: arguments, plans, kernels, answers."""
