"""Base paths of small SavedModels."""

from serving_models import echo_model, example_model, save_linear  # noqa: F401
