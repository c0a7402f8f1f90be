"""Base paths of small SavedModels, servers of them, and patient clients."""

from serving_models import echo_model, example_model, linear_model, patient_clients, save_linear, start  # noqa: F401
