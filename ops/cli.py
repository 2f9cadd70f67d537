"""headrace demo | init | try | train | run | deploy | topics | contract | backfill | inspect | skew, and the groups models |
record | secret | state | dead."""

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ops.cli_dead import dead
from ops.cli_deploy import deploy, stop_pods
from ops.cli_inspect import inspect
from ops.cli_models import models
from ops.cli_state import state
from ops.errors import PREFIX, USAGE, hush, report
from ops.logs import speak

if TYPE_CHECKING:
    from streams.settings import JobSettings

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="Real-time decisions from event streams.")

record = typer.Typer(rich_markup_mode=None, help="The record of decisions.")
app.add_typer(record, name="record")
secret = typer.Typer(rich_markup_mode=None, help="The keys of secret fields, and what they hash and seal.")
app.add_typer(secret, name="secret")
app.add_typer(models, name="models")
app.add_typer(state, name="state")
app.add_typer(dead, name="dead")
app.command()(inspect)
app.command()(deploy)
app.command("stop-pods", hidden=True)(stop_pods)

INTERRUPTED = 130
WRONG_USE = cast(type[Exception], typer.BadParameter.__base__)  # click's UsageError, which typer may have a copy of its own of
Name = Annotated[str, typer.Argument(metavar="PIPELINE", help="PATH.py:NAME, PATH.py of a file with one pipeline, or flights")]
Brokers = Annotated[str | None, typer.Option(help="Kafka bootstrap servers  [default: 127.0.0.1:9092]", show_default=False)]
Home = Annotated[Path | None, typer.Option(help="where the job keeps what it keeps  [default: .headrace]", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]


def settings_of(**flags: Any) -> "JobSettings":
    """Settings from flags that were given, then the environment, then headrace.toml."""
    from tomllib import TOMLDecodeError

    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from streams.settings import JobSettings

    try:
        return JobSettings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if not name:  # of several settings together: what it got is all of them, secrets too
            raise WrongUseError(first["msg"]) from None
        if first["type"] == "extra_forbidden":
            known = ", ".join(JobSettings.model_fields)
            raise WrongUseError(f"headrace.toml: no setting {name}, expected one of {known}") from None
        raise WrongUseError(f"setting {name}: {first['msg']}, got {first['input']!r}") from None
    except TOMLDecodeError as error:
        raise WrongUseError(f"headrace.toml: {error}") from None
    except SettingsError as error:
        raise WrongUseError(f"{error}: expected JSON") from None


def pipeline_of(name: str) -> Any:
    """The pipeline of that name, or a usage error that says what to name."""
    from streams.pipeline import PipelineNotFoundError, load

    try:
        return load(name)
    except PipelineNotFoundError as error:
        raise WrongUseError(str(error)) from None
    except Exception as error:
        raise BrokenPipelineError(f"{name} cannot be loaded: {type(error).__name__}: {error}") from error


def expect_file(option: str, path: Path) -> None:
    """Raises WrongUseError where no file can be written."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise WrongUseError(f"{option} {path}: expected a file in a folder that exists")


class BrokenPipelineError(RuntimeError):
    """The file of a pipeline raised when it was imported."""


class WrongUseError(ValueError):
    """The command line or a setting is wrong; the message says what was expected."""


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends what has not begun to work: the first process of a container is not ended by it otherwise."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command()
def run(
    pipeline: Name,
    brokers: Brokers = None,
    workers: Annotated[int | None, typer.Option(help="processes  [default: 1]", show_default=False)] = None,
    epoch: Annotated[float | None, typer.Option(help="seconds between snapshots  [default: 0.25]", show_default=False)] = None,
    order: Annotated[str | None, typer.Option(help="arrival or event  [default: the topic's]", show_default=False)] = None,
    home: Home = None,
    metrics_port: Annotated[int | None, typer.Option(help="worker k serves on port + k; 0: none", show_default=False)] = None,
    page: Annotated[int | None, typer.Option(metavar="PORT", help="of a live page, on 127.0.0.1", show_default=False)] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="make the state anew from the topic, go on where it was")] = False,
    begin: Annotated[
        str | None,
        typer.Option("--from", help="where deciding begins without state: earliest, latest or TIME", show_default=False),
    ] = None,
    slack: Annotated[str, typer.Option(help="how far events may come out of order, for --rebuild and --from TIME")] = "1h",
    restart: Annotated[bool, typer.Option("--restart", help="start it again when it dies, and find what kills it")] = False,
) -> None:
    """Run a pipeline until SIGTERM or Ctrl-C, which let it drain and leave."""
    flags = {"brokers": brokers, "workers": workers, "epoch_seconds": epoch, "order": order, "home": home}
    settings = settings_of(**flags, metrics_port=metrics_port, page_port=page)
    speak(settings.log, pipeline)
    loaded = pipeline_of(pipeline)
    speak(settings.log, loaded.name)

    from ops.meeting import expect_meeting, meeting
    from ops.model_watch import watching
    from ops.page import paging
    from ops.probes import answering
    from ops.start import prepare
    from ops.topics import require

    if settings.machines > 1:
        try:
            expect_meeting(settings)
        except ValueError as error:
            raise WrongUseError(str(error)) from None
        if not restart:
            raise WrongUseError(f"setting machines {settings.machines}: expected --restart")

    def door() -> None:
        require(settings.brokers, loaded.topics(), settings.client, pipeline)
        prepare(loaded, settings, called=pipeline, rebuild=rebuild, begin=begin, slack=slack)

    beside = (answering(settings), meeting(settings), paging(loaded, settings), watching(pipeline, settings))
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # what is started here, in groups of its own, may write to the terminal
    with ended_by_sigterm(), ExitStack() as around:
        for each in beside:
            around.enter_context(each)
        if restart:
            from ops.restart import run_again

            raise typer.Exit(run_again(loaded, settings, door, pipeline, anew=begin is not None, rebuilt=rebuild))
        door()
        if settings.workers == 1:
            from ops.worker import work

            work(loaded, settings)
        else:
            from ops.workers import run_cluster

            run_cluster(pipeline, settings)


@app.command()
def train(
    pipeline: Name,
    until: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="train on events before this day, UTC  [default: as the pipeline says]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="the same seed gives the same model")] = 0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Train a pipeline's model on its history and record it as champion."""
    from ops.progress import bar
    from ops.train import train as train_pipeline

    loaded, settings = pipeline_of(pipeline), settings_of(home=home)
    end = until.replace(tzinfo=UTC) if until else loaded.model.trained_until
    with bar(quiet=as_json) as progress:
        trained = train_pipeline(loaded, settings, seed=seed, until=end, progress=progress)
    version = trained.version
    if as_json:
        result = {"model": version.name, "version": version.version, "digest": version.digest, "metrics": trained.metrics}
        print(json.dumps(result | {"registry": settings.registry_uri}))
        return
    print(f"{version.name} version {version.version} is champion, digest {version.digest[:16]}")
    print("  " + ", ".join(f"{name} {value:.4g}" for name, value in trained.metrics.items()))
    print(f"  to look at it: mlflow ui --backend-store-uri {settings.registry_uri}")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="of the project, which is named as it")],
    as_json: Json = False,
) -> None:
    """Make a project of your own: a pipeline, its training, a Feast repo, sample events and a test, which run at once."""
    from ops.project import CannotInitError, make

    try:
        files = make(folder)
    except CannotInitError as error:
        raise WrongUseError(str(error)) from None
    if as_json:
        print(json.dumps({"folder": str(folder), "files": files}))
        return
    print(f"made {folder}: {', '.join(files)}")
    print(f"try it:  cd {shlex.quote(str(folder))} && headrace try pipeline.py")


