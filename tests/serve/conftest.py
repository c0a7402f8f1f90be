"""Base paths of small SavedModels, and patient clients."""

from serving_models import echo_model, example_model, patient_clients, save_linear  # noqa: F401
