"""The prover: a job on Apache Kafka is killed again and again, and then every message of its topics is counted.

    python -m bench.faults --kills 200 --workers 1,2,3 --mode exactly_once --json faults.json
    python -m bench.faults --kills 9 --plant commit-in-snapshot      # a bug that it has to find: ends with code 1
    python -m bench.faults --rescale 1,3,2      # stopped and killed, and started with another number of workers
    python -m bench.faults --outage 30          # the broker stands still, and is stopped and started again
    python -m bench.faults --leader-change      # two brokers, of which one is stopped and killed
    python -m bench.faults --grow               # partitions are added to the topic

`headrace run --restart` is started with each number of workers in turn, so that the job is rescaled all along. One worker is
ended by SIGKILL at a point of delivery (ops/faults.py), again and again, and the job starts again by itself; then all
processes are, at any time or while they start. Messages come in meanwhile, some of them broken. Then the topics are read with
read_committed: each message must have one decision or one dead letter, and what the decision says of its key (how many
messages before, and their sum) must be what the messages say.

Kills are made in chunks, each with a job and topics of its own, audited at its end and added to the JSON file. Started again
with the same file, it goes on with the chunk after the last that is in it. The other faults are audited in the same way.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.brokers import Served, broker, make
from bench.machine import commit, machine, versions
from bench.options import leave_on_sigterm
from bench.proving.audit import added, audit, committed, wrong
from bench.proving.job import PLANTS
from bench.proving.lives import RANDOM, STARTING, Kills, Stand, StuckError, Turn, drain, kill, medians
from bench.proving.load import PARTITIONS, sending
from bench.proving.scenes import grow, leaders, outage, own, rescale
from bench.show import say
from ops.faults import AT_ONCE, POINTS

SETTINGS = ("mode", "epoch", "rate", "seed", "kills", "chunk", "points", "workers", "plant")
LIVES = 4
SCENES = ("rescale", "outage", "leaders", "grow")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if anything was lost, doubled or wrong, or a point was never reached."""
    options = parsed(arguments)
    leave_on_sigterm()
    if scene := next((name for name in SCENES if getattr(options, name)), ""):
        return staged(options, scene)
    settings = {name: getattr(options, name) for name in SETTINGS}
    whole = resumed(options.json, settings)
    began, plan = time.monotonic(), planned(settings)
    todo = range(len(whole["chunks"]), len(plan))
    with tempfile.TemporaryDirectory(prefix="headrace-faults-") as home, broker(options.broker) as served:
        for number in todo:
            if options.minutes and time.monotonic() - began > 60 * options.minutes:
                say(f"{60 * options.minutes:.0f} s are over: the same command goes on with chunk {number + 1}")
                break
            whole["chunks"].append(chunk(options, served, Path(home), number, plan))
            if options.json:
                options.json.write_text(json.dumps(whole | judged(whole, options.mode), indent=1) + "\n")
    told = judged(whole, options.mode)
    print("\n".join(report(told)))
    return bool(told["wrong"])


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--chunk", type=int, default=20, help="kills between two audits")
    parser.add_argument("--minutes", type=float, default=0, help="begin no chunk after so many; the same command goes on")
    parser.add_argument("--workers", type=lambda text: [int(each) for each in text.split(",")], default=[1, 2, 3])
    parser.add_argument("--mode", choices=["exactly_once", "at_least_once"], default="exactly_once")
    parser.add_argument("--rate", type=float, default=500, help="messages a second")
    parser.add_argument("--epoch", type=float, default=0.25)
    parser.add_argument("--rescale", type=lambda text: [int(each) for each in text.split(",")], default=None)
    parser.add_argument("--outage", type=float, default=None, metavar="SECONDS")
    parser.add_argument("--leader-change", dest="leaders", action="store_true")
    parser.add_argument("--grow", action="store_true")
    parser.add_argument("--points", type=lambda text: text.split(","), default=None, help="where to kill, all if not said")
    parser.add_argument("--name", default="faults", help="of the job, and what its topics begin with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", choices=sorted(PLANTS), default="", help="a bug that has to be found")
    parser.add_argument("--broker", default="apache", help="apache or HOST:PORT")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    points = [*(POINTS if options.mode == "exactly_once" else AT_ONCE), RANDOM, STARTING]
    options.points = options.points or points
    if unknown := sorted(set(options.points) - set(points)):
        parser.error(f"--points: expected {', '.join(points)}, got {', '.join(unknown)}")
    return options


