"""The example of card payments goes the whole way from a folder of its own, with what any user has."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_own_project import state

from ops.cli import run_command
from ops.project import CHECKOUT, TEMPLATE

EXAMPLE = CHECKOUT / "docs" / "examples" / "payments"
ROOMS = ("bench", "features", "kernels", "models", "ops", "sinks", "streams")

SMALL = """
import json, sys
from pathlib import Path
from demo import main
from samples import Size
from streams.settings import JobSettings

size = Size(cards=3000, days=15, validation_cards=2000, validation_days=5, held_out_cards=2500, held_out_days=3)
print(main(JobSettings(home=Path("home")), Path("out.json"), lambda doing, share: None, size))
"""


def imports(path: Path) -> set[str]:
    """The modules of headrace that a file imports, and the names of its own it takes from them that begin with _."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ROOMS:
            found |= {node.module} | {alias.name for alias in node.names if alias.name.startswith("_")}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in ROOMS}
    return found


def test_the_pipeline_is_made_with_what_init_gives_everybody() -> None:
    given = imports(TEMPLATE / "pipeline.py") | imports(TEMPLATE / "training.py")
    assert imports(EXAMPLE / "pipeline.py") <= given | {"streams.avro"}
    assert imports(EXAMPLE / "learn.py") <= given | {"models.engine", "models.network", "models.spec"}
    assert not any(imports(EXAMPLE / f"{name}.py") for name in ("world", "frauds", "samples", "judge"))


