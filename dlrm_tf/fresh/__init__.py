"""A model from day to day: how the data it meets drifts from the data it learnt from."""