@app.command("try")
def try_it(
    pipeline: Name,
    seed: Annotated[int, typer.Option(help="of the training, if there is no model yet")] = 0,
    out: Annotated[Path | None, typer.Option(help="write the decisions to this file, one a line", show_default=False)] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Decide a pipeline's own history with an embedded broker: trains the model if there is none, says what was decided."""
    from ops.progress import bar
    from ops.trial import trial
    from ops.tried import counted, tell

    if out is not None:
        expect_file("--out", out)
    loaded, settings = pipeline_of(pipeline), settings_of(home=home)
    with bar(quiet=as_json) as progress:
        tried = trial(loaded, settings, seed=seed, progress=progress)
    if out is not None:
        out.write_text("".join(json.dumps(decision) + "\n" for decision in tried.decisions))
    print(json.dumps(counted(tried)) if as_json else tell(tried, loaded, pipeline))


@app.command()
def backfill(
    pipeline: Name,
    out: Annotated[Path, typer.Option(help="the Parquet file that is written")],
    events: Annotated[
        Path | None,
        typer.Option(help="Parquet with the schema's columns  [default: the pipeline's history]", show_default=False),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write the training frame of past events: every feature as it was, computed by the code that serves, and the label."""
    from ops.backfill import backfill as write
    from ops.progress import bar

    expect_file("--out", out)
    loaded, settings = pipeline_of(pipeline), settings_of(home=home)
    with bar(quiet=as_json) as progress:
        rows = write(loaded, settings, events, out, progress)
    if as_json:
        print(json.dumps({"out": str(out), "rows": rows.num_rows, "columns": rows.column_names}))
        return
    print(f"{out}: {rows.num_rows:,} rows of {', '.join(rows.column_names)}")


@app.command()
def skew(
    records: Annotated[Path, typer.Argument(metavar="RECORDS", help="the folder of a record")],
    events: Annotated[str, typer.Option(help="a Parquet file of events, topic (from its start), or history (the model's)")],
    pipeline: Annotated[
        str | None, typer.Option(help="PATH.py:NAME  [default: the pipeline's name in the record]", show_default=False)
    ] = None,
    start: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="leave out events before this day, UTC", show_default=False)
    ] = None,
    tolerance: Annotated[float, typer.Option(help="numbers agree within this times max(1, |value|)")] = 1e-5,
    brokers: Brokers = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Compute served features again and compare; exit code 1 if any value mismatches, is missing, or extra."""
    from ops.skew import events_of, lines
    from ops.skew import skew as compare
    from sinks.records import told_by

    settings = settings_of(brokers=brokers, home=home)
    loaded = pipeline_of(pipeline or told_by(records).pipeline)
    made = events_of(loaded, settings, events, start.replace(tzinfo=UTC) if start else None)
    report = compare(records, loaded, settings, made, tolerance=tolerance)
    print(json.dumps(report.as_dict()) if as_json else "\n".join(lines(report)))
    if report.skewed:
        raise typer.Exit(1)


@record.command()
def verify(
    records: Annotated[Path, typer.Argument(metavar="RECORDS", help="the folder of a record, or of one of its workers")],
    first: Annotated[int, typer.Option(min=1, help="the first file that must be there: those before it were deleted")] = 1,
    as_json: Json = False,
) -> None:
    """Check every file against the hash that the next one holds; exit code 1 if a chain breaks, and where it does."""
    from dataclasses import asdict

    from sinks.segments import chains, check

    checked = [check(chain, first) for chain in chains(records)]
    if as_json:
        print(json.dumps([asdict(one) for one in checked]))
    else:
        for one in checked:
            waiting = f", {one.unsealed:,} rows not sealed yet" if one.unsealed else ""
            print(f"{one.chain}: {one.files} files, {one.rows:,} rows{waiting}, {'BROKEN' if one.breaks else 'whole'}")
            print(*(f"  {line}" for line in one.breaks or [f"head {one.head or 'none'}"]), sep="\n")
    if any(one.breaks for one in checked):
        raise typer.Exit(1)


@secret.command()
def key(file: Annotated[Path, typer.Argument(metavar="FILE", help="that is written, for its owner's eyes only")]) -> None:
    """Make a random key of 32 bytes, for secret_key or dead_letter_key."""
    from ops.secret import make_key

    make_key(file)
    print(f"made {file}: HEADRACE_SECRET_KEY=file:{file.absolute()} (or HEADRACE_DEAD_LETTER_KEY) uses it")


@secret.command("hash")
def hash_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Parquet or CSV (.csv)")],
    columns: Annotated[list[str], typer.Option("--column", help="to hash; may be given several times")],
    out: Annotated[Path, typer.Option(help="the file that is written, of the same kind")],
) -> None:
    """Hash columns of a file with the key of the settings, as a decoder does: the entity keys of stored features, say."""
    from ops.secret import hash_columns

    expect_file("--out", out)
    rows = hash_columns(file, columns, out, settings_of())
    print(f"{out}: {rows:,} rows, {', '.join(columns)} hashed")


@secret.command("open")
def open_letters() -> None:
    """Decrypt dead letters, JSON lines from stdin, with the dead_letter_key of the settings; to stdout."""
    from ops.secret import open_letter

    settings = settings_of()
    for line in sys.stdin:
        print(json.dumps(open_letter(json.loads(line), settings)))


@app.command()
def topics(
    pipeline: Name,
    brokers: Brokers = None,
    create: Annotated[bool, typer.Option("--create", help="make those that are missing")] = False,
    partitions: Annotated[int, typer.Option(min=1, max=840, help="of topics that are made")] = 1,
    as_json: Json = False,
) -> None:
    """List a pipeline's topics with their partitions and messages; make them with --create."""
    from ops.topics import counts
    from ops.topics import create as create_topics

    loaded, settings = pipeline_of(pipeline), settings_of(brokers=brokers)
    made = create_topics(settings.brokers, loaded.topics(), partitions, settings.client) if create else []
    found = counts(settings.brokers, loaded.topics(), settings.client)
    if as_json:
        print(json.dumps({"made": made, "messages": found}))
        return
    for name, partition_counts in found.items():
        if partition_counts is None:
            print(f"{name}: missing (make it with --create)")
        else:
            note = " (made)" if name in made else ""
            plural = "" if len(partition_counts) == 1 else "s"
            print(f"{name}: {len(partition_counts)} partition{plural}, {sum(partition_counts):,} messages{note}")


@app.command()
def contract(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="the AsyncAPI document that others read and write by")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="the one that is to come")],
    as_json: Json = False,
) -> None:
    """Compare two AsyncAPI documents; exit code 1 if a change breaks a consumer or a producer, and which."""
    from dataclasses import asdict

    from ops.contract import breaks, load

    found = breaks(load(old), load(new))
    if as_json:
        print(json.dumps([asdict(each) for each in found]))
    else:
        print("\n".join(map(str, found)) or "nothing breaks")
    if found:
        raise typer.Exit(1)


