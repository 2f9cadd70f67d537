"""Plays a Dockerfile where no container engine is: a stage is a folder, and what is run in it is run by chroot, as root.

What is mounted is mounted in a namespace that ends with the command, so that nothing is left behind. Needs Linux.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from dockerfile import CannotPlayError, Instruction, Stage, argument, expand, ignored, listed, patterns, stages, words

LENT = "/media"
"""Where a RUN sees the folders that it is lent: every Debian has it, empty."""


@dataclass(frozen=True)
class Image:
    """A root, and how a container of it is started. volumes: paths that are to be written to."""

    root: Path
    environment: Mapping[str, str]
    user: str = "0:0"
    workdir: str = "/"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = "SIGTERM"


@dataclass(frozen=True)
class Lent:
    """What a RUN is lent of the machine to fetch packages as it does: of its environment, and folders, below LENT."""

    environment: Mapping[str, str] = field(default_factory=dict)
    folders: Sequence[Path] = ()


def send(context: Path, to: Path) -> None:
    """Copies the context, but for what its .dockerignore keeps out."""
    file = context / ".dockerignore"
    among = patterns(file.read_text()) if file.exists() else []

    def out(folder: str, names: list[str]) -> set[str]:
        below = Path(folder).relative_to(context)
        return {name for name in names if ignored(among, (below / name).as_posix())}

    shutil.copytree(context, to, symlinks=True, ignore=out)


def copy(each: Instruction, source: Path, image: Image, paths: Sequence[str]) -> None:
    """COPY: files go into a folder, or become it; of folders what is in them. All of it is root's, or that of --chown."""
    if len(paths) < 2 or paths[0].startswith("[") or set(each.rest) & set("*?"):
        raise each.refused("SOURCE ... TARGET by their names")
    *names, target = paths
    place = inside(image.root, PurePosixPath(image.workdir, target))
    into = len(names) > 1 or target == "." or target.endswith("/") or place.is_dir()
    user, _, group = each.flags.get("chown", "0:0").partition(":")
    if not (user.isdigit() and group.isdigit()):
        raise each.refused("--chown=UID:GID")
    for name in names:
        origin = inside(source, PurePosixPath(name))
        if ".." in PurePosixPath(name).parts or not origin.exists():
            raise each.refused(f"a file or folder {name}")
        folder = origin.is_dir()
        to = place / origin.name if into and not folder else place
        (to if folder else to.parent).mkdir(parents=True, exist_ok=True)
        begin = f"{origin}/." if folder else str(origin)
        subprocess.run(["cp", "--archive", "--no-preserve=ownership", "--reflink=auto", begin, str(to)], check=True)
        for path in [origin, *origin.rglob("*")] if "chown" in each.flags else ():
            os.chown(to / path.relative_to(origin), int(user), int(group), follow_symlinks=False)


def inside(root: Path, path: str | PurePosixPath) -> Path:
    """A path of an image, where it lies on the machine."""
    return root / str(path).lstrip("/")


def kernel(root: Path) -> list[list[str]]:
    """What every process expects of its kernel, mounted."""
    return [
        ["mount", "-t", "proc", "proc", f"{root}/proc"],
        *(["mount", "--rbind", at, f"{root}{at}"] for at in ("/dev", "/sys")),
    ]


def entered(image: Image, command: Sequence[str], mounts: Sequence[Sequence[str]], environment: Mapping[str, str]) -> list[str]:
    """The command that makes the mounts, and then becomes the image's command: in its root, as its user, in its folder."""
    script = "\n".join([*map(shlex.join, mounts), 'exec chroot "$@"'])
    variables = [f"{name}={value}" for name, value in environment.items()]
    within = ["env", "--ignore-environment", f"--chdir={image.workdir}", *variables, *command]
    return ["unshare", "--mount", "sh", "-euc", script, "sh", f"--userspec={image.user}", str(image.root), *within]