def resumed(file: Path | None, settings: dict[str, Any]) -> dict[str, Any]:
    """What a result file holds so far. Raises ValueError if it was made with other settings."""
    head, dirty = commit()
    begun = {"kind": "faults", "settings": settings, "partitions": PARTITIONS, "commit": head, "dirty": dirty, "chunks": []}
    if file is None or not file.exists():
        return begun | {"machine": machine(), "versions": versions()}
    found: dict[str, Any] = json.loads(file.read_text())
    if differs := [name for name in settings if found["settings"].get(name) != settings[name]]:
        raise ValueError(f"{file}: made with another {', '.join(differs)}: name another file, or the same settings")
    return found


def turns(seed: int, points: Sequence[str], workers: Sequence[int], kills: int) -> list[Turn]:
    """So many kills in turns: in a round each point with each number of workers, in another order each round."""
    rng, made, left = random.Random(seed), list[Turn](), kills
    labelled = [point for point in points if point not in (RANDOM, STARTING)]
    while left > 0:
        of_round = list[Turn]()
        for count in workers:
            mixed = rng.sample(labelled, len(labelled))
            each = [mixed[k : k + LIVES] for k in range(0, len(mixed), LIVES)] or [[]]
            each[-1] += [RANDOM] if RANDOM in points else []
            if STARTING in points:
                again = len(each) > 1 and rng.random() < 0.5
                each = [[*each[0], STARTING], *each[1:]] if again else [*each, [STARTING]]
            of_round += [Turn(count, tuple(some)) for some in each if some]
        for turn in rng.sample(of_round, len(of_round)):
            if left > 0:
                made.append(Turn(turn.workers, turn.points[:left]))
                left -= len(made[-1].points)
    return made


def chunks(todo: Sequence[Turn], most: int) -> list[list[Turn]]:
    """The turns in chunks of about `most` kills."""
    made = list[list[Turn]]()
    for turn in todo:
        if not made or sum(len(each.points) for each in made[-1]) + len(turn.points) / 2 > most:
            made.append([])
        made[-1].append(turn)
    return made


def planned(settings: dict[str, Any]) -> list[list[Turn]]:
    """What is to be done, in chunks."""
    return chunks(turns(*(settings[name] for name in ("seed", "points", "workers", "kills"))), settings["chunk"])


def staged(options: argparse.Namespace, scene: str) -> int:
    """One of the SCENES, drained and audited; 1 if anything is not as promised."""
    settings: dict[str, Any] = {"delivery": options.mode, "epoch_seconds": options.epoch}
    workers = options.workers[0]
    began, head = time.monotonic(), commit()
    with tempfile.TemporaryDirectory(prefix="headrace-faults-") as folder, own(Path(folder), scene == "leaders") as broker:
        two = 2 if scene == "leaders" else 1
        stand = Stand.made(broker.served, Path(folder), options.name, "", settings)
        make(stand.served, [stand.load.source, stand.load.target], PARTITIONS, replicas=two)
        make(stand.served, [stand.load.letters], 1, replicas=two)
        plays: dict[str, Callable[[], dict[str, Any]]] = {
            "rescale": lambda: rescale(stand, options.rescale),
            "outage": lambda: outage(stand, broker, workers, options.outage),
            "leaders": lambda: leaders(stand, broker, workers),
            "grow": lambda: grow(stand, options.workers),
        }
        found, told = list[str](), dict[str, Any]()
        with sending(stand.served.address, stand.load, options.rate):
            try:
                told = plays[scene]()
            except StuckError as error:
                found.append(str(error))
        if died := drain(stand, workers):
            found.append(f"the last run died: {died}")
        topics = [committed(stand.served.address, topic) for topic in (stand.load.target, stand.load.letters)]
        seen = audit(stand.load, *topics)
    found += wrong(seen, options.mode) + told.get("slow", [])
    settings |= {"rate": options.rate, "workers": options.rescale or options.workers}
    whole: dict[str, Any] = {"kind": "faults", "scene": scene, "settings": settings}
    whole |= {"commit": head[0], "dirty": head[1], "machine": machine()}
    whole |= {"versions": versions(), "told": told, "seen": seen, "wrong": found, "seconds": round(time.monotonic() - began)}
    if options.json:
        options.json.write_text(json.dumps(whole, indent=1) + "\n")
    print(json.dumps(told, indent=1))
    print("\n".join([*counted(seen), verdict(found, seen["first_wrong"])]))
    return bool(found)


