"""Makes tests/golden/{adagrad,momentum}.*: MindSpore trains the tiny network, a checkpoint is kept half way.

Needs MindSpore: run it in the environment of `make test-mindspore`. Kept to show where the golden files come from.
"""

import json
import pathlib

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from test_real_mindspore import Network

import dlrm_tf
from dlrm_tf import DLRMConfig

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TINY = pathlib.Path(dlrm_tf.__file__).parent / "checkpoints" / "golden"
HALF, STEPS = 10, 20
RATES = {"adagrad": 0.05, "momentum": 0.02}


def main() -> None:
    """Trains with both optimizers and writes their files."""
    with np.load(TINY / "tiny.npz") as arrays:
        run = {key: arrays[key] for key in arrays.files}
    for name, rate in RATES.items():
        network = Network(DLRMConfig.preset("tiny"))
        ms.load_param_into_net(network, ms.load_checkpoint(str(TINY / "tiny.init.ckpt")))
        parameters = list(network.get_parameters())
        if name == "adagrad":
            optimizer = nn.Adagrad(parameters, learning_rate=rate)
        else:
            optimizer = nn.SGD(parameters, learning_rate=rate, momentum=0.9)

        def loss_of(dense, categorical, label, network=network):
            return ops.binary_cross_entropy_with_logits(
                network(dense, categorical), label, ops.ones_like(label), ops.ones_like(label)
            )

        step = ms.value_and_grad(loss_of, None, optimizer.parameters)
        losses = []
        for i in range(STEPS):
            if i == HALF:
                saved = {p.name: p for p in [*network.get_parameters(), *optimizer.get_parameters()]}
                path = GOLDEN / f"{name}.ckpt"
                path.unlink(missing_ok=True)
                ms.save_checkpoint([{"name": n, "data": p} for n, p in saved.items()], str(path))
            loss, gradients = step(*(Tensor(run[key][i]) for key in ("dense", "categorical", "label")))
            optimizer(gradients)
            losses.append(float(loss.asnumpy()))
        final = {p.name: p.asnumpy() for p in network.get_parameters()}
        np.savez_compressed(GOLDEN / f"{name}.npz", losses=np.array(losses), **final)
        settings = {"learning_rate": rate, "checkpoint_after_steps": HALF, "steps": STEPS}
        (GOLDEN / f"{name}.json").write_text(json.dumps(settings) + "\n")
        print(name, losses)


if __name__ == "__main__":
    main()
