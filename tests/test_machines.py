"""A job on several machines: what each says of its part of the store, how they meet, and real processes on a real broker."""

import asyncio
import os
import queue
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from bench.brokers import Served
from bench.proving.lives import Stand
from bench.proving.stream import Counted, Stream, counted, streaming
from bench.soak import topics
from ops.broker import Broker, free_port
from ops.cli import run_command
from ops.errors import USAGE
from ops.meeting import BYE, CLOSED, GONE, LEAVE, Hello, Link, Meeting, join, workers_of
from ops.workers import as_environment, end
from streams.machines import Part, Plan, agreed, part, take
from streams.settings import JobSettings
from streams.store import RecoveryError, Store

ROOT = Path(__file__).parents[1]
NEEDS = {"state version": 1, "topic": "in", "features": {}}
FLOW = "job"


def folders(home: Path, machines: int = 3) -> list[Path]:
    return [home / str(number) / FLOW for number in range(machines)]


def begun(stores: list[Path], lineage: str = "first") -> list[int]:
    """What happens before a start: the epochs that the machines start with."""
    plan = agreed([part(store) for store in stores], lineage)
    return [take(store, plan, number, NEEDS, FLOW) for number, store in enumerate(stores)]


def written(store: Path, table: str, **values: Any) -> None:
    (file,) = store.glob("*.sqlite3")
    with closing(sqlite3.connect(file)) as opened, opened:
        opened.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})", [*values.values()])


def ran(stores: list[Path], fronts: list[int]) -> None:
    """One execution, whose workers came so far; the partitions each have one row or the other, as Bytewax deals them."""
    written(stores[0], "exs", ex_num=0, worker_count=len(fronts), resume_epoch=1)
    for worker, front in enumerate(fronts):
        where = stores[(worker + 1) % len(stores)]
        written(where, "fronts", ex_num=0, worker_index=worker, worker_frontier=front)


def test_all_forget_what_is_of_the_epoch_that_the_slowest_worker_came_to(tmp_path: Path) -> None:
    stores = folders(tmp_path)
    assert begun(stores) == [1, 1, 1]
    assert [part(store).here for store in stores] == [[0], [1], [2]]
    ran(stores, [9, 7, 8])
    for store in stores:
        for epoch in (5, 6, 7, 8):
            position = {"step_id": f"{FLOW}.event", "state_key": f"{epoch}", "ser_change": b"\x80\x05K\x01."}
            written(store, "snaps", snap_epoch=epoch, **position)
    assert begun(stores) == [7, 7, 7]
    for store in stores:
        with Store(store) as opened:
            assert {row[2] for row in opened._asked("SELECT step_id, state_key, snap_epoch FROM snaps", ())} == {5, 6}


def test_a_store_that_was_never_used_is_made_again_as_machine_0_has_it(tmp_path: Path) -> None:
    stores = folders(tmp_path)
    begun(stores)
    shutil.rmtree(stores[1])
    assert begun(stores, "second") == [1, 1, 1]
    assert {part(store).lineage for store in stores} == {"first"}
    shutil.rmtree(stores[0])
    begun(stores, "third")
    assert {part(store).lineage for store in stores} == {"third"}
    assert part(stores[1].with_name(f"{FLOW}.old")).lineage == "first"
    assert begun(stores[:2], "fourth") == [1, 1]
    assert [(part(store).lineage, part(store).count) for store in stores] == [("fourth", 2), ("fourth", 2), ("third", 3)]


def test_what_a_run_left_that_was_killed_in_its_first_epoch_is_forgotten(tmp_path: Path) -> None:
    stores = folders(tmp_path, 2)
    begun(stores)
    ran(stores, [1, 1])
    written(stores[1], "snaps", step_id=f"{FLOW}.event", state_key="1", snap_epoch=1, ser_change=b"\x80\x05K\x01.")
    assert begun(stores) == [1, 1]
    with Store(stores[1]) as opened:
        assert opened.steps() == []


def test_a_part_that_is_gone_is_missed_though_it_alone_knew_how_often_the_job_has_run(tmp_path: Path) -> None:
    stores = folders(tmp_path, 2)
    begun(stores)
    written(stores[1], "exs", ex_num=0, worker_count=2, resume_epoch=1)
    for store in stores:
        written(store, "commits", part_index=part(store).here[0], commit_epoch=4)
    shutil.rmtree(stores[1])
    with pytest.raises(RecoveryError, match="machine 1: expected its part of the recovery store of machine 0, got none"):
        begun(stores)
    begun(folders(tmp_path / "more", 2))
    shutil.rmtree(stores[0])
    shutil.copytree(folders(tmp_path / "more", 2)[1], stores[1])
    written(stores[1], "exs", ex_num=0, worker_count=2, resume_epoch=1)
    with pytest.raises(RecoveryError, match="machine 0: expected its part of the recovery store, which others have, got none"):
        begun(stores)


