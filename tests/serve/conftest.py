"""Base paths of small SavedModels, and servers of them."""

from serving_models import echo_model, example_model, linear_model, save_linear, start  # noqa: F401
