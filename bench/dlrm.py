"""A DLRM (Naumov et al., arXiv:1906.00091, 2019) in the sizes of MLPerf's, but for its tables, with seeded weights."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bench.dense import layers
from bench.pooled import F32, SEED
from bench.workloads.dlrm import BUCKETS as BUCKETS
from bench.workloads.dlrm import CATEGORIES, NUMBERS, lines, matrix_of
from models.network import export
from models.spec import Input, ModelSpec

WIDTH = 128
VECTORS = 1 + len(CATEGORIES)
PAIRS = VECTORS * (VECTORS - 1) // 2
BOTTOM = (len(NUMBERS), 512, 256, WIDTH)
TOP = (WIDTH + PAIRS, 1024, 1024, 512, 256, 1)
FLOP = 2 * (sum(wide * narrow for sizes in (BOTTOM, TOP) for wide, narrow in pairwise(sizes)) + WIDTH * PAIRS)
"""Of a row: a multiplication and an addition for each weight and each term of a dot product."""
Gather = Callable[[torch.Tensor, int, torch.Tensor, torch.Tensor, torch.Tensor], None]
WEIGHTS = "model.safetensors"
SEEN = 512


class Dlrm(nn.Module):
    """Scores float32 [n] in (0, 1) of a matrix float32 [n, 39]: 13 counts, NaN for missing, and the codes of 26 categories.

    buckets: the codes of each category. embeddings: float32 [26 * buckets, 128], one table after the other, so that a graph has
    one Gather for all; zeros until they are set.
    """

    pairs: torch.Tensor
    starts: torch.Tensor
    zero: torch.Tensor

    def __init__(self, buckets: int) -> None:
        super().__init__()
        self.buckets = buckets
        self.bottom = nn.Sequential(*layers(BOTTOM), nn.ReLU())
        self.embeddings = nn.Parameter(torch.zeros(len(CATEGORIES) * buckets, WIDTH))
        self.top = nn.Sequential(*layers(TOP))
        lower = torch.tril_indices(VECTORS, VECTORS, offset=-1)
        self.register_buffer("pairs", lower[0] * VECTORS + lower[1], persistent=False)
        self.register_buffer("starts", torch.arange(len(CATEGORIES)) * buckets, persistent=False)
        self.register_buffer("zero", torch.zeros(1), persistent=False)

    def forward(self, matrix: torch.Tensor) -> torch.Tensor:
        counts, codes = split(matrix)
        return self.scored(counts, self.embedded(codes))

    def embedded(self, codes: torch.Tensor) -> torch.Tensor:
        """The embeddings float32 [n, 26, 128] of codes float32 [n, 26], which are clipped to those there are."""
        rows = torch.clamp(codes, 0, self.buckets - 1).to(torch.int64) + self.starts
        return nn.functional.embedding(rows, self.embeddings)

    def scored(self, counts: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """Scores float32 [n] of counts float32 [n, 13], NaN for missing, and embeddings float32 [n, 26, 128]."""
        return torch.sigmoid(self.logits(counts, embedded))

    def logits(self, counts: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """What `scored` takes the sigmoid of. A count is log(1 + max(count, 0)) to it, and 0 where it is missing."""
        known = torch.where(counts > 0, counts, self.zero)
        return self.top(self.interacted(self.bottom(torch.log1p(known)), embedded))[:, 0]

    def interacted(self, dense: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """dense float32 [n, 128] and the dot products of each two among it and embeddings float32 [n, 26, 128]: [n, 479]."""
        vectors = torch.cat([dense[:, None], embedded], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).reshape(-1, VECTORS * VECTORS)
        return torch.cat([dense, torch.index_select(products, 1, self.pairs)], 1)

    def scores(self, matrix: F32) -> F32:
        """The scores float32 [n] by PyTorch itself, on the CPU."""
        with torch.no_grad():
            return self(torch.from_numpy(matrix)).numpy()


class Gathering(nn.Module):
    """A DLRM whose embeddings are taken by a kernel.

    gather: fills the embeddings from the matrix, of which the codes begin at a column, the tables and their first rows, as
    kernels/gather does, on PyTorch tensors.
    """

    starts: torch.Tensor

    def __init__(self, network: Dlrm, gather: Gather) -> None:
        super().__init__()
        self.network, self._gather = network, gather
        starts = torch.arange(len(CATEGORIES) + 1) * network.buckets
        self.register_buffer("starts", starts.to(network.embeddings.device), persistent=False)

    def forward(self, matrix: torch.Tensor) -> torch.Tensor:
        tables, shape = self.network.embeddings.detach(), (len(matrix), len(CATEGORIES), WIDTH)
        embedded = torch.empty(shape, device=matrix.device)
        self._gather(matrix, len(NUMBERS), tables, self.starts, embedded)
        return self.network.scored(split(matrix)[0], embedded)


def split(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts float32 [n, 13] and codes float32 [n, 26] of a matrix [n, 39]."""
    return matrix[:, : len(NUMBERS)], matrix[:, len(NUMBERS) :]


def seeded(buckets: int) -> Dlrm:
    """One with seeded weights: layers as ReLUs need them (He et al., 2015), embeddings whose dot products have deviation 1, and
    the last layer such that the logits of clicks have mean 0 and deviation 1: most scores are between 0.1 and 0.9."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        network = Dlrm(buckets)
        for layer in (*network.bottom, *network.top):
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(network.embeddings, std=WIDTH**-0.25)
        seen = matrix_of(lines(np.random.default_rng(SEED), SEEN), buckets)
        counts, codes = split(torch.from_numpy(seen))
        logits = network.logits(counts, network.embedded(codes))
        last = network.top[-1]
        assert isinstance(last, nn.Linear)
        last.weight.div_(logits.std())
        last.bias.sub_(logits.mean()).div_(logits.std())
    return network.eval()


def write_model(folder: Path, name: str, buckets: int = BUCKETS) -> None:
    """The seeded DLRM as model.onnx, model.json and model.safetensors.

    buckets: of each category. The default makes 13.3 MB of tables, which may fit a cache; what an ONNX file can hold, 2 GB, is
    160,000 buckets.
    """
    network = seeded(buckets)
    export(network, folder / "model.onnx", len(NUMBERS) + len(CATEGORIES))
    counts = [Input(each, "number") for each in NUMBERS]
    ModelSpec(name, (*counts, *(Input(each, "hashed", buckets=buckets) for each in CATEGORIES)), SEED).write(folder)
    save_file(network.state_dict(), folder / WEIGHTS)


def network_of(folder: Path) -> Dlrm:
    """The DLRM whose weights are in a folder's model.safetensors. Raises OSError, SafetensorError, KeyError or RuntimeError
    where there are none, or those of another network."""
    weights = load_file(folder / WEIGHTS)
    network = Dlrm(len(weights["embeddings"]) // len(CATEGORIES))
    network.load_state_dict(weights)
    return network.eval()


def matrix(rows: int, spec: ModelSpec) -> F32:
    """What a DLRM of these inputs is given of so many clicks, float32 [n, 39]; always the same."""
    return matrix_of(lines(np.random.default_rng(rows), rows), spec.inputs[-1].buckets)
