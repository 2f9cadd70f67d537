"""Where the machines of a job meet before each start: a process beside that of machine 0.

A machine connects and says what it has of the recovery store. When all are there, of one revision, each is told what to do
(streams/machines.py) and where the workers of all are; then they start. The connection stays for as long as the job lives: when
one is gone the others are told and kill their workers at once, and all meet again. One that is asked to leave says so, and all
drain, since no worker can end before all have. Messages are lines of JSON, [WHAT, WORDS OR MORE].
"""

import argparse
import asyncio
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ops.beside import beside, until_parent_ends
from ops.server import at
from streams.machines import Part, Plan, agreed
from streams.store import RecoveryError

if TYPE_CHECKING:
    from streams.settings import JobSettings

BEGIN, REFUSED, WAITS, LEAVE, GONE, BYE, CLOSED = "begin", "refused", "waits", "leave", "gone", "bye", "closed"
LINE_BYTES = 4_000_000
AGAIN_SECONDS, LOOK_SECONDS = 0.2, 0.1
ALIVE = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 5000}
"""By which the system notices within five seconds that a machine is gone which could not say so."""


@dataclass(frozen=True)
class Hello:
    """What a machine says of itself: its number of how many, its workers' addresses, its revision, which pipeline and what its
    state depends on, and its part of the store."""

    machine: int
    of: int
    addresses: Sequence[str]
    revision: str
    needs: Mapping[str, Any]
    part: Mapping[str, Any]

    def differs(self, other: "Hello") -> str:
        """In what the two cannot work together."""
        mine, others = (
            {"machines": each.of, "workers": len(each.addresses), "revision": each.revision, "pipeline": each.needs}
            for each in (self, other)
        )
        return ", ".join(name for name in mine if mine[name] != others[name])


@dataclass(eq=False)
class Guest:
    """A machine that is connected."""

    hello: Hello
    writer: asyncio.StreamWriter
    left: bool = False

    def tell(self, what: str, more: Any = "") -> None:
        """Says something, if it is still there."""
        tell(self.writer, what, more)


def tell(writer: asyncio.StreamWriter, what: str, more: Any) -> None:
    """Says something to who is connected."""
    with suppress(OSError):
        writer.write(json.dumps([what, more]).encode() + b"\n")


class Meeting:
    """The machines that are there. While a life of the job lasts, those who come wait for its end."""

    def __init__(self) -> None:
        self._guests: dict[int, Guest] = {}
        self._next: dict[int, Guest] = {}
        self._begun = False

    async def receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Listens to a machine until it is gone."""
        guest = None
        try:
            keep_alive(writer.get_extra_info("socket"))
            hello = Hello(**json.loads(await reader.readline()))
            guest = Guest(hello, writer)
            self._came(guest)
            while line := await reader.readline():
                self._heard(guest, *json.loads(line))
        except (OSError, ValueError, TypeError) as error:
            if guest is None:
                tell(writer, WAITS, f"machine 0, of another version, cannot read what it says: {error}")
        finally:
            if guest is not None:
                self._went(guest)
            writer.close()

    def _came(self, guest: Guest) -> None:
        there = self._next if self._begun else self._guests
        if before := there.get(guest.hello.machine):
            before.writer.close()
        there[guest.hello.machine] = guest
        self._begin()

    def _heard(self, guest: Guest, what: str, words: Any) -> None:
        if self._guests.get(guest.hello.machine) is not guest or not self._begun:
            return
        if what == LEAVE:
            for each in self._guests.values():
                each.tell(LEAVE, words)
        guest.left = guest.left or what == BYE
        if what == GONE and not guest.left:
            self._end(guest, words)

    def _went(self, guest: Guest) -> None:
        number = guest.hello.machine
        for there in (self._guests, self._next):
            if there.get(number) is guest:
                del there[number]
                if there is self._guests and self._begun and not guest.left:
                    self._end(guest, "it is gone")
        if self._begun and not self._guests:
            self._guests, self._next, self._begun = self._next, {}, False
            self._begin()

    def _end(self, guest: Guest, words: str) -> None:
        """A life of the job ends by a machine's: the others are told, and let go."""
        for each in self._guests.values():
            if each is not guest:
                each.tell(GONE, f"machine {guest.hello.machine}: {words}")
            each.left = True

    def _begin(self) -> None:
        """Begins a life if all are there that are needed."""
        guests = [self._guests[number] for number in sorted(self._guests)]
        if self._begun or not guests or len(guests) < guests[0].hello.of:
            return
        others = [
            f"machine {each.hello.machine}: another {told}" for each in guests if (told := each.hello.differs(guests[0].hello))
        ]
        if others:
            for each in guests:
                each.tell(WAITS, f"{'; '.join(others)} than machine 0")
            return
        try:
            plan = agreed([Part(**each.hello.part) for each in guests], uuid.uuid4().hex)
        except RecoveryError as error:
            for each in guests:
                each.tell(REFUSED, str(error))
            return
        addresses = [address for each in guests for address in each.hello.addresses]
        self._begun = True
        for each in guests:
            each.tell(BEGIN, {"plan": asdict(plan), "addresses": addresses})


class MeetingGoneError(RuntimeError):
    """The process of machine 0 that receives machines has ended."""


