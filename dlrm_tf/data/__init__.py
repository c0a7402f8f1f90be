"""Criteo-format data: raw TSV, vocabulary, records, generated rows. Needs no TensorFlow but for the tf.data reader."""
