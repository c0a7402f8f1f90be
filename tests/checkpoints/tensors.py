"""Checkpoints and weights files as dicts and bytes."""

from dlrm_tf.checkpoints.checkpoint import Checkpoint
from dlrm_tf.checkpoints.ckpt_writer import array_tensor, write_checkpoint
from dlrm_tf.weights.reader import WeightsReader


def read_tensors(path):
    """name -> array of every tensor of a checkpoint, in its order."""
    with Checkpoint(path) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.names}


def write_tensors(path, tensors, **options):
    """Writes a `.ckpt` of name -> array; `options` are those of `write_checkpoint`."""
    write_checkpoint(path, [array_tensor(name, array) for name, array in tensors.items()], **options)


def table_bytes(path):
    """The table of a weights file."""
    with WeightsReader(path) as reader:
        return reader.table(0, reader.config.table_rows).tobytes()