def in_example(folder: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=folder,
        env={"PYTHONPATH": f"{CHECKOUT}:{folder}", "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


WORLD = """
import json, sys
import numpy as np
from samples import *
from frauds import KINDS

size = Size(cards=20_000, days=10)
world = make_world(3, 20_000)
table, kinds = world_payments(world, 10, 0)
again, _ = world_payments(make_world(3, 20_000), 10, 0)
other, _ = world_payments(make_world(4, 20_000), 10, 0)
reports = reported(table, kinds, 3)
fraud = set(table["payment_id"].to_numpy()[kinds > 0].tolist())
named = reports["payment_id"].to_pylist()
at = dict(zip(table["payment_id"].to_pylist(), table["at"].to_numpy().astype(np.int64).tolist()))
late = [(when - at[id]) / DAY for id, when in zip(named, reports["at"].to_numpy().astype(np.int64).tolist())]
print(json.dumps({
    "shares": np.bincount(kinds, minlength=4)[1:].tolist(), "payments": table.num_rows,
    "same": table.equals(again), "other": table.slice(0, 9).equals(other.slice(0, 9)),
    "columns": table.column_names, "in_order": bool((np.diff(table["at"].to_numpy().astype(np.int64)) >= 0).all()),
    "wrong": sum(id not in fraud for id in named) / len(named), "unreported": 1 - sum(id in fraud for id in named) / len(fraud),
    "late": [min(late), max(late)],
    "cards_shared": len(set(table["card"].unique().to_pylist()) & set(other["card"].unique().to_pylist())),
}))
"""


def test_the_worlds_are_seeded_and_as_honest_as_they_say() -> None:
    told: dict[str, Any] = json.loads(in_example(EXAMPLE, WORLD))
    assert told["same"]
    assert not told["other"]
    assert told["in_order"]
    assert told["cards_shared"] == 0
    assert sum(told["shares"]) / told["payments"] == pytest.approx(0.002, rel=0.15)
    assert all(0.2 < share / sum(told["shares"]) < 0.5 for share in told["shares"])
    assert told["wrong"] == pytest.approx(0.05, abs=0.01)
    assert told["unreported"] == pytest.approx(0.05, abs=0.03)
    assert told["late"][0] >= 1
    assert told["late"][1] <= 30
    assert not {"fraud", "label", "truth"} & set(told["columns"])


IN_AVRO = """
import json, sys
import numpy as np, pyarrow as pa
from dataclasses import replace
from pipeline import Payment, pipeline
from samples import *
from features.schema import Text
from ops.avro_messages import avro_schema, encode_avro
from ops.fake_registry import fake_registry
from streams.schema_registry import RegistryError
from streams.settings import JobSettings

past, kinds = world_payments(make_world(3, 2_000), 2, 0)
table = in_order(past, reported(past, kinds, 3)).unify_dictionaries()
later = replace(Payment, fields={"terminal": Text(path="place.terminal"), **Payment.fields})
with fake_registry() as registry:
    half = table.num_rows // 2
    first, second = registry.add(avro_schema(Payment)), registry.add(avro_schema(later))
    _, values = encode_avro(table.slice(0, half), Payment, ["card"], first)
    rest = table.slice(half)
    rest = rest.append_column("terminal", pa.array([f"t{k}" for k in range(rest.num_rows)]))
    values += encode_avro(rest, later, ["card"], second)[1]
    values.insert(half, b"\\0\\0\\0\\0\\x63" + values[0][5:])
    n = len(values)
    zero = pa.array(np.zeros(n, np.int64))
    columns = [pa.nulls(n, pa.binary()), pa.array(values, pa.binary()), zero.cast(pa.int32()), pa.array(np.arange(n))]
    columns += [zero, zero]
    raw = pa.RecordBatch.from_arrays(columns, ["_key", "_value", "_partition", "_offset", "_appended_at", "_polled_at"])
    decoded = pipeline.events.decode("payments/decode", JobSettings(schema_registry=registry.address))(raw)
rows = pa.Table.from_batches([decoded.rows]).select(table.column_names)
try:
    pipeline.events.decode("payments/decode", JobSettings(schema_registry=registry.address))(raw)
except RegistryError as error:
    said = str(error)
print(json.dumps({
    "reports": sum(kind == "report" for kind in rows["kind"].to_pylist()), "same": rows.to_pylist() == table.to_pylist(),
    "half": half,
    "dead": [decoded.dead["code"].to_pylist(), decoded.dead["_offset"].to_pylist()],
    "asked": registry.asked, "said": said,
}))
"""


@pytest.mark.slow
def test_payments_are_avro_a_field_is_added_an_unknown_schema_is_set_aside_and_a_registry_that_is_down_is_named() -> None:
    told = json.loads(in_example(EXAMPLE, IN_AVRO))
    assert told["same"]
    assert told["reports"] > 10
    assert told["dead"] == [["unknown_schema"], [told["half"]]]
    assert sorted(told["asked"]) == ["/schemas/ids/1", "/schemas/ids/2", "/schemas/ids/99"]
    assert "no schema registry answers at http://127.0.0.1:" in told["said"]
    assert "\n" not in told["said"]


JUDGE = """
import json
import numpy as np, pyarrow as pa
from dataclasses import asdict
from judge import best, best_rule, found

kinds = np.array([1, 0, 2, 0, 3, 0, 0, 1], np.int8)
scores = np.array([0.9, 0.1, 0.8, 0.7, 0.6, 0.6, np.nan, np.nan])
frame = pa.table({"x": [9.0, 1, 1, 1, 1, 1, 1, 9], "y": [5.0, 5, -7, 5, 5, 5, 5, 5]})
print(json.dumps([asdict(each) for each in (
    found("a", scores >= 0.6, kinds),
    best("b", scores, kinds, 0.7),
    best("c", -scores, kinds, 0.7),
    *best_rule(frame, ["x", "y"], kinds),
)]))
"""


def test_the_judge_counts_as_one_does_by_hand() -> None:
    at, best, none, rule, one, two, three = json.loads(in_example(EXAMPLE, JUDGE))
    assert (at["precision"], at["recall"], at["all"], at["cases"]) == (0.6, [0.5, 1, 1], 0.75, [2, 1, 1])
    assert (best["precision"], best["recall"]) == (1, [0.5, 1, 0])
    assert none["recall"] == [0, 0, 0]
    assert rule["name"] == "x from a threshold on"
    assert rule["recall"] == [1, 0, 0]
    assert one == rule
    assert two["name"] == "y below a threshold"
    assert two["recall"] == [0, 1, 0]
    assert three["recall"][2] == 0


def test_other_demos_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["demo", "payment"]) == 2
    assert "no demo payment: expected flights or payments" in capsys.readouterr().err
    assert run_command(["demo", "payments", "--workers", "2"]) == 2
    assert "demo payments: expected no flags but" in capsys.readouterr().err


@pytest.mark.long
def test_from_made_up_worlds_to_decisions_and_what_they_find(tmp_path: Path) -> None:
    before = state(CHECKOUT)
    folder = tmp_path / "payments"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    said = in_example(folder, SMALL)
    assert "by an embedded broker" in said
    assert "decided: refused" in said
    told = json.loads((folder / "out.json").read_text())
    names = [each["name"] for each in told["found"]]
    assert len(names) == 7
    assert names[2] == "the model without streaming features"
    decided, best, *_ = told["found"]
    assert sum(decided["cases"]) > 60
    assert decided["all"] > 0.05
    assert decided["precision"] > 20 * 0.002
    assert best["all"] == 0 or best["precision"] >= 0.7
    assert state(CHECKOUT) == before


CHOSEN = """
import json
import numpy as np
from judge import threshold

scores = np.array([0.9, 0.8, 0.8, 0.7, 0.6, 0.5, 0.5, 0.1])
reported = np.array([True, True, False, True, False, True, True, False])
print(json.dumps([threshold(scores, reported, share) for share in (1.0, 0.75, 0.7, 0.1)] + [threshold(-scores, reported, 0.9)]))
"""


def test_the_threshold_is_the_lowest_at_which_so_much_was_reported() -> None:
    assert json.loads(in_example(EXAMPLE, CHOSEN)) == [0.9, 0.7, 0.5, 0.1, float("inf")]
