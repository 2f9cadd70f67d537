"""What a pipeline's recovery store is and holds, and whether the pipeline goes on with it: `headrace state`."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from streams.holdings import held, staged
from streams.lookup import SecretError
from streams.machines import lineage_of
from streams.pipeline import Pipeline
from streams.positions import positions
from streams.settings import JobSettings
from streams.sound import elsewhere
from streams.start import RecoveryError, Start, check, made_for, store_of
from streams.store import Size, Store

FILES = "part-*"


def look(pipeline: Pipeline, settings: JobSettings, called: str) -> dict[str, Any]:
    """All that there is to say of a store, as plain data. A job may be running on it, and is not held up.

    Raises RecoveryError, which names the command that goes on, where there is none, or none that can be read.
    """
    try:
        return _look(pipeline, settings, called)
    except RecoveryError as error:
        _, differs = goes_on(pipeline, settings, called)
        raise RecoveryError(differs or str(error)) from None


def _look(pipeline: Pipeline, settings: JobSettings, called: str) -> dict[str, Any]:
    folder = store_of(pipeline, settings)
    made = made_for(folder)
    if made is None:
        raise RecoveryError(f"there is no recovery store {folder}: headrace run {called} makes one")
    name = pipeline.name
    with Store(folder) as store:
        sizes = store.sizes()
        shards = list(held(store, name, list(made.get("features", {}))))
        output = staged(store, name)
        written = [size.written_at for size in sizes]
        epoch = store.progress.epoch
        found: dict[str, Any] = {
            "store": str(folder.absolute()),
            "pipeline": name,
            "partitions": {
                "count": store.count,
                "here": [part.index for part in store.parts],
                "missing": store.missing,
            },
            "resume_epoch": epoch,
            "written_at": f"{max(written).replace(' ', 'T')}Z" if written else None,
            "executions": store.progress.executions,
            "workers": store.progress.workers,
            "unfinished_snapshots": store.unfinished(),
            "delivery": settings.delivery or pipeline.delivery,
            "positions": _positions(store, folder, name, output),
            "state_begins": iso(min((shard.begins for shard in shards if shard.begins is not None), default=None)),
            "shards": [
                {
                    "shard": shard.shard,
                    "pages": shard.pages,
                    "of": shard.of,
                    "entities": dict(shard.entities),
                    "waiting": shard.waiting,
                    "bytes": _of_shard(sizes, f"{name}.features", shard.shard),
                }
                for shard in shards
            ],
            "bytes": {
                "files": sum(file.stat().st_size for file in folder.glob(FILES)),
                "current": sum(size.current for size in sizes),
                "replaced": sum(size.nbytes - size.current for size in sizes),
                "spare": store.spare(),
                "disk_free": shutil.disk_usage(folder).free,
                "steps": _by_step(sizes),
            },
            "made_for": made,
        }
    entities = sum(sum(shard.entities.values()) for shard in shards)
    found["entities"] = entities
    found["bytes"]["per_entity"] = round(found["bytes"]["current"] / entities) if entities else None
    found["goes_on"], found["differs"] = goes_on(pipeline, settings, called)
    return found


def goes_on(pipeline: Pipeline, settings: JobSettings, called: str) -> tuple[bool, str | None]:
    """Whether the pipeline goes on with its store, and if not what differs, with the command that goes on."""
    try:
        check(pipeline, settings, called)
    except (RecoveryError, SecretError) as error:
        return False, str(error)
    return True, None


def verdict(pipeline: Pipeline, settings: JobSettings, called: str) -> dict[str, Any]:
    """Whether a job would go on here, as plain data: with its store, or without one. A job may be running on it."""
    folder = store_of(pipeline, settings)
    there = settings.recovery and made_for(folder) is not None
    good, differs = goes_on(pipeline, settings, called) if there else (True, None)
    of = made_on(folder) if there and good else settings.machines
    if of != settings.machines and (of or settings.machines == 1):
        told = f"expected one of {settings.machines} machines, got one of {of or 'several'}"
        how = f"headrace state move {called} deals it out or brings it together, headrace run {called} --rebuild makes it anew"
        good, differs = False, f"recovery store {folder}: {told}: {how}"
    return {"store": str(folder.absolute()) if there else None, "goes_on": good, "differs": differs}


def made_on(folder: Path) -> int:
    """The number of machines that a store's part is of; 0: several, and it does not say how many."""
    if not elsewhere(folder):
        return 1
    with Store(folder) as store:
        return store.count if lineage_of(folder) else 0


