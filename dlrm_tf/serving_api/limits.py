"""Limits of requests: values a tensor's message may leave out, dimensions, rows of a batch, an answer; of a warm-up file."""

# A tensor's shape may have more values than its message carries; the last one is then repeated. This limits the repetitions: a
# request of 100 bytes must not make the graph work on millions of values. A batch of 1024 rows has 26,624 ids.
MAX_REPEATED_VALUES = 1 << 16
# Dimensions of a tensor: NumPy 1's limit. TensorFlow's is 254, but few of its operations take more than 8.
MAX_RANK = 32
# Of a batch, unless BatchingParameters say otherwise: defaults of tensorflow/core/kernels/batching_util/shared_batch_scheduler.h.
MAX_BATCH_SIZE, MAX_ENQUEUED_BATCHES = 1000, 10
# Of a version's warm-up file: kMaxNumRecords of tensorflow_serving/servables/tensorflow/saved_model_warmup_util.cc
MAX_WARMUP_RECORDS = 1000
# Of the outputs of one run. A message of gRPC, and a protobuf, has less than 2 GiB.
MAX_ANSWER_BYTES = 1 << 30