def chunk(options: argparse.Namespace, served: Served, home: Path, number: int, plan: list[list[Turn]]) -> dict[str, Any]:
    """Some turns of a job of its own, drained and audited."""
    settings = {"delivery": options.mode, "epoch_seconds": options.epoch, "restart_deaths": options.kills}
    stand = Stand.made(served, home, f"{options.name}-{number}", PLANTS.get(options.plant, ""), settings)
    make(served, [stand.load.source, stand.load.target], PARTITIONS)
    make(served, [stand.load.letters], 1)
    rng, kills, began = random.Random(f"{options.seed}/{number}"), Kills(), time.monotonic()
    before = made = sum(len(turn.points) for each in plan[:number] for turn in each)
    with sending(served.address, stand.load, options.rate):
        for done, turn in enumerate(plan[number]):
            kill(rng, stand, turn, done, kills)
            spent = time.monotonic() - began
            made += len(turn.points)
            left = (options.kills - made) * spent / (made - before) / 60
            say(
                f"{spent:6.0f} s  kill {made} of {options.kills}: {', '.join(turn.points)}, {turn.workers} workers; "
                f"{left:.0f} min to go"
            )
    died = drain(stand, options.workers[number % len(options.workers)])
    seen = audit(stand.load, committed(served.address, stand.load.target), committed(served.address, stand.load.letters))
    say(f"        chunk {number + 1}: {'; '.join(wrong(seen, options.mode)) or 'as promised'}, {seen['messages']:,} messages")
    return {"kills": kills.told(), "died": died, **seen, "seconds": round(time.monotonic() - began)}


def judged(whole: dict[str, Any], mode: str) -> dict[str, Any]:
    """All chunks together, and what is not as promised."""
    made = whole["chunks"]
    seen = added(made)
    hit, missed, refused, start_s, again_s = (
        [one for each in made for one in each["kills"][name]] for name in ("hit", "missed", "refused", "start_s", "again_s")
    )
    seen["hit"] = dict(sorted(Counter(point for point, _ in hit).items()))
    seen["workers"] = dict(sorted(Counter(str(workers) for _, workers in hit).items()))
    seen["missed"] = dict(sorted(Counter(point for point, _ in missed).items()))
    seen["start_s"], seen["again_s"] = medians(start_s), medians(again_s)
    seen["first_wrong"] = [said for each in made for said in each["first_wrong"]][:3]
    never = sorted(seen["missed"].keys() - seen["hit"].keys())
    found = wrong(seen, mode) + [f"never reached: {point}" for point in never]
    found += [f"the job did not go on: {said}" for said in refused[:3]]
    found += [f"the last run died: {each['died']}" for each in made if each["died"]][:3]
    if len(made) == len(planned(whole["settings"])):
        if len(hit) < whole["settings"]["kills"]:
            found.append(f"kills not made: {whole['settings']['kills'] - len(hit)} of {whole['settings']['kills']}")
        untried = set(whole["settings"]["points"]) - seen["hit"].keys() - set(never)
        found += [f"never killed at: {point}" for point in sorted(untried)]
    return {"seen": seen, "wrong": found}


def report(told: dict[str, Any]) -> list[str]:
    """What is printed."""
    seen, found = told["seen"], told["wrong"]
    lines = [
        f"kills by point: {', '.join(f'{point} {count}' for point, count in seen['hit'].items())}",
        f"kills by workers: {listed(seen['workers'])}",
        f"seconds until all workers were ready, by workers: started {listed(seen['start_s'])}; again {listed(seen['again_s'])}",
        *([f"points not passed in time, killed otherwise: {seen['missed']}"] if seen["missed"] else []),
        *counted(seen),
    ]
    return [*lines, verdict(found, seen["first_wrong"])]


def listed(values: dict[str, Any]) -> str:
    """Values by name, in a line."""
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def counted(seen: dict[str, Any]) -> list[str]:
    """What was audited."""
    return [
        f"{seen['messages']:,} messages, {seen['decided']:,} decided, {seen['lost']:,} lost, {seen['dead']:,} dead letters, "
        f"{seen['set_aside']:,} of them set aside ({seen['decided_too']:,} decided, too), {seen['dead_lost']:,} lost; "
        f"{seen['state_wrong']:,} wrong of their own key, "
        f"{seen['shared_wrong']:,} of a shared one",
        f"{seen['repeats']:,} repeats, of which {seen['contradict_own']:,} contradict the first of their id in what is of one "
        f"partition, {seen['contradict_shared']:,} in what depends on how far other partitions were",
    ]


def verdict(found: Sequence[str], examples: Sequence[str]) -> str:
    """The last line."""
    return "WRONG: " + "; ".join([*found, *examples]) if found else "as promised"


if __name__ == "__main__":
    sys.exit(main())