def test_a_part_that_has_gone_since_the_machines_met_is_not_made_anew(tmp_path: Path) -> None:
    stores = folders(tmp_path, 2)
    begun(stores)
    ran(stores, [7, 7])
    plan = agreed([part(store) for store in stores], "new")
    shutil.rmtree(stores[1])
    with pytest.raises(RecoveryError, match="it was there when the machines met, and is another one now"):
        take(stores[1], plan, 1, NEEDS, FLOW)


def test_a_job_without_state_begins_where_machine_0_says(tmp_path: Path) -> None:
    stores = folders(tmp_path)
    stores[0].mkdir(parents=True)
    start = '{"read": {"0": 3}, "decide": {"0": 5}, "begins": null}'
    (stores[0] / "start.json").write_text(start)
    begun(stores)
    for store in stores:
        assert part(store).start == {"read": {0: 3}, "decide": {0: 5}, "begins": None}


def changed(has: Part, **how: Any) -> Part:
    return replace(has, **how)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"made": None}, "machine 1: expected its part of the recovery store of machine 0, got none"),
        ({"lineage": "other"}, "machine 1: expected its part of the recovery store of machine 0, got one of another making"),
        ({"made": NEEDS | {"topic": "out"}}, "machine 1: recovery store: expected topic in, got out, as machine 0"),
        ({"here": []}, r"expected partitions 0 to 2 of the recovery store on 3 machines, got \[0, 2\]"),
        ({"let_go": [8]}, "machine 1: its recovery store is newer than the others, copies from before"),
    ],
)
def test_parts_that_are_no_whole_store_are_refused(tmp_path: Path, how: dict[str, Any], says: str) -> None:
    stores = folders(tmp_path)
    begun(stores)
    ran(stores, [7, 7, 7])
    parts = [part(store) for store in stores]
    assert agreed(parts, "new").epoch == 7
    parts[1] = changed(parts[1], **how)
    with pytest.raises(RecoveryError, match=says):
        agreed(parts, "new")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"machines": "3"}, "setting machines 3: expected meeting as HOST:PORT of machine 0"),
        ({"machines": "3", "meeting": "there"}, "setting machines 3: expected meeting as HOST:PORT of machine 0"),
        ({"machines": "3", "meeting": "there:1"}, "setting machines 3: expected cluster_host"),
        ({"machines": "3", "meeting": "there:1", "cluster_host": "here", "recovery": "false"}, "expected recovery on"),
        (
            {"machines": "3", "meeting": "there:1", "cluster_host": "here", "recovery_partitions": "2"},
            "expected recovery_partitions",
        ),
        ({"machines": "3", "meeting": "there:1", "cluster_host": "here"}, "setting machines 3: expected --restart"),
        ({"machines": "2", "machine": "2"}, "setting machine 2: expected less than machines, which is 2"),
        ({"machines": "3", "workers": "3"}, "divides 840"),
    ],
)
def test_settings_that_cannot_be_of_several_machines_are_refused(
    more: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in more.items():
        monkeypatch.setenv(f"HEADRACE_{name.upper()}", value)
    monkeypatch.setenv("HEADRACE_SCHEMA_REGISTRY_LOGIN", "user:hush-hush")
    assert run_command(["run", "flights"]) == USAGE
    said = capsys.readouterr().err
    assert says in said
    assert "hush-hush" not in said


@contextmanager
def receiving() -> Iterator[int]:
    """A meeting, and its port."""
    loop, port = asyncio.new_event_loop(), free_port()
    stop, listens = asyncio.Event(), threading.Event()

    async def receive() -> None:
        server = await asyncio.start_server(Meeting().receive, "127.0.0.1", port)
        listens.set()
        await stop.wait()
        server.close()
        await asyncio.wait_for(asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()})), 10)

    thread = threading.Thread(target=loop.run_until_complete, args=(receive(),))
    thread.start()
    try:
        assert listens.wait(10)
        yield port
    finally:
        Machine.end()
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


