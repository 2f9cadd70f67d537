"""The command line: wrong use and what is missing get one line that says what to do; workers live and die together."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ops.broker import Broker, free_port
from ops.cli import run_command, settings_of
from ops.workers import as_environment
from streams.settings import JobSettings

JOB = """
import os, sys, time
from pathlib import Path
from payments import payments

def run(pipeline, settings, *, worker, stop, on_ready, **rest):
    on_ready()
    Path(settings.home, f"worker-{{worker}}").write_text(f"{{os.getpid()}} {{settings.epoch_seconds}}")
    while not stop.is_set():  # a signal that sets the event must not find its lock taken, as in wait()
        time.sleep(0.02)
        {during}
    Path(settings.home, f"worker-{{worker}}").write_text("left")

if {replaced} and getattr(sys.modules["__main__"].__spec__, "name", "") == "ops.worker":
    sys.modules["__main__"].run = run
job = payments()
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command runs from a folder that has nothing to do with the checkout, in an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("HEADRACE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def nowhere() -> str:
    return f"127.0.0.1:{free_port()}"


def one_line(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Runs a command in this process; returns its exit code and the one line on stderr."""
    code = run_command([*arguments])
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("headrace: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return code, err.removeprefix("headrace: ").rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["run"], "Missing argument"),
        (["run", "flights", "--bogus"], "No such option: --bogus"),
        (["run", "flights", "--workers", "many"], "--workers"),
        (["run", "flights", "--workers", "0"], "setting workers: Input should be greater than or equal to 1, got 0"),
        (["run", "flights", "--order", "random"], "setting order"),
        (["run", "nothing"], "no pipeline nothing: expected PATH.py:NAME of a file that exists, or flights"),
        (["run", "nothing.py:job"], "no pipeline nothing.py:job"),
        (["train", "flights", "--until", "soon"], "--until"),
        (["demo", "--json", "no/folder/out.json"], "--json no/folder/out.json: expected a file in a folder that exists"),
        (["demo", "--workers", "x"], "--workers"),
        (["demo", "--workers", "2"], "demo with 2 workers: expected --brokers HOST:PORT"),
        (["init", "My_Fraud"], "expected a name of small letters, digits and hyphens that begins with a letter"),
        (["init", f"{Path(__file__).parent}/my-fraud"], "expected a folder outside headrace's own checkout"),
        (["try", "flights", "--out", "no/folder/out.ndjson"], "--out no/folder/out.ndjson: expected a file in a folder that"),
        (["backfill", "flights"], "Missing option"),
        (["models", "register", "m"], "Missing option"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(capfd: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    code, line = one_line(capfd, *arguments)
    assert code == 2
    assert said in line
    assert line.endswith("(headrace --help)")


def test_without_a_command_it_says_which_there_are(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command([]) == 2
    assert run_command(["--help"]) == 0
    out = capfd.readouterr().out
    assert all(command in out for command in ("demo", "init", "try", "train", "run", "topics", "backfill", "models"))


@pytest.mark.parametrize("command", [["run", "flights"], ["topics", "flights"], ["run", "flights", "--workers", "2"]])
def test_no_broker_is_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str], nowhere: str
) -> None:
    monkeypatch.setattr("ops.topics.TIMEOUT", 1.0)
    code, line = one_line(capfd, *command, "--brokers", nowhere)
    assert code == 1
    assert line.startswith(f"no Kafka broker answers at {nowhere} ")
    assert line.endswith("start one, or name it with --brokers")


def payments_file(folder: Path, during: str = "pass", replaced: bool = True, topic: str | None = None) -> str:
    """The payments as PATH.py:NAME; `replaced` puts a loop that waits in the place of the dataflow."""
    text = JOB.format(during=during, replaced=replaced)
    if topic:
        text += f"from dataclasses import replace\njob = replace(job, events=replace(job.events, topic={topic!r}))\n"
    file = folder / "shop.py"
    file.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{text}")
    return f"{file}:job"


def test_missing_topics_are_named_with_the_command_that_makes_them(
    capfd: pytest.CaptureFixture[str], embedded_broker: Broker, name: Callable[[str], str], tmp_path: Path
) -> None:
    topic, at = name("pay"), embedded_broker.address
    job = payments_file(tmp_path, topic=topic)
    code, line = one_line(capfd, "run", job, "--brokers", at)
    assert code == 1
    make = f"headrace topics {job} --brokers {at} --create"
    assert line.startswith(f"the broker at {at} has no topic {topic}, ")
    assert line.endswith(f"{topic}.dead: make it with {make}")


def test_topics_are_made_listed_and_counted(
    capfd: pytest.CaptureFixture[str], embedded_broker: Broker, name: Callable[[str], str], tmp_path: Path
) -> None:
    topic, at = name("pay"), embedded_broker.address
    job = payments_file(tmp_path, topic=topic)
    assert run_command(["topics", job, "--brokers", at]) == 0
    assert f"{topic}: missing (make it with --create)\n" in capfd.readouterr().out
    assert run_command(["topics", job, "--brokers", at, "--create", "--partitions", "3", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert topic in answer["made"]
    assert answer["messages"][topic] == [0, 0, 0]
    assert run_command(["topics", job, "--brokers", at]) == 0
    assert f"{topic}: 3 partitions, 0 messages\n" in capfd.readouterr().out


@pytest.fixture
def topics(embedded_broker: Broker) -> str:
    """A broker with the topics of the payments."""
    from ops.topics import create

    create(embedded_broker.address, ["pay", "verdicts", "pay.dead"], 1, {})
    return embedded_broker.address


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_missing_model_is_one_line_that_says_how_to_make_it(tmp_path: Path, topics: str, workers: str) -> None:
    job = payments_file(tmp_path, replaced=False)
    done = command("run", job, "--brokers", topics, "--workers", workers, "--metrics-port", "0")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "model payments" in lines[0]
    assert "headrace train" in lines[0]
    assert (" of 2: " in lines[0]) == (workers == "2")


def test_what_a_pipelines_file_raises_is_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("job = 1 / 0\n")
    code, line = one_line(capfd, "run", "broken.py:job")
    assert code == 1
    assert line == "broken.py:job cannot be loaded: ZeroDivisionError: division by zero"
    (tmp_path / "other.py").write_text("job = 1\n")
    code, line = one_line(capfd, "run", "other.py:job")
    assert code == 2
    assert "no pipeline job in other.py: it has none" in line


def test_settings_come_from_flags_before_the_environment_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = settings_of()
    (tmp_path / "headrace.toml").write_text(
        'brokers = "file:1"\nworkers = 2\nepoch_seconds = 2.0\n[kafka]\n"linger.ms" = "3"\n'
    )
    monkeypatch.setenv("HEADRACE_BROKERS", "environment:1")
    monkeypatch.setenv("HEADRACE_WORKERS", "3")
    read = settings_of(brokers="flag:1", workers=None)
    assert (read.brokers, read.workers, read.epoch_seconds, read.kafka) == ("flag:1", 3, 2.0, {"linger.ms": "3"})
    assert read.home == defaults.home


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("workers = 0", "setting workers: Input should be greater than or equal to 1, got 0"),
        ("worker = 1", "headrace.toml: no setting worker, expected one of brokers, "),
        ("workers = = 1", "headrace.toml: Invalid value"),
    ],
)
def test_a_wrong_file_is_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path, file: str, said: str) -> None:
    (tmp_path / "headrace.toml").write_text(file)
    code, line = one_line(capfd, "run", "flights")
    assert code == 2
    assert said in line


def test_settings_survive_the_way_through_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = JobSettings(
        brokers="a:1,b:2",
        kafka={"linger.ms": "3"},
        home=tmp_path,
        workers=3,
        recovery=False,
        order="event",
        schema_registry_login="me:secret",
    )
    for key, value in as_environment(settings).items():
        monkeypatch.setenv(key, value)
    assert JobSettings() == settings


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    return subprocess.run(
        [sys.executable, "-m", "ops", *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment
    )


def test_interrupted_is_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ops.demo.demo", interrupted)
    assert run_command(["demo"]) == 130


def test_help_is_quick() -> None:
    started = time.monotonic()
    assert command("--help").returncode == 0
    assert time.monotonic() - started < 2
    imported = subprocess.run(
        [sys.executable, "-c", "import sys, ops.cli; print(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"bytewax", "mlflow", "feast", "torch", "pyarrow", "polars", "numba", "confluent_kafka"} & set(imported)


def test_debugging_shows_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text("job = 1 / 0\n")
    monkeypatch.setenv("HEADRACE_DEBUG", "1")
    assert run_command(["run", "broken.py:job"]) == 1
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("headrace: broken.py:job cannot be loaded")


@contextmanager
def cluster(job: str, brokers: str, workers: int, home: Path) -> Iterator[subprocess.Popen[str]]:
    """A job of several workers, from when all of them are ready."""
    arguments = ["run", job, "--brokers", brokers, "--workers", str(workers), "--home", str(home), "--epoch", "0.125"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ops", *arguments, "--metrics-port", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said_by(home: Path, number: int, process: subprocess.Popen[str] | None = None) -> str:
    """What worker `number` has written, as soon as it has."""
    file = home / f"worker-{number}"
    deadline = time.monotonic() + 30
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    return file.read_text()


def gone(pid: int, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_leave_all_workers_leave_cleanly(tmp_path: Path, topics: str, number: signal.Signals) -> None:
    with cluster(payments_file(tmp_path), topics, 3, tmp_path) as process:
        assert [said_by(tmp_path, k, process).split()[1] for k in range(3)] == ["0.125"] * 3
        process.send_signal(number)
        assert process.wait(20) == 0
        assert [said_by(tmp_path, k) for k in range(3)] == ["left"] * 3


def test_if_a_worker_fails_its_error_is_shown_and_the_others_end(tmp_path: Path, topics: str) -> None:
    during = "if worker == 1 and Path(settings.home, 'go').exists(): raise ValueError('no such thing as a free lunch')"
    with cluster(payments_file(tmp_path, during=during), topics, 3, tmp_path) as process:
        pids = [int(said_by(tmp_path, k, process).split()[0]) for k in range(3)]
        (tmp_path / "go").touch()
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert process.stderr.read() == "headrace: worker 1 of 3: no such thing as a free lunch\n"
        assert all(map(gone, pids))


@pytest.mark.slow
def test_who_fails_is_heard_and_not_who_has_lost_it_and_is_gone_before(tmp_path: Path, topics: str) -> None:
    words = "['no more bread', 'Send thread panic: Any', 'MergeQueue poisoned'][worker]"
    during = f"time.sleep(1 if worker == 0 else 0); raise RuntimeError({words})"
    with cluster(payments_file(tmp_path, during=during), topics, 3, tmp_path) as process:
        assert process.wait(40) == 1
        assert process.stderr is not None
        assert process.stderr.read() == "headrace: worker 0 of 3: no more bread\n"


@pytest.mark.slow
def test_if_a_worker_is_killed_that_is_said_and_the_others_end(tmp_path: Path, topics: str) -> None:
    with cluster(payments_file(tmp_path), topics, 2, tmp_path) as process:
        pids = [int(said_by(tmp_path, k, process).split()[0]) for k in range(2)]
        os.kill(pids[1], signal.SIGKILL)
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert process.stderr.read() == "headrace: worker 1 of 2 was killed by SIGKILL\n"
        assert all(map(gone, pids))


@pytest.mark.slow
def test_workers_do_not_outlive_the_process_that_started_them(tmp_path: Path, topics: str) -> None:
    with cluster(payments_file(tmp_path), topics, 2, tmp_path) as process:
        pids = [int(said_by(tmp_path, k, process).split()[0]) for k in range(2)]
        process.kill()
        process.wait()
        assert all(map(gone, pids))
