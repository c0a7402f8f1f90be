"""TF 1's style."""


def enable_v1():
    import tensorflow as tf

    tf.compat.v1.disable_v2_behavior()
