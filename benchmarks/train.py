"""Training speed, samples a second: ours, the same network in PyTorch, and plain Keras, interleaved.

    python benchmarks/train.py                              batch 128, 2048, 16384 at 1 %, 10 %, 100 % of Criteo's vocabulary
    python benchmarks/train.py --batch 2048 --vocabulary 1  one cell (a 2.16 GB table)
    python benchmarks/train.py --contenders ours,torch --ids uniform

Contenders run in processes of their own and take turns, one round of `--seconds` each, so that a slow spell of the machine hits
all; a waiting process is idle. Figures are medians of the rounds. `limit`: what the step's own matrix products cost, forward and
backward, measured alone: no implementation with these products is faster. `ours_5` is ours with `steps_per_execution=5`.

`torch` is facebookresearch/dlrm's way: 26 EmbeddingBag(mode="sum", sparse=True), SGD (pip install torch). `keras` is the naive
Keras model: 26 Embedding layers, TFRS's DotInteraction, tf.keras.optimizers.SGD.

`cat`, `cross` (three cross layers) and `low_rank` (three of rank 108) are ours with another interaction, run only when named:
`--contenders ours,cat,cross,low_rank`. So are `adagrad` and `recipe`, the optimizers of version 0.1's defaults and of the default
recipe (lazy Adam for the table, Adam for the MLPs): `--vocabulary 1 --batch 2048 --contenders adagrad,recipe`.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from dlrm_tf.config import DLRMConfig

OURS = ("ours", "ours_5")
DEFAULT = (*OURS, "torch", "keras", "limit")
# Ours with another interaction; 108 is a quarter of (F + 1) D = 432, as DCNv2's paper advises.
HEADS = {
    "cat": {"interaction": "cat"},
    "cross": {"interaction": "cross"},
    "low_rank": {"interaction": "cross", "cross_rank": 108},
}
# Optimizers of defaults, as `make_optimizer` takes them.
OPTIMIZERS = {"adagrad": {"name": "adagrad"}, "recipe": {"name": "lazy_adam", "dense": "adam"}}
CONTENDERS = (*DEFAULT, *HEADS, *OPTIMIZERS)
STEPS = {"ours_5": 5}  # steps a call; 1 where not named
BATCHES = 16  # distinct batches a contender goes round
ZIPF = 1.1


def make_config(vocabulary: float) -> DLRMConfig:
    """Criteo Kaggle's network with tables of `vocabulary` times their size."""
    full = DLRMConfig.preset("criteo_kaggle")
    return DLRMConfig(tuple(max(2, int(size * vocabulary)) for size in full.categorical_feature_sizes))


def make_batches(config: DLRMConfig, batch: int, ids: str) -> list:
    """`(dense, categorical, label)` arrays; ids uniform, or Zipf with the ranks scattered over the table."""
    generator = np.random.default_rng(0)
    sizes = np.array(config.categorical_feature_sizes)
    batches = []
    for _ in range(BATCHES):
        if ids == "uniform":
            rank = generator.integers(0, 1 << 40, (batch, sizes.size)) % sizes
        else:
            low, high = 2.0 ** (1 - ZIPF), (sizes + 2.0) ** (1 - ZIPF)
            rank = ((low + generator.random((batch, sizes.size)) * (high - low)) ** (1 / (1 - ZIPF)) - 2).astype(np.int64)
            rank = np.minimum(rank, sizes - 1) * 2654435761 % sizes
        dense = np.log1p(generator.exponential(3, (batch, config.dense_dim))).astype(np.float32)
        batches.append((dense, rank.astype(np.int32), (generator.random((batch, 1)) < 0.25).astype(np.float32)))
    return batches


def keras_step(model, batches):
    """A function of the step's number that runs Keras's own train function, as `fit` does."""
    import tensorflow as tf

    data = [({"dense": d, "categorical": c}, y) for d, c, y in batches]
    stacked = tf.nest.map_structure(lambda *parts: np.stack(parts), *data)
    iterator = iter(tf.data.Dataset.from_tensor_slices(stacked).cache().repeat())
    train = model.make_train_function()
    return lambda number: float(train(iterator)["loss"])


