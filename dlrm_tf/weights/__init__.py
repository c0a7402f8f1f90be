"""The weights file: its layout, reading, writing, optimizer state in it, and rows in and out. Needs no TensorFlow."""
