"""What TensorFlow Serving's servers and clients share: tensors as messages, status codes, configuration files."""
