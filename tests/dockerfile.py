"""As much of a Dockerfile's language as headrace's own files use. All else is refused by its line: nothing is passed over."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FLAGS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("ARG", "CMD", "ENTRYPOINT", "ENV", "FROM", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"), ()),
    "COPY": ("chown", "from"),
    "RUN": ("mount",),
}
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class CannotPlayError(ValueError):
    """A line that the player does not know, or that cannot be done; the message says which, and what was expected."""


@dataclass(frozen=True)
class Instruction:
    """line: of the file, where it begins. rest: what stands behind the flags."""

    line: int
    name: str
    flags: Mapping[str, str]
    rest: str

    def refused(self, expected: str) -> CannotPlayError:
        return CannotPlayError(f"line {self.line}: {self.name} {self.rest}: expected {expected}")


@dataclass(frozen=True)
class Stage:
    """name: what AS says, or else its number."""

    name: str
    base: str
    instructions: Sequence[Instruction]


def parse(text: str) -> list[Instruction]:
    """The instructions in order, each made one line. Raises CannotPlayError."""
    found: list[Instruction] = []
    begun, parts = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"#\s*(escape|syntax)\s*=", line):
            raise CannotPlayError(f"line {number}: expected no directive, got {line}")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        begun = begun or number
        parts.append(line.rstrip().removesuffix("\\"))
        if not line.rstrip().endswith("\\"):
            found.append(_instruction(begun, "".join(parts).strip()))
            begun, parts = 0, []
    if parts:
        raise CannotPlayError(f"line {begun}: expected more after the last backslash")
    return found


def _instruction(line: int, text: str) -> Instruction:
    name, _, rest = text.partition(" ")
    flags: dict[str, str] = {}
    while flag := re.match(r"--([a-z-]+)=(\S+)\s+", rest := rest.lstrip()):
        flags[flag[1]], rest = flag[2], rest[flag.end() :]
    made = Instruction(line, name.upper(), flags, rest)
    if made.name not in FLAGS:
        raise made.refused(f"one of {', '.join(FLAGS)}")
    if rest.startswith("--") or not set(flags) <= set(FLAGS[made.name]):
        raise made.refused(f"no flags but {', '.join(f'--{each}=' for each in FLAGS[made.name]) or 'none'}")
    if not flags.get("mount", "type=cache").startswith("type=cache"):
        raise made.refused("no mount but a cache")
    if not rest or "<<" in rest:
        raise made.refused("words, and all of them in its line")
    return made


def expand(each: Instruction, text: str, values: Mapping[str, str]) -> str:
    """The text with `$NAME` and `${NAME}` replaced. Raises CannotPlayError for one without a value, and for other forms."""
    if "$" in VARIABLE.sub("", text):
        raise each.refused("$NAME or ${NAME}")
    if unset := {a or b for a, b in VARIABLE.findall(text)} - set(values):
        raise each.refused(f"a value of {', '.join(sorted(unset))}")
    return VARIABLE.sub(lambda found: values[found[1] or found[2]], text)


def argument(each: Instruction, arguments: Mapping[str, str], values: Mapping[str, str]) -> tuple[str, str]:
    """The name of an ARG and its value: what was asked for, or else the default, which there has to be."""
    name, given, default = each.rest.partition("=")
    if not given:
        raise each.refused("a default")
    return name, arguments[name] if name in arguments else expand(each, "".join(shlex.split(default)), values)


def stages(text: str, arguments: Mapping[str, str]) -> list[Stage]:
    """The stages in order, with their bases by name. arguments: as --build-arg gives them, each of which the file has to have.

    Raises CannotPlayError.
    """
    instructions = parse(text)
    found: list[tuple[str, str, list[Instruction]]] = []
    values: dict[str, str] = {}
    for each in instructions:
        if each.name == "FROM":
            base, *named = expand(each, each.rest, values).split()
            if named and (len(named) != 2 or named[0].upper() != "AS"):
                raise each.refused("BASE or BASE AS NAME")
            found.append((named[1] if named else str(len(found)), base, []))
        elif found:
            found[-1][2].append(each)
        elif each.name == "ARG":
            name, values[name] = argument(each, arguments, values)
        else:
            raise each.refused("FROM before it")
    if not found:
        raise CannotPlayError("expected FROM, got nothing")
    if unknown := set(arguments) - {each.rest.partition("=")[0] for each in instructions if each.name == "ARG"}:
        raise CannotPlayError(f"expected ARG {', '.join(sorted(unknown))}, got none")
    return [Stage(*stage) for stage in found]


def listed(each: Instruction) -> tuple[str, ...]:
    """The words of a JSON list; none where it is not one."""
    try:
        found = json.loads(each.rest)
    except ValueError:
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()


def words(each: Instruction) -> tuple[str, ...]:
    """The words of a JSON list, which it has to be. Raises CannotPlayError."""
    if not (found := listed(each)):
        raise each.refused('a list, ["WORD", ...]')
    return found


def patterns(text: str) -> list[str]:
    """The patterns of a .dockerignore. Raises CannotPlayError."""
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    for each in found:
        if set(each) & set("[\\") or (each.startswith("!") and "/" in each.strip("!/")):
            raise CannotPlayError(f".dockerignore: {each}: expected *, **, ?, and ! only before names of the first level")
    return found


def ignored(among: Sequence[str], path: str) -> bool:
    """Whether a path is kept out: the last pattern that fits it, or a folder above it, says so."""
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    out = False
    for each in among:
        parts = re.split(r"(\*\*/|\*\*|\*|\?)", each.strip("!/"))
        if re.fullmatch("".join(meaning.get(part, re.escape(part)) for part in parts) + "(?:/.*)?", path):
            out = not each.startswith("!")
    return out
