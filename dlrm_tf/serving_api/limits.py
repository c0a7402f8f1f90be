"""How large a tensor in a message may be."""

# A shape may promise more values than the message carries (the last one is repeated): by how many. What the graph makes of them
# may be a hundred times larger, so a request of 100 bytes must not stand for millions; a batch of 1024 rows is 26,624 ids.
MAX_REPEATED_VALUES = 1 << 16
# NumPy 1's limit; TensorFlow's is 254, but few of its operations take more than 8.
MAX_RANK = 32