def _positions(store: Store, folder: Path, name: str, output: dict[int, int] | None) -> dict[str, dict[str, int | None]]:
    decide = Start.load(folder).decide
    found: dict[str, dict[str, int | None]] = {}
    for number, at in positions(store, name).items():
        begins, staged = decide.get(number, 0), (output or {}).get(number, 0)
        decided = max(at.decided, begins)
        told = found[str(number)] = {"read": at.read, "decided": decided, "safe": None if staged else decided}
        if output is not None:
            told["staged"] = staged
        if at.read < begins:
            told["rebuilding"] = begins - at.read
    return found


def iso(time: int | None) -> str | None:
    """A time in µs as people and programs read it."""
    return None if time is None else f"{np.datetime_as_string(np.datetime64(time, 'us'))}Z"


def _by_step(sizes: list[Size]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for size in sizes:
        of = found.setdefault(size.step, {"keys": 0, "snapshots": 0, "bytes": 0, "current": 0})
        for what, count in zip(of, (1, size.snapshots, size.nbytes, size.current), strict=True):
            of[what] += count
    return found


def _of_shard(sizes: list[Size], step: str, shard: int) -> int:
    return sum(size.current for size in sizes if size.step == step and size.key.startswith(f"{shard:03d}."))


def tell(found: dict[str, Any]) -> str:
    """The same for people."""
    parts, size = found["partitions"], found["bytes"]
    gone = f", of which {', '.join(map(str, parts['missing']))} are not here" if parts["missing"] else ""
    lines = [
        f"{found['pipeline']}: {found['store']}",
        _line("partitions", f"{parts['count']}{gone}"),
    ]
    if found["resume_epoch"] is None:
        never = "as its other partitions say" if parts["missing"] else "at the beginning: it was never used"
        lines.append(_line("resumes", never))
    else:
        ran = f"{found['executions']} execution{'s' * (found['executions'] != 1)}, the last with {found['workers']} worker"
        lines += [
            _line("resumes", f"at epoch {found['resume_epoch']:,}, last written {found['written_at']}"),
            _line("ran", f"{ran}{'s' * (found['workers'] != 1)}"),
        ]
    if found["unfinished_snapshots"] and found["resume_epoch"] is not None:
        lines.append(_line("unfinished", f"{found['unfinished_snapshots']:,} snapshots of epochs that are not durable (yet)"))
    begins = found["state_begins"]
    since = "the first event" if begins is None else begins
    lines += [
        _line("delivery", found["delivery"]),
        _line("state", f"version {found['made_for'].get('state version')}, of events since {since}"),
        _line("features", "none" if not found["made_for"].get("features") else ""),
    ]
    for entity, features in found["made_for"].get("features", {}).items():
        lines += [f"  {entity}: {feature}" for feature in features]
    if found["positions"]:
        topic = found["made_for"].get("topic")
        lines += ["", f"{'position of ' + str(topic):28} {'read':>12} {'decided':>12} {'safe':>12}"]
        for number, at in found["positions"].items():
            more = f"{at['safe']:12,}" if at["safe"] is not None else f"  once {at['staged']:,} messages are committed"
            more += f"  {at['rebuilding']:,} messages to read again" if at.get("rebuilding") else ""
            lines.append(f"  partition {number:16} {at['read']:12,} {at['decided']:12,} {more}")
    if found["shards"]:
        entities = list(found["shards"][0]["entities"])
        lines += [
            "",
            " ".join([f"{'shard':>7} {'pages':>7} {'bytes':>12} {'waiting':>8}", *(f"{name:>12}" for name in entities)]),
        ]
        for shard in found["shards"]:
            counts = " ".join(f"{count:12,}" for count in shard["entities"].values())
            pages = f"{shard['pages']}/{shard['of']}"
            lines.append(f"{shard['shard']:7} {pages:>7} {shard['bytes']:12,} {shard['waiting']:8,} {counts}")
    lines += ["", f"{'step':28} {'keys':>7} {'snapshots':>10} {'bytes':>12}"]
    for step, of in size["steps"].items():
        lines.append(f"  {step:26} {of['keys']:7,} {of['snapshots']:10,} {of['bytes']:12,}")
    each = f", {size['per_entity']:,} an entity" if size["per_entity"] else ""
    lines += [
        "",
        f"{size['files']:,} bytes in files: {size['current']:,} that count{each}, {size['replaced']:,} replaced, "
        f"{size['spare']:,} free to be used again; {size['disk_free']:,} free on the disk",
        "",
        "the pipeline goes on with it" if found["goes_on"] else f"the pipeline does not go on with it: {found['differs']}",
    ]
    return "\n".join(lines)


def _line(what: str, said: str) -> str:
    return f"{what:12} {said}".rstrip()
