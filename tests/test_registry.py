"""What is recorded comes back, byte for byte or not at all, and what is missing is said in one line."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from models.registry import DigestMismatch, ModelNotFound, newest, promote, record, resolve, rollback, versions
from models.spec import digest, state

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


def uri(home: Path) -> str:
    return f"sqlite:///{home / 'registry' / 'mlflow.db'}"


def trained(folder: Path, weights: bytes) -> Path:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(weights)
    (folder / "model.json").write_text(json.dumps({"name": "m"}))
    (folder / "deep").mkdir()
    (folder / "deep" / "reference.npz").write_bytes(b"r" * 10)
    return folder


def test_the_champion_is_the_last_recorded_with_its_files_params_and_metrics(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    first = record(uri(tmp_path), "m", trained(tmp_path / "a", b"one"), params={"seed": 7}, metrics={"auc": 0.75})
    assert resolve(uri(tmp_path), "m", into=tmp_path / "models").version == first.version == 1
    second = record(uri(tmp_path), "m", trained(tmp_path / "b", b"two"), params={"seed": 8}, metrics={"auc": 0.5})
    found = resolve(uri(tmp_path), "m", into=tmp_path / "models")
    assert (found.version, found.digest, second.digest) == (2, digest(tmp_path / "b"), found.digest)
    assert (found.folder / "model.onnx").read_bytes() == b"two"
    assert (found.folder / "deep" / "reference.npz").read_bytes() == b"r" * 10
    assert digest(found.folder) == found.digest
    assert (tmp_path / "registry" / "artifacts" / "m").is_dir()

    client = MlflowClient(uri(tmp_path))
    runs = client.search_runs([client.get_experiment_by_name("m").experiment_id])
    assert {(run.data.params["seed"], run.data.metrics["auc"], run.info.status) for run in runs} == {
        ("7", 0.75, "FINISHED"),
        ("8", 0.5, "FINISHED"),
    }


def test_files_that_were_changed_are_refused_with_expected_and_got(tmp_path: Path) -> None:
    made = record(uri(tmp_path), "m", trained(tmp_path / "a", b"one"), params={}, metrics={})
    stored = next((tmp_path / "registry" / "artifacts").rglob("model.onnx"))
    stored.write_bytes(b"evil")
    with pytest.raises(
        DigestMismatch, match=f"model m version 1: .* expected digest {made.digest}, got {digest(stored.parent)}"
    ):
        resolve(uri(tmp_path), "m", into=tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []
    stored.write_bytes(b"one")
    found = resolve(uri(tmp_path), "m", into=tmp_path / "models")
    (found.folder / "model.onnx").write_bytes(b"evil")
    assert (resolve(uri(tmp_path), "m", into=tmp_path / "models").folder / "model.onnx").read_bytes() == b"one"


def test_symbolic_links_are_no_files_of_a_model(tmp_path: Path) -> None:
    """Neither recorded nor, put in the place of what was fetched, taken for it: that is fetched again."""
    record(uri(tmp_path), "m", trained(tmp_path / "a", b"one"), params={}, metrics={})
    found = resolve(uri(tmp_path), "m", into=tmp_path / "models").folder
    (tmp_path / "other").write_bytes(b"one")
    for folder in (tmp_path / "a", found):
        (folder / "model.onnx").unlink()
        (folder / "model.onnx").symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match=r"model\.onnx: expected a file or a folder, got a symbolic link"):
        record(uri(tmp_path), "m", tmp_path / "a", params={}, metrics={})
    assert resolve(uri(tmp_path), "m", into=tmp_path / "models").folder == found
    assert not (found / "model.onnx").is_symlink()
    assert (found / "model.onnx").read_bytes() == b"one"


def test_a_missing_registry_model_or_alias_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no model flights with alias champion in .*: make one \(headrace train"):
        resolve(uri(tmp_path), "flights", into=tmp_path / "models")
    assert not (tmp_path / "registry").exists()
    record(uri(tmp_path), "m", trained(tmp_path / "a", b"one"), params={}, metrics={}, alias="other")
    for name in ("m", "flights"):
        with pytest.raises(ModelNotFound, match=f"no model {name} with alias champion"):
            resolve(uri(tmp_path), name, into=tmp_path / "models")
    with pytest.raises(FileNotFoundError, match="expected files in"):
        record(uri(tmp_path), "m", tmp_path / "nothing", params={}, metrics={})


def test_the_library_that_is_loaded_beforehand_is_nearly_all_that_asking_takes(tmp_path: Path) -> None:
    record(uri(tmp_path), "m", trained(tmp_path / "a", b"one"), params={}, metrics={})
    code = (
        "import sys; from models.registry import load_library, newest; load_library(sys.argv[1]); before = len(sys.modules); "
        "print(newest(sys.argv[1], 'm')[0], len(sys.modules) < 1.05 * before, before)"
    )
    told = subprocess.run([sys.executable, "-c", code, uri(tmp_path)], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("1 True "), told.stdout + told.stderr


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 18, (1 << 18) + 1, 1_000_003])
def test_the_digest_of_files_is_that_of_their_bytes_however_many(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "nothing").touch()
    assert digest(tmp_path) == sha256(b"4 %d\nfile" % size + content + b"7 0\nnothing").hexdigest()


def test_the_state_of_files_tells_that_any_was_written_whatever_its_times_say(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / name).write_bytes(b"as it was")
    before, told = state(folder), (folder / "one").stat()
    assert state(folder.rename(tmp_path / "named")) == before  # a version that was fetched is named when it is whole
    folder = tmp_path / "named"
    found = {before}
    changes: tuple[Callable[[], object], ...] = (
        lambda: (folder / "one").write_bytes(b"as it is!"),
        lambda: os.utime(folder / "one", ns=(told.st_atime_ns, told.st_mtime_ns)),
        lambda: (folder / "two").rename(folder / "three"),
        lambda: (folder / "more").write_bytes(b""),
        lambda: (folder / "more").unlink(),
    )
    for change in changes:
        time.sleep(0.02)  # a clock tick of the kernel's
        change()
        found.add(state(folder))
    assert len(found) == 5  # without the one that came and went it is as before
    (folder / "link").symlink_to(folder / "one")
    with pytest.raises(ValueError, match="symbolic link"):
        state(folder)


def test_the_digest_tells_names_and_bytes_apart(tmp_path: Path) -> None:
    """Bytes moved from a file's end to the next one's beginning, or to another name, are another digest."""
    found = set()
    for k, (one, two) in enumerate([("ab", "c"), ("a", "bc"), ("abc", "")]):
        folder = tmp_path / str(k)
        folder.mkdir()
        (folder / "x").write_text(one)
        (folder / "y").write_text(two)
        found.add(digest(folder))
        (folder / "y").rename(folder / "z")
        found.add(digest(folder))
    assert len(found) == 6


def test_versions_are_listed_promoted_and_rolled_back(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no model m in sqlite"):
        versions(uri(tmp_path), "m")
    for number, weights in enumerate((b"one", b"two", b"three"), 1):
        alias = "" if number == 2 else "champion"
        folder = trained(tmp_path / str(number), weights)
        record(uri(tmp_path), "m", folder, params={}, metrics={"auc": number / 4}, alias=alias)
    listed = versions(uri(tmp_path), "m")
    assert [(one.version, one.aliases, one.metrics) for one in listed] == [
        (3, ("champion",), {"auc": 0.75}),
        (2, (), {"auc": 0.5}),
        (1, ("previous",), {"auc": 0.25}),
    ]
    assert newest(uri(tmp_path), "m") == (3, listed[0].digest)
    assert promote(uri(tmp_path), "m", 2) == 3
    assert newest(uri(tmp_path), "m") == (2, listed[1].digest)
    assert rollback(uri(tmp_path), "m") == (3, 2)
    assert rollback(uri(tmp_path), "m") == (2, 3)
    assert promote(uri(tmp_path), "m", 2) == 2
    assert [one.aliases for one in versions(uri(tmp_path), "m")] == [("previous",), ("champion",), ()]
    with pytest.raises(ModelNotFound, match="model m: no version 7, there are 3, 2, 1"):
        promote(uri(tmp_path), "m", 7)
    record(uri(tmp_path), "n", trained(tmp_path / "n", b"n"), params={}, metrics={})
    with pytest.raises(ModelNotFound, match="alias previous"):
        rollback(uri(tmp_path), "n")
