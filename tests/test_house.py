"""The house's own rules: nobody else on the path owns our packages' names, and a pipeline's file stays short."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


@pytest.mark.parametrize("room", ROOMS)
def test_nobody_else_owns_our_names(room: str) -> None:
    spec = importlib.util.find_spec(room)
    assert spec is not None
    assert spec.origin == str(ROOT / room / "__init__.py")


def test_the_pipeline_of_the_demo_is_short() -> None:
    lines = (ROOT / "streams" / "flights.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 75


def test_only_flights_own_files_know_of_flights() -> None:
    """What is flights' own stays in its pipeline, its training, its history, its Feast repo, the demo and its preparation."""
    own = {"streams/flights.py", "models/flights.py", "models/flights_history.py", "features/repo/definitions.py"}
    shown = {"ops/demo.py", "ops/feast_repo.py", "ops/cli.py", "ops/summary.py"}
    words = ("tailnum", "dep_delay", "arr_delay", "flight_id")
    for room in ("features", "kernels", "models", "sinks", "streams", "ops"):
        for path in (ROOT / room).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if name not in own | shown:
                code = "\n".join(line for line in path.read_text().splitlines() if ":" not in line or '"' not in line)
                assert not any(word in code for word in words), name
