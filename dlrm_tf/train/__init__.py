"""Fit, optimizers, metrics, callbacks."""
