"""The Keras DLRM, its parts and its weights file."""