def ours(config, batches, steps=1, optimizer="sgd"):
    import dlrm_tf

    model = dlrm_tf.DLRM(config, seed=0)
    model.compile(optimizer, steps_per_execution=steps)
    return keras_step(model, batches)


def ours_5(config, batches):
    return ours(config, batches, STEPS["ours_5"])


def keras(config, batches):
    from dlrm_tf.keras2 import recommenders, tensorflow

    tf, tfrs = tensorflow(), recommenders()

    class Naive(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.tables = [tf.keras.layers.Embedding(n, config.embedding_dim) for n in config.categorical_feature_sizes]
            self.bottom = tfrs.layers.blocks.MLP(config.bottom_mlp, final_activation="relu")
            self.top = tfrs.layers.blocks.MLP(config.top_mlp, final_activation=None)
            self.interaction = tfrs.layers.feature_interaction.DotInteraction()

        def call(self, inputs):
            bottom = self.bottom(inputs["dense"])
            vectors = [bottom, *(table(inputs["categorical"][:, i]) for i, table in enumerate(self.tables))]
            return self.top(tf.concat([bottom, self.interaction(vectors)], axis=1))

    model = Naive()
    model.compile(tf.keras.optimizers.SGD(0.15), tf.keras.losses.BinaryCrossentropy(from_logits=True))
    return keras_step(model, batches)


def torch(config, batches):
    import torch
    from torch import nn

    def mlp(width, units, last_relu):
        layers = []
        for i, out in enumerate(units):
            layers.append(nn.Linear(width, out))
            if i < len(units) - 1 or last_relu:
                layers.append(nn.ReLU())
            width = out
        return nn.Sequential(*layers)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            dim = config.embedding_dim
            self.bottom = mlp(config.dense_dim, config.bottom_mlp, True)
            self.top = mlp(config.interaction_dim, config.top_mlp, False)
            self.tables = nn.ModuleList(
                nn.EmbeddingBag(n, dim, mode="sum", sparse=True, _weight=torch.rand(n, dim).sub_(0.5).mul_(2 / n**0.5))
                for n in config.categorical_feature_sizes
            )
            self.pairs = torch.tril_indices(config.num_categorical + 1, config.num_categorical + 1, -1)

        def forward(self, dense, ids, offsets):
            bottom = self.bottom(dense)
            stack = torch.stack([bottom, *(table(column, offsets) for table, column in zip(self.tables, ids))], 1)
            gram = torch.bmm(stack, stack.transpose(1, 2))
            return self.top(torch.cat([bottom, gram[:, self.pairs[0], self.pairs[1]]], 1))

    network = Network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.15)
    loss_of = nn.BCEWithLogitsLoss()
    offsets = torch.arange(len(batches[0][0]))
    data = [
        (torch.from_numpy(d), [torch.from_numpy(c[:, i].astype(np.int64)) for i in range(c.shape[1])], torch.from_numpy(y))
        for d, c, y in batches
    ]

    def step(number):
        dense, ids, label = data[number % len(data)]
        optimizer.zero_grad()
        loss = loss_of(network(dense, ids, offsets), label)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def limit(config, batches):
    """The matrix products of one step and nothing else: y = x W, dW = x^T dy, dx = dy W^T, and the interaction's three."""
    from dlrm_tf.keras2 import tensorflow

    tf = tensorflow()
    batch, vectors = len(batches[0][0]), config.num_categorical + 1
    layers = []
    for mlp, i, fan_in, fan_out in config.dense_shapes():
        x, w, dy = tf.random.normal([batch, fan_in]), tf.random.normal([fan_in, fan_out]), tf.random.normal([batch, fan_out])
        layers.append((x, w, dy, (mlp, i) != ("bottom_mlp", 0)))
    stack, gram = tf.random.normal([batch, vectors, config.embedding_dim]), tf.random.normal([batch, vectors, vectors])

    @tf.function
    def products():
        out = []
        for x, w, dy, needs_dx in layers:
            out += [tf.matmul(x, w), tf.matmul(x, dy, transpose_a=True)]
            if needs_dx:
                out.append(tf.matmul(dy, w, transpose_b=True))
        if config.interaction == "dot":
            out += [tf.matmul(stack, stack, transpose_b=True), tf.matmul(gram, stack)]
        # One element of each, so that none is optimized away.
        return tf.add_n([tf.reshape(y, [-1])[0] for y in out])

    return lambda number: float(products())


