"""What it takes to have Feast."""

import subprocess
import sys

WITH_FEAST = """
import sys
import typeguard
before = typeguard.typechecked
from features.views import load_feast
feast = load_feast()
assert "torch" not in sys.modules, "Feast has imported PyTorch"
assert typeguard.typechecked is before
assert "typeguard" not in feast.Entity.__init__.__code__.co_names, "Typeguard has compiled Feast's classes"
import torch
assert torch.ones(2).sum() == 2
from features.views import load_feast
assert load_feast() is feast
assert "torch" in sys.modules
"""


def test_feast_comes_without_what_nobody_needs_of_it_and_pytorch_can_be_had_after() -> None:
    done = subprocess.run([sys.executable, "-c", WITH_FEAST], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