class Machine:
    """One that meets others, in a thread."""

    there: ClassVar[list["Machine"]] = []

    @classmethod
    def end(cls) -> None:
        """All leave, and let go of what connects them."""
        for machine in cls.there:
            machine.asked.set()
            for thread in machine.threads:
                thread.join(10)
            while not machine._came.empty():
                machine.came()
            for link in machine.links:
                link.close()
        cls.there.clear()

    def __init__(self, port: int, number: int, of: int = 3, revision: str = "a", has: Part | None = None) -> None:
        self.settings = JobSettings(
            machines=of, machine=number, meeting=f"127.0.0.1:{port}", cluster_host=f"127.0.0.{number + 2}", revision=revision
        )
        self.asked, self.said, self.links, self.threads = threading.Event(), list[str](), list[Link](), list[threading.Thread]()
        self._has = has or Part()
        self._came = queue.SimpleQueue[tuple[Link, Plan, list[str]] | RecoveryError | None]()
        self.there.append(self)
        self.meet()

    def meet(self) -> None:
        settings = self.settings
        hello = Hello(settings.machine, settings.machines, workers_of(settings), settings.revision, NEEDS, asdict(self._has))

        def go() -> None:
            try:
                self._came.put(join(settings, hello, self.asked, self.said.append))
            except RecoveryError as error:
                self._came.put(error)

        self.threads.append(threading.Thread(target=go, daemon=True))
        self.threads[-1].start()

    def came(self, seconds: float = 10) -> Any:
        """How its life begins."""
        came = self._came.get(timeout=seconds)
        if isinstance(came, tuple):
            self.links.append(came[0])
        return came

    def waits(self) -> bool:
        """Whether it is still waiting, after a while."""
        try:
            self._came.put(self._came.get(timeout=0.7))
        except queue.Empty:
            return True
        return False


