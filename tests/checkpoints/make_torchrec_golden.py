"""Writes `tests/golden/torchrec_dcn.*`: torchrec's own DLRM_DCN, seeded, and its logits. Run by the Python of `test-torch`."""

import pathlib

import numpy as np
import torch
import torchrec
from torchrec.models.dlrm import DLRM_DCN

from dlrm_tf.checkpoints.ckpt_writer import array_tensor
from dlrm_tf.checkpoints.safetensors import write_safetensors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SIZES, ROWS = (7, 5, 11, 3, 9), 32

torch.manual_seed(13)
names = [f"cat_{f}" for f in range(len(SIZES))]
tables = [
    torchrec.EmbeddingBagConfig(name=f"t_{name}", embedding_dim=4, num_embeddings=n, feature_names=[name])
    for name, n in zip(names, SIZES)
]
bags = torchrec.EmbeddingBagCollection(tables=tables)
net = DLRM_DCN(bags, 5, [8, 4], [16, 6, 1], dcn_num_layers=2, dcn_low_rank_dim=6)
for name, parameter in net.named_parameters():
    if "sparse_arch" in name or "crossnet.bias" in name:
        torch.nn.init.normal_(parameter)  # torchrec's own initial values hardly tell one id from another, biases are 0

generator = np.random.default_rng(13)
dense = generator.exponential(1.0, (ROWS, 5)).astype(np.float32)
categorical = np.stack([generator.integers(0, n, ROWS) for n in SIZES], axis=1).astype(np.int32)
ids = torch.tensor(categorical.T.copy()).flatten()
with torch.no_grad():
    rows = torchrec.KeyedJaggedTensor.from_lengths_sync(names, ids, torch.ones(len(ids), dtype=torch.int32))
    logits = net(torch.tensor(dense), rows).numpy()
tensors = [array_tensor(name, tensor.numpy()) for name, tensor in net.state_dict().items()]
write_safetensors(GOLDEN / "torchrec_dcn.safetensors", tensors)
np.savez_compressed(GOLDEN / "torchrec_dcn.npz", dense=dense, categorical=categorical, logits=logits)
