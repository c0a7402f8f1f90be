"""MindSpore's checkpoints: read, written, inspected, converted, fetched. Needs no TensorFlow and no MindSpore."""