def heard(link: Link) -> tuple[str, Any]:
    """The next that is said."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if said := link.next():
            return said
        time.sleep(0.01)
    raise AssertionError("nothing is said")


def test_a_life_begins_when_all_are_there_and_ends_for_all_with_one() -> None:
    with receiving() as port:
        machines = [Machine(port, number) for number in (2, 0)]
        assert machines[0].waits()
        machines.insert(1, Machine(port, 1))
        lives = [each.came() for each in machines]
        for _, plan, addresses in lives:
            assert plan == lives[0][1]
            assert addresses == [f"127.0.0.{number + 2}:{port + 1}" for number in range(3)]
        late = Machine(port, 1)
        assert late.waits(), "a life is going on"
        lives[1][0].say(GONE, "no bread")
        assert heard(lives[0][0]) == heard(lives[2][0]) == (GONE, "machine 1: no bread")
        for link, _, _ in lives:
            assert late.waits(), "all have to have ended before the next life begins"
            link.close()
        machines[0].meet()
        machines[2].meet()
        again = [each.came() for each in (machines[0], late, machines[2])]
        again[2][0].close()
        assert heard(again[0][0]) == (GONE, "machine 0: it is gone")


def test_all_leave_when_one_is_asked_to() -> None:
    with receiving() as port:
        machines = [Machine(port, number, of=2) for number in range(2)]
        (first, _, _), (second, _, _) = (each.came() for each in machines)
        first.say(LEAVE)
        assert heard(first) == heard(second) == (LEAVE, "")
        second.say(BYE)
        second.close()
        machines[1].meet()
        assert machines[1].waits()
        assert first.next() is None, "who has said goodbye ends nobody's life"
        first.say(BYE)
        first.close()
        assert machines[1].waits(), "it waits for the other"
        machines[1].asked.set()
        assert machines[1].came() is None


def test_machines_of_two_revisions_do_not_work_together() -> None:
    with receiving() as port:
        machines = [Machine(port, 0, of=2), Machine(port, 1, of=2, revision="b")]
        assert machines[0].waits()
        assert machines[0].said[-1] == "machine 0 waits: machine 1: another revision than machine 0"
        newer = Machine(port, 0, of=2, revision="b")
        assert newer.came()[1] == machines[1].came()[1]
        machines[0].asked.set()
        assert machines[0].came() is None


def test_a_store_that_is_not_whole_is_refused_to_all() -> None:
    used = Part(NEEDS, "x", 2, [0], [[0, 2, 1]], [[0, 0, 5]], [])
    with receiving() as port:
        machines = [Machine(port, 0, of=2, has=used), Machine(port, 1, of=2)]
        for each in machines:
            assert "machine 1: expected its part of the recovery store of machine 0, got none" in str(each.came())


def test_what_is_no_machine_is_not_heard() -> None:
    with receiving() as port:
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b"\xff\n"):
            with socket.create_connection(("127.0.0.1", port)) as other:
                other.sendall(words)
                with other.makefile("rb") as said:
                    assert b"cannot read what it says" in said.read()
        machine = Machine(port, 0, of=2)
        assert machine.waits()
        assert Machine(port, 1, of=2).came()[1] == machine.came()[1]


def test_what_is_said_right_after_a_beginning_is_heard() -> None:
    ours, theirs = socket.socketpair()
    link = Link(ours)
    theirs.sendall(b'["begin", {}]\n["gone", "no bread"]\n["be')
    theirs.sendall(b'gin", 1]\n')
    theirs.close()
    assert [link.next() for _ in range(5)] == [
        ("begin", {}), (GONE, "no bread"), ("begin", 1), (CLOSED, "machine 0, where all meet, is gone"), None
    ]  # fmt: skip
    link.close()


class Scene:
    """Machines of a job, their processes, and what its decisions are counted by."""

    def __init__(self, stand: Stand, found: Counted, home: Path, machines: int) -> None:
        self.stand, self.found, self.home, self.machines = stand, found, home, machines
        self.port = free_port()
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, number: int, *options: str, revision: str = "") -> None:
        settings = self.stand.base.model_copy(
            update={
                "home": self.home / str(number),
                "registry": self.stand.base.registry_uri,
                "machines": self.machines,
                "machine": number,
                "meeting": f"127.0.0.2:{self.port}",
                "cluster_host": f"127.0.0.{number + 2}",
                "revision": revision,
            }
        )
        with self.log(number).open("ab") as log:
            self.processes[number] = subprocess.Popen(
                [sys.executable, "-m", "ops", "run", f"{self.stand.file}:job", "--restart", *options],
                env=os.environ | as_environment(settings) | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def log(self, number: int) -> Path:
        return self.home / f"{number}.log"

    def said(self, number: int) -> str:
        return self.log(number).read_text() if self.log(number).exists() else ""

    def until(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 120
        while not true():
            told = "\n".join(f"machine {number}:\n{self.said(number)[-1500:]}" for number in range(3))
            assert time.monotonic() < deadline, f"{what}: {told}"
            time.sleep(0.1)

    def decides(self) -> None:
        sent = self.found.stream.sent
        self.until(lambda: self.found.decided > sent, "it decides no more")

    def worker(self, number: int) -> psutil.Process:
        """The worker of a machine, which `headrace run --restart` has forked."""
        job = psutil.Process(self.processes[number].pid)
        return next(each for each in job.children() if each.cmdline() == job.cmdline())

    def leave(self, number: int) -> int:
        self.processes[number].send_signal(signal.SIGTERM)
        return self.processes[number].wait(60)


@pytest.fixture
def scene(apache_kafka: Broker, tmp_path: Path, name: Callable[[str], str]) -> Iterator[Scene]:
    served = Served("apache", apache_kafka.address, None)
    stand = Stand.made(served, tmp_path, name("machines"), "", {"delivery": "exactly_once"})
    topics(served, stand)
    stream = Stream(stand.load.name, 500.0)
    with counted(served.address, stream) as found:
        made = Scene(stand, found, tmp_path, 3)
        try:
            yield made
        finally:
            end(list(made.processes.values()), 0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_machines_decide_every_event_once_whatever_becomes_of_them(scene: Scene) -> None:
    stream, found = scene.found.stream, scene.found
    with streaming(scene.stand.served.address, stream):
        for number in range(3):
            scene.start(number)
        scene.decides()

        scene.worker(1).kill()
        scene.decides()
        assert "machine 1: worker 1 of 3 was killed by SIGKILL; started again" in scene.said(0)

        scene.processes[0].kill()
        scene.processes[0].wait()
        scene.until(lambda: "is gone; started again" in scene.said(2), "nobody notices")
        scene.start(0)
        scene.decides()

        assert scene.leave(2) == 0
        scene.start(2)
        scene.decides()

        assert [scene.leave(number) for number in range(3)] == [0, 0, 0]
        shutil.rmtree(scene.home / "2")
        for number in range(3):
            scene.start(number)
        for number in range(3):
            assert scene.processes[number].wait(60) == 1
            assert "machine 2: expected its part of the recovery store of machine 0, got none" in scene.said(number)

        scene.machines = 2
        for number in range(2):
            scene.start(number, "--rebuild")
        scene.decides()
    scene.until(lambda: found.decided == stream.sent, f"{found.decided} of {stream.sent} are decided")
    assert [scene.leave(number) for number in range(2)] == [0, 0]
    time.sleep(1)
    assert (found.decided, found.repeats, found.wrong) == (stream.sent, 0, 0)