def serve(name, vocabulary, batch, ids):
    """Runs in the contender's process: one round of so many seconds for every line on stdin."""
    config = make_config(vocabulary)
    batches = make_batches(config, batch, ids)
    if name in HEADS:
        step = ours(dataclasses.replace(config, **HEADS[name]), batches)
    elif name in OPTIMIZERS:
        from dlrm_tf import make_optimizer

        step = ours(config, batches, optimizer=make_optimizer(**OPTIMIZERS[name]))
    else:
        step = globals()[name](config, batches)
    number = 0
    for line in sys.stdin:
        start, seconds = time.perf_counter(), 0.0
        first = number
        while seconds < float(line):
            step(number)
            number += 1
            seconds = time.perf_counter() - start
        print(json.dumps((number - first) * STEPS.get(name, 1) * batch / seconds), flush=True)


def measure(names, vocabulary, batch, ids, rounds, seconds) -> dict:
    """Samples a second of every contender in every round."""
    # Passive: on a busy machine PyTorch's OpenMP threads otherwise burn the time of those they wait for (100 times slower).
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, os.path.abspath(__file__), "--vocabulary", str(vocabulary), "--batch", str(batch), "--ids", ids]
    with tempfile.TemporaryFile("w+") as errors:
        return take_turns(command, environment, errors, names, rounds, seconds)


def take_turns(command, environment, errors, names, rounds, seconds) -> dict:
    """See `measure`; the contenders' stderr goes to the file `errors` and is shown when one of them dies."""
    processes, figures = {}, {name: [] for name in names}

    def run(name, length):
        processes[name].stdin.write(f"{length}\n")
        processes[name].stdin.flush()
        line = processes[name].stdout.readline()
        if not line:
            errors.seek(0)
            raise SystemExit(f"{errors.read()[-3000:]}\n{name} ended with code {processes[name].wait()}")
        return json.loads(line)

    try:
        for name in names:
            processes[name] = subprocess.Popen(
                [*command, "--serve", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
            # Builds and warms up, one after the other: while it is made a table takes twice its memory and more.
            run(name, seconds)
        for _ in range(rounds):
            for name in names:
                figures[name].append(run(name, seconds))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", default="128,2048,16384", help="batch sizes, comma-separated")
    parser.add_argument("--vocabulary", default="0.01,0.1,1", help="parts of Criteo Kaggle's vocabulary, comma-separated")
    parser.add_argument("--contenders", default=",".join(DEFAULT), help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--ids", choices=("zipf", "uniform"), default="zipf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round")
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, float(args.vocabulary), int(args.batch), args.ids)
        return
    names = args.contenders.split(",")
    if set(names) - set(CONTENDERS):
        parser.error(f"contenders are {', '.join(CONTENDERS)}")
    print("vocabulary  batch" + "".join(f"{name:>10}" for name in names) + "   (samples/s, median)   ratios, median of rounds")
    for vocabulary in map(float, args.vocabulary.split(",")):
        for batch in map(int, args.batch.split(",")):
            figures = measure(names, vocabulary, batch, args.ids, args.rounds, args.seconds)
            row = "".join(f"{statistics.median(figures[name]):>10,.0f}" for name in names)
            ratios = [
                f"{mine}/{name} {statistics.median(a / b for a, b in zip(figures[mine], figures[name])):.2f}"
                for mine in names
                for name in names
                if mine in OURS and name not in OURS
            ]
            print(f"{vocabulary:>10.0%}{batch:>7}{row}   {', '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
