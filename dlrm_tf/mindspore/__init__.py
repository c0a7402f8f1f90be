"""MindSpore checkpoints: read, write, map the names, convert. Needs no TensorFlow."""
