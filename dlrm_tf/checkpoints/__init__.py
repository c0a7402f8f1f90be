"""MindSpore's and PyTorch's checkpoints: read, written, inspected, converted, fetched. Only `verify` needs TensorFlow."""
