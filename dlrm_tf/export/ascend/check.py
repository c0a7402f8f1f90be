#!/usr/bin/env python3
"""Runs the frozen graph beside this file and compares with the model it was made of; exit code 1 if it differs.

Needs NumPy and TensorFlow (1.15 or 2); `export_ascend` puts it into its folder as check.py.

    check.py [--npu] [--tolerance 1e-6]        --npu runs it on the NPU, through npu_bridge and dlrm_tf
"""

import argparse
import json
import os
import sys

import numpy as np
import tensorflow as tf


def main() -> int:
    """Compares every row of check.npz; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--npu", action="store_true", help="run it on the NPU")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="of a probability (default: %(default)s)")
    args = parser.parse_args()
    folder = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(folder, "ascend.json")) as f:
        names = json.load(f)
    graph_def = tf.compat.v1.GraphDef()
    with open(os.path.join(folder, names["graph"]), "rb") as f:
        graph_def.ParseFromString(f.read())
    # The graph is run once; each rewriting of it would copy the table.
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = tf.compat.v1.OptimizerOptions.L0
    if args.npu:
        from dlrm_tf.ascend.session import session_config

        config = session_config()
    rows = np.load(os.path.join(folder, "check.npz"))
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        del graph_def
        with tf.compat.v1.Session(graph=graph, config=config) as session:
            came = session.run(names["output"], {name + ":0": rows[name] for name in names["inputs"]})
    difference = float(np.abs(came - rows["probability"]).max())
    print("%d rows, largest difference of a probability %.3g" % (len(came), difference))  # noqa: UP031 (TF 1.15's Python)
    # Not `>`: NaN must fail.
    return 0 if difference <= args.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
