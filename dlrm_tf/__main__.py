"""`python -m dlrm_tf VERB` is `dlrm-tf VERB`."""

from dlrm_tf.cli.main import entry

entry()
