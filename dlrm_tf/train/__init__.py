"""Training: optimizers that touch only the rows a batch uses, the fit loop with resume, metrics, tf.distribute strategies."""
