"""Preparing data on a Spark cluster: what the driver does, and what its workers do."""
