"""A small network over numbers and categories that takes the raw matrix: preparation is inside it, and so in its ONNX file."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Fit:
    """How a network is fitted: layers and embedding width, epochs, rows per step, AdamW's peak rate and decay (one cycle).

    rows: of a step at most; it is a hundredth of all rows, and at least 64, where that is less.
    unknown: the share of category codes that are hidden in each step, so that the network knows what to do with unknown values.
    """

    hidden: tuple[int, ...] = (128, 64)
    embedding: int = 8
    epochs: int = 5
    rows: int = 1024
    rate: float = 2e-3
    decay: float = 1e-4
    dropout: float = 0.1
    unknown: float = 0.01


class Prepare(nn.Module):
    """Numbers [n, F] with NaN for missing to [n, 2 F]: F of mean 0 and deviation 1, then F indicators of what is missing.

    Learned from rows by `of`: missing values become the median, values are clipped to the 0.1% and 99.9% quantiles, and those
    of skewness beyond 1 (delays, counts) go through sign(x) ln(1 + |x|).
    """

    low: torch.Tensor
    high: torch.Tensor
    median: torch.Tensor
    skewed: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, low: Matrix, high: Matrix, median: Matrix, skewed: Matrix, mean: Matrix, scale: Matrix) -> None:
        super().__init__()
        values = {"low": low, "high": high, "median": median, "skewed": skewed, "mean": mean, "scale": scale}
        for name, value in values.items():
            self.register_buffer(name, torch.from_numpy(value.astype(np.float32)))

    @classmethod
    def of(cls, numbers: Matrix) -> "Prepare":
        columns = []
        for column in numbers.T.astype(np.float64):
            known = column[~np.isnan(column)]
            known = known if len(known) else np.zeros(1)
            low, high = np.quantile(known, [0.001, 0.999])
            median = np.median(known)
            full = np.clip(np.where(np.isnan(column), median, column), low, high)
            skewed = abs(_skewness(full)) > 1
            full = np.sign(full) * np.log1p(np.abs(full)) if skewed else full
            columns.append([low, high, median, skewed, full.mean(), full.std() or 1.0])
        return cls(*np.array(columns, np.float32).reshape(-1, 6).T)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        missing = torch.isnan(numbers)
        full = torch.clamp(torch.where(missing, self.median, numbers), self.low, self.high)
        shrunk = torch.sign(full) * torch.log1p(torch.abs(full))
        full = (torch.where(self.skewed > 0, shrunk, full) - self.mean) / self.scale
        return torch.cat([full, missing.to(full.dtype)], 1)


class Network(nn.Module):
    """Scores float32 [n] in (0, 1) of a matrix float32 [n, K] as models/spec.py assembles it.

    numbers and categories: the columns of either kind; sizes: the codes of each category, 0 included.
    """

    numbers: torch.Tensor
    categories: torch.Tensor

    def __init__(self, prepare: Prepare, numbers: list[int], categories: list[int], sizes: list[int], fit: Fit) -> None:
        super().__init__()
        self.prepare = prepare
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.int64))
        self.register_buffer("categories", torch.tensor(categories, dtype=torch.int64))
        start = [torch.zeros(size, fit.embedding) for size in sizes]
        self.embeddings = nn.ModuleList(
            nn.Embedding.from_pretrained(weight, freeze=False)  # type: ignore[no-untyped-call]
            for weight in start
        )
        width, layers = 2 * len(numbers) + fit.embedding * len(sizes), []
        for hidden in fit.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(fit.dropout)]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, matrix: torch.Tensor) -> torch.Tensor:
        codes = torch.index_select(matrix, 1, self.categories).to(torch.int64)
        return torch.sigmoid(self.logits(self.prepare(torch.index_select(matrix, 1, self.numbers)), codes))

    def logits(self, prepared: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        embedded = [embedding(codes[:, k]) for k, embedding in enumerate(self.embeddings)]
        return self.layers(torch.cat([prepared, *embedded], 1))[:, 0]

    def scores(self, matrix: Matrix) -> Matrix:
        """The scores float32 [n] by PyTorch itself."""
        with torch.no_grad():
            return self(torch.from_numpy(matrix)).numpy()


def train_network(
    matrix: Matrix,
    labels: npt.NDArray[np.bool_],
    sizes: dict[int, int],
    *,
    seed: int,
    progress: Callable[[float], None],
    fit: Fit | None = None,
) -> Network:
    """A network fitted to rows float32 [n, K] and what came true, bool [n], by log loss; the same seed gives the same bits.

    sizes: the number of codes of each column that is a category, 0 included. progress: the share of the steps done.
    """
    fit = fit or Fit()
    categories = sorted(sizes)
    numbers = [k for k in range(matrix.shape[1]) if k not in sizes]
    with _repeatable(seed):
        prepare = Prepare.of(matrix[:, numbers])
        network = Network(prepare, numbers, categories, [sizes[k] for k in categories], fit)
        with torch.no_grad():
            prepared = prepare(torch.from_numpy(matrix[:, numbers]))
        codes = torch.from_numpy(matrix[:, categories].astype(np.int64))
        _descend(network, prepared, codes, torch.from_numpy(labels.astype(np.float32)), fit, progress)
    return network.eval()


def _descend(
    network: Network,
    prepared: torch.Tensor,
    codes: torch.Tensor,
    labels: torch.Tensor,
    fit: Fit,
    progress: Callable[[float], None],
) -> None:
    rows = min(fit.rows, max(64, len(labels) // 100), len(labels))
    steps = len(labels) // rows * fit.epochs
    optimiser = torch.optim.AdamW(network.parameters(), fit.rate, weight_decay=fit.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, fit.rate, total_steps=steps)
    loss = nn.BCEWithLogitsLoss()
    network.train()
    for step in range(steps):
        part = step % (len(labels) // rows)
        if part == 0:
            order = torch.randperm(len(labels))
        chosen = order[part * rows : (part + 1) * rows]
        shown = codes[chosen] * (torch.rand(rows, codes.shape[1]) >= fit.unknown)
        optimiser.zero_grad()
        loss(network.logits(prepared[chosen], shown), labels[chosen]).backward()
        optimiser.step()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            progress((step + 1) / steps)


def export(network: nn.Module, path: Path, columns: int) -> None:
    """Writes the network as ONNX: one input `matrix` float [n, columns] with any n, one output `score` as the network gives it.

    The file holds its weights, and nothing of the place it was made in.
    """
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    program = torch.onnx.export(
        network,
        (torch.zeros(3, columns),),
        input_names=["matrix"],
        output_names=["score"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError(f"{path}: torch.onnx.export gave no program")
    model = program.model_proto
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
    model.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _skewness(values: npt.NDArray[np.float64]) -> float:
    """The third standardised moment; 0 for constant values."""
    deviation = values.std()
    return float((((values - values.mean()) / deviation) ** 3).mean()) if deviation else 0.0


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """One thread and seeded numbers, and what was before put back: sums in another order give other bits."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