def contained(image: Image, command: Sequence[str], volumes: Mapping[str, Path], environment: Mapping[str, str]) -> list[str]:
    """The command that runs a command as in a container of the image: its root is read-only, /tmp its own, and folders of the
    machine are its volumes. It has the machine's network. Raises CannotPlayError for a volume without a folder."""
    root = image.root
    if unset := set(image.volumes) - set(volumes):
        raise CannotPlayError(f"VOLUME {', '.join(sorted(unset))}: expected a folder for it")
    for path in volumes:
        inside(root, path).mkdir(parents=True, exist_ok=True)
    mounts = [
        ["mount", "--bind", f"{root}", f"{root}"],
        ["mount", "-o", "remount,bind,ro", f"{root}"],
        *kernel(root),
        ["mount", "-t", "tmpfs", "tmpfs", f"{root}/tmp"],
        *(["mount", "--bind", f"{folder}", f"{inside(root, path)}"] for path, folder in volumes.items()),
    ]
    return entered(image, command, mounts, {**image.environment, **environment})


def run(each: Instruction, image: Image, values: Mapping[str, str], lent: Lent) -> None:
    """RUN. Raises CannotPlayError with the last that it said if it fails."""
    mounts = [*kernel(image.root), ["mount", "-t", "tmpfs", "tmpfs", f"{image.root}{LENT}"]]
    for folder in sorted(lent.folders):
        place = f"{image.root}{LENT}{folder}"
        mounts += [["mkdir", "-p", place], ["mount", "--bind", f"{folder}", place], ["mount", "-o", "remount,bind,ro", place]]
    command = listed(each) or ("/bin/sh", "-c", each.rest)
    environment = {**lent.environment, **values, **image.environment}
    done = subprocess.run(
        entered(image, command, mounts, environment), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CannotPlayError(f"line {each.line}: RUN {each.rest}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


def play(
    text: str,
    context: Path,
    folder: Path,
    bases: Mapping[str, Image],
    arguments: Mapping[str, str] | None = None,
    lent: Lent | None = None,
) -> Image:
    """What a Dockerfile makes of a context: its last stage, in a folder that holds all of them. Raises CannotPlayError.

    bases: what FROM may name beside the stages before it. arguments: as --build-arg gives them.
    """
    roots = {"": folder / "context"}
    made: dict[str, Image] = dict(bases)
    image = None
    send(context, roots[""])
    for stage in stages(text, arguments or {}):
        if stage.base not in made:
            raise CannotPlayError(f"FROM {stage.base}: expected one of {', '.join(made)}")
        roots[stage.name] = folder / f"stage-{stage.name}"
        subprocess.run(["cp", "--archive", "--reflink=auto", str(made[stage.base].root), str(roots[stage.name])], check=True)
        image = replace(made[stage.base], root=roots[stage.name])
        image = made[stage.name] = _played(stage, image, roots, arguments or {}, lent or Lent())
    assert image is not None
    return image


def _played(stage: Stage, image: Image, roots: Mapping[str, Path], arguments: Mapping[str, str], lent: Lent) -> Image:
    values: dict[str, str] = {}
    for each in stage.instructions:
        known = {**values, **image.environment}
        match each.name:
            case "ARG":
                name, values[name] = argument(each, arguments, known)
            case "ENV":
                pairs = [expand(each, word, known).partition("=") for word in shlex.split(each.rest)]
                if not all(equals for _, equals, _ in pairs):
                    raise each.refused("NAME=VALUE ...")
                image = replace(image, environment={**image.environment, **{name: value for name, _, value in pairs}})
            case "RUN":
                run(each, image, values, lent)
            case "COPY":
                if (source := each.flags.get("from", "")) not in roots:
                    raise each.refused(f"--from one of {', '.join(roots)}")
                copy(each, roots[source], image, shlex.split(expand(each, each.rest, known)))
            case "WORKDIR":
                image = replace(image, workdir=str(PurePosixPath(image.workdir, expand(each, each.rest, known))))
                inside(image.root, image.workdir).mkdir(parents=True, exist_ok=True)
            case "USER":
                image = replace(image, user=expand(each, each.rest, known))
            case "VOLUME":
                image = replace(image, volumes=(*image.volumes, *(listed(each) or each.rest.split())))
            case "STOPSIGNAL":
                image = replace(image, stop_signal=each.rest)
            case "ENTRYPOINT":
                image = replace(image, entrypoint=words(each))
            case "CMD":
                image = replace(image, command=words(each))
            case _:
                raise each.refused("one that is played")
    return image