@app.command()
def demo(
    name: Annotated[
        str, typer.Argument(metavar="[flights|payments]", help="the demo, or an example of docs/examples")
    ] = "flights",
    all_year: Annotated[bool, typer.Option("--all", help="the whole year, not October to December")] = False,
    partitions: Annotated[int, typer.Option(min=1, max=64, help="of the topic of events")] = 1,
    workers: Annotated[int, typer.Option(min=1, max=16, help="processes; several need --brokers")] = 1,
    speed: Annotated[float | None, typer.Option(help="seconds of event time a second; as fast as it goes if not given")] = None,
    order: Annotated[str | None, typer.Option(help="arrival or event", show_default=False)] = None,
    brokers: Annotated[
        str | None, typer.Option(help="a broker of yours, instead of the embedded one", show_default=False)
    ] = None,
    home: Home = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the results to this file, too")] = None,
) -> None:
    """Decide a year of real flights, or made-up card payments: trains the model if there is none, replays, decides, sums up."""
    from ops.demo import DemoOptions
    from ops.demo import demo as run_demo
    from ops.examples import names, run_example

    if json_file is not None:
        expect_file("--json", json_file)
    settings = settings_of(home=home, workers=workers, order=order)
    if name in names():
        if all_year or partitions != 1 or workers != 1 or speed or brokers:
            raise WrongUseError(f"demo {name}: expected no flags but --home, --order and --json")
        return run_example(name, settings, json_file)
    if name != "flights":
        raise WrongUseError(f"no demo {name}: expected flights or {' or '.join(names())}")
    if settings.workers > 1 and not brokers:
        raise WrongUseError(
            f"demo with {settings.workers} workers: expected --brokers HOST:PORT, as the embedded broker may lose what several "
            "processes write to a partition at once"
        )
    run_demo(settings, DemoOptions(all_year, partitions, speed, brokers, json_file))


def main() -> None:
    """The command headrace."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Runs one command; returns 0, 1 for what failed, 2 for wrong use, each said in one line on stderr."""
    hush()
    try:
        code = app(arguments or ["--help"], prog_name="headrace", standalone_mode=False)
    except WrongUseError as error:
        return wrong_use(str(error))
    except WRONG_USE as error:
        return wrong_use(error.format_message())  # type: ignore[attr-defined]
    except typer.Exit as error:
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BaseException as error:  # noqa: BLE001 - Bytewax raises panics, which are BaseExceptions; people get one line
        return report(error)
    if code:
        return int(code)
    return 0 if arguments else USAGE


def wrong_use(message: str) -> int:
    """Says in one line what was expected; returns the exit code."""
    print(f"{PREFIX}{' '.join(message.split())} (headrace --help)", file=sys.stderr)
    return USAGE
