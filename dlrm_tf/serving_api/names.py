"""Names in TensorFlow Serving's API. Needs no TensorFlow."""

# Of the signature that a request without a name asks for.
DEFAULT_SIGNATURE = "serving_default"
# What a signature's `method_name` says it is for.
PREDICT, CLASSIFY, REGRESS = (f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress"))
