"""headrace deploy: a pipeline's release on Kubernetes, rendered or installed."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ops.cli_state import Name


def deploy(
    pipeline: Name,
    image: Annotated[str, typer.Option(help="NAME:TAG or NAME@sha256:..., which holds the pipeline's file")],
    release: Annotated[str | None, typer.Option(help="[default: the pipeline's name]", show_default=False)] = None,
    namespace: Annotated[str, typer.Option(help="of the cluster that kubectl talks to")] = "default",
    values: Annotated[list[Path] | None, typer.Option(help="further values of the chart; may be given several times")] = None,
    install: Annotated[bool, typer.Option("--install", help="install or upgrade it, and wait until it is ready")] = False,
    show_values: Annotated[bool, typer.Option("--show-values", help="print only the values made from the settings")] = False,
    minutes: Annotated[float, typer.Option(help="for --install: how long it may take to be ready", min=1)] = 35,
) -> None:
    """Print what a pipeline is on Kubernetes, with the settings that it has here, or install it; needs Helm 3."""
    from ops.cli import pipeline_of, settings_of
    from ops.deploy.release import helm, values_of

    loaded, settings = pipeline_of(pipeline), settings_of()
    made = values_of(pipeline, loaded, settings, image)
    if show_values:
        print(json.dumps(made, indent=2))
        return
    code = helm(release or loaded.name, namespace, made, values or [], install=install, minutes=minutes)
    raise typer.Exit(code)


def stop_pods(
    name: Annotated[str, typer.Argument(metavar="STATEFULSET")],
    seconds: Annotated[float, typer.Option(help="until they have to be gone")] = 120,
    account: Annotated[Path | None, typer.Option(help="folder of token, ca.crt and namespace", show_default=False)] = None,
) -> None:
    """Scale a release to nothing and wait until its pods are gone; run by the chart, in the cluster, before an upgrade."""
    from ops.deploy.stop import ACCOUNT, stop

    there = stop(name, seconds, account or ACCOUNT)
    print(f"{name}: {'its pods are gone' if there else 'there is none'}")
