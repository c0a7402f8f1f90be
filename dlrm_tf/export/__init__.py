"""SavedModel and TFLite exports."""