class Link:
    """A machine's own end of a life's connection, read without waiting."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket, self._read, self._open = opened, b"", True
        self._unheard = deque[tuple[str, Any]]()
        opened.setblocking(False)

    def say(self, what: str, words: str = "") -> None:
        """Says something; if nobody hears it, that is found when reading."""
        with suppress(OSError):
            self._socket.sendall(json.dumps([what, words]).encode() + b"\n")

    def next(self) -> tuple[str, Any] | None:
        """What was said next, if anything was; at the end CLOSED, once."""
        if not self._unheard and self._open:
            self._receive()
        return self._unheard.popleft() if self._unheard else None

    def _receive(self) -> None:
        words = "machine 0, where all meet, is gone"
        try:
            data = self._socket.recv(65_536)
            *lines, self._read = (self._read + data).split(b"\n")
            self._unheard.extend((str(what), more) for what, more in map(json.loads, lines))
        except BlockingIOError:
            return
        except (ValueError, TypeError) as error:
            data, words = b"", f"something else than machine 0 answers where all meet: {error}"
        except OSError:
            data = b""
        if not data:
            self._open = False
            self._unheard.append((CLOSED, words))

    def close(self) -> None:
        """Lets go, which ends the life of all, unless BYE was said."""
        self._socket.close()


def join(
    settings: "JobSettings", hello: Hello, asked: threading.Event, tell: Callable[[str], None]
) -> tuple[Link, Plan, list[str]] | None:
    """Meets the others; how a life begins, or None if this process is asked to leave. tell: what it waits for, in words.

    Raises RecoveryError if they have no whole store together, and MeetingGoneError on machine 0 if nobody receives them there.
    """
    host, _, port = settings.meeting.rpartition(":")
    told = ""
    tell(f"machine {hello.machine} of {hello.of} waits for the others at {settings.meeting}")
    while not asked.is_set():
        try:
            opened = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
        except OSError as error:  # not there yet, or has no name yet
            if hello.machine == 0 and isinstance(error, ConnectionRefusedError):
                raise MeetingGoneError(f"the process that receives machines at {settings.meeting} has ended") from None
            asked.wait(AGAIN_SECONDS)
            continue
        keep_alive(opened)
        with suppress(OSError):
            opened.sendall(json.dumps(asdict(hello)).encode() + b"\n")
        link = Link(opened)
        for what, more in until_begun(link, asked):
            if what == BEGIN:
                return link, Plan(**more["plan"]), list(more["addresses"])
            if what == REFUSED:
                link.close()
                raise RecoveryError(more)
            if what == WAITS and more != told:
                told = more
                tell(f"machine {hello.machine} waits: {more}")
        link.close()
        asked.wait(AGAIN_SECONDS)
    return None


def until_begun(link: Link, asked: threading.Event) -> Iterator[tuple[str, Any]]:
    """What is said, until the other end is gone or this process is asked to leave."""
    while not asked.is_set():
        while (said := link.next()) is not None:
            if said[0] in (GONE, CLOSED):
                return
            yield said
        time.sleep(LOOK_SECONDS)


def keep_alive(opened: socket.socket) -> None:
    """Has the system look whether the other end is there."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in ALIVE.items():
        if hasattr(socket, name):
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def expect_meeting(settings: "JobSettings") -> None:
    """Raises ValueError for settings that a job on several machines cannot have."""
    host, _, port = settings.meeting.rpartition(":")
    expected = {
        "recovery on": settings.recovery,
        "meeting as HOST:PORT of machine 0": host and port.isdigit() and 0 < int(port) < 65_536 - settings.workers,
        "cluster_host, the address that the others have for this one": "cluster_host" in settings.model_fields_set,
        "recovery_partitions unset: each has one": not settings.recovery_partitions,
    }
    for what, there in expected.items():
        if not there:
            raise ValueError(f"setting machines {settings.machines}: expected {what}")


def workers_of(settings: "JobSettings") -> list[str]:
    """The addresses of this machine's workers."""
    first = int(settings.meeting.rpartition(":")[2]) + 1
    return [at(settings.cluster_host, first + k) for k in range(settings.workers)]


@contextmanager
def meeting(settings: "JobSettings") -> Iterator[None]:
    """Has a process of machine 0 receive all while this lasts, where a job has several machines. Raises PortTakenError."""
    if settings.machines == 1 or settings.machine:
        yield
        return
    command = ["ops.meeting", settings.cluster_host, settings.meeting.rpartition(":")[2]]
    with beside(command, "machines cannot meet: the process that is to receive them has ended"):
        yield


async def received(host: str, port: int) -> None:
    """Receives machines until standard input ends."""
    server = await asyncio.start_server(Meeting().receive, host, port, limit=LINE_BYTES)
    print(flush=True)
    async with server:
        await asyncio.to_thread(until_parent_ends)
    os._exit(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """The process; an empty line says that it listens, else why it cannot. It ends when standard input does."""
    parser = argparse.ArgumentParser(prog="python -m ops.meeting")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    options = parser.parse_args(arguments)
    try:
        asyncio.run(received(options.host, options.port))
    except (OSError, OverflowError) as error:
        print(f"machines cannot meet at {at(options.host, options.port)}: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
