"""Workloads of vectors that a dense network with seeded weights scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.pooled import SEED, Content, Pooled
from models.spec import Input, ModelSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Dense(Pooled):
    """Messages of uniform numbers in [0, 1) with `decimals` digits.

    sizes: of the network's layers, between which are ReLUs. input: the vector's name. event: from the numbers' texts to what
    stands in a message before and after its id. Answers hold the numbers of their event where they echo.
    """

    sizes: tuple[int, ...]
    decimals: int
    input: str
    event: Callable[[Sequence[str]], tuple[str, str]]

    @property
    def width(self) -> int:
        """The numbers of a message."""
        return self.sizes[0]

    @property
    def recipe(self) -> tuple[object, ...]:
        """Sizes, digits, and how a message is written."""
        return self.sizes, self.decimals, self.event(["0"])

    def content(self, rng: np.random.Generator, n: int) -> Content:
        """n events, with the numbers as they are written."""
        texts = [[f"{value:.{self.decimals}f}" for value in row] for row in rng.random((n, self.width)).tolist()]
        matrix = np.array([[float(text) for text in row] for row in texts]).astype(np.float32)
        return Content([self.event(row) for row in texts], matrix, [",".join(row) for row in texts])

    def write_model(self, folder: Path, name: str) -> dict[str, object]:
        """The network of its sizes."""
        write_model(folder, name, self.input, self.sizes)
        return {"sizes": self.sizes}


def layers(sizes: Sequence[int]) -> "list[nn.Module]":
    """Linear layers of these sizes with ReLUs between them."""
    from torch import nn

    made: list[nn.Module] = []
    for wide, narrow in pairwise(sizes):
        made += [nn.Linear(wide, narrow), nn.ReLU()]
    return made[:-1]


def write_model(folder: Path, name: str, input: str, sizes: Sequence[int]) -> None:
    """A dense network with ReLUs between its layers and PyTorch's own seeded weights, as model.onnx and model.json."""
    import torch
    from torch import nn

    from models.network import export

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = nn.Sequential(*layers(sizes)).eval()
    export(network, folder / "model.onnx", sizes[0])
    ModelSpec(name, (Input(input, "vector", width=sizes[0]),), SEED, outputs=sizes[-1]).write(folder)
