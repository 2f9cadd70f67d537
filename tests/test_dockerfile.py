"""The language that Dockerfiles are played in, and what the images' own say: their variants, and what they are pinned to."""

import re
import tomllib
from pathlib import Path

import pytest
from dockerfile import CannotPlayError, ignored, parse, patterns, stages
from dockerfile_player import Image, contained, copy, send
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ops.deploy.release import CHART
from ops.project import CHECKOUT, TEMPLATE

FILE = CHART.parent / "Dockerfile"
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def test_an_instruction_is_one_line_without_what_is_only_for_people() -> None:
    text = "# made so\nFROM a AS b\nRUN one && \\\n    # and then\n\n    two\nrun --mount=type=cache,target=/c  three\n"
    assert [(each.line, each.name, each.rest) for each in parse(text)] == [
        (2, "FROM", "a AS b"),
        (3, "RUN", "one &&     two"),
        (7, "RUN", "three"),
    ]
    (copied,) = parse("COPY --from=b --chown=1:2 x y")
    assert (copied.flags, copied.rest) == ({"from": "b", "chown": "1:2"}, "x y")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FROM a\nADD x y", "line 2: ADD x y: expected one of ARG, "),
        ("FROM --platform=linux/arm64 a", "line 1: FROM a: expected no flags but none"),
        ("COPY --link x y", "expected no flags but --chown=, --from="),
        ("RUN --mount=type=secret,id=s x", "expected no mount but a cache"),
        ("RUN <<EOF\nx\nEOF", "line 1: RUN <<EOF: expected words, and all of them in its line"),
        ("USER", "expected words"),
        ("# escape=`\nFROM a", "line 1: expected no directive"),
        ("FROM a\nRUN x \\\n", r"line 2: expected more after the last backslash"),
        ("RUN x", "line 1: RUN x: expected FROM before it"),
        ("FROM a b", "expected BASE or BASE AS NAME"),
        ("FROM $A", "line 1: FROM .A: expected a value of A"),
        ("ARG A=b\nFROM ${A:-c}", r"expected \$NAME or \${NAME}"),
        ("ARG A\nFROM $A", "line 1: ARG A: expected a default"),
        ("", "expected FROM, got nothing"),
    ],
)
def test_what_is_not_known_is_refused_by_its_line(text: str, said: str) -> None:
    with pytest.raises(CannotPlayError, match=said):
        stages(text, {})


def test_stages_have_a_name_and_a_base() -> None:
    text = 'ARG A="a:1"\nFROM ${A} AS b\nARG C=d\nRUN x\nFROM b\nUSER 1:1\n'
    first, last = stages(text, {})
    assert (first.name, first.base, [each.name for each in first.instructions]) == ("b", "a:1", ["ARG", "RUN"])
    assert (last.name, last.base, [each.rest for each in last.instructions]) == ("1", "b", ["1:1"])
    assert stages(text, {"A": "mine"})[0].base == "mine"
    with pytest.raises(CannotPlayError, match="expected ARG E, got none"):
        stages(text, {"E": "f", "C": ""})


def test_a_context_is_what_its_dockerignore_leaves() -> None:
    among = patterns("# all but\n*\n!ops\n!a.toml\n**/__pycache__\nops/data/\n")
    kept = ["ops", "ops/a.py", "a.toml", "ops/database", "ops/deep/data"]
    out = ["docs", "docs/a.md", "b.toml", "ops/__pycache__", "ops/deep/__pycache__/a.pyc", "ops/data", "ops/data/a"]
    assert [path for path in [*kept, *out] if not ignored(among, path)] == kept
    assert not ignored(patterns(".headrace/"), "a.headrace")
    with pytest.raises(CannotPlayError, match=r".dockerignore: !a/b: expected"):
        patterns("*\n!a/b")


def test_files_go_into_folders_and_folders_into_themselves(tmp_path: Path) -> None:
    for path in ("a/one", "a/deep/two", "a/out/three", "four"):
        (tmp_path / "context" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "context" / path).write_text(path)
    (tmp_path / "context" / "a" / "link").symlink_to("one")
    (tmp_path / "context" / ".dockerignore").write_text("a/out\n")
    send(tmp_path / "context", tmp_path / "sent")
    image = Image(tmp_path / "root", {}, workdir="/project")
    for text in ("COPY a b", "COPY four /five", "COPY four a/one ./", "COPY four b"):
        (each,) = parse(text)
        copy(each, tmp_path / "sent", image, each.rest.split())
    found = {path.relative_to(image.root).as_posix() for path in image.root.rglob("*") if not path.is_dir()}
    assert found == {f"project/{path}" for path in ("b/one", "b/link", "b/deep/two", "b/four", "four", "one")} | {"five"}
    assert (image.root / "project" / "b" / "link").is_symlink()
    for text in ("COPY ../secret x", "COPY nowhere x", "COPY a* x", "COPY x", "COPY --chown=me a x"):
        (each,) = parse(text)
        with pytest.raises(CannotPlayError, match="expected"):
            copy(each, tmp_path / "sent", image, each.rest.split())


def test_a_volume_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CannotPlayError, match="VOLUME /kept: expected a folder for it"):
        contained(Image(tmp_path, {}, volumes=("/kept",)), ["x"], {}, {})


def test_the_image_is_made_in_two_stages_of_one_pinned_base_and_ends_as_nobody() -> None:
    build, last = stages(FILE.read_text(), {})
    assert build.base == last.base
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", last.base)
    said = {each.name: each.rest for each in last.instructions}
    assert (said["USER"], said["VOLUME"], said["ENTRYPOINT"]) == ("10001:10001", "/var/lib/headrace", '["headrace"]')


def test_the_variant_with_a_gpu_is_of_arguments_and_extras_that_there_are() -> None:
    told = dict(re.findall(r"--build-arg (\w+)=(\S+)", FILE.read_text()))
    assert stages(FILE.read_text(), told)
    assert {"gpu", "tensorrt"} < set(told["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])


def test_each_requirement_has_one_version_that_it_takes() -> None:
    lines = (CHART.parent / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines[1:])}
    extras = PROJECT["optional-dependencies"]
    more = [text for name in ("redis", "gpu", "tensorrt", "trace") for text in extras[name]]
    asked = [Requirement(text) for text in [*PROJECT["dependencies"], *more]]
    assert len(pins) == len(lines) - 1
    for each in asked:
        assert each.specifier.contains(pins[canonicalize_name(each.name)]), each


def test_a_project_is_the_image_and_one_copy() -> None:
    (stage,) = stages((TEMPLATE / "Dockerfile").read_text(), {})
    assert stage.base == f"headrace:{PROJECT['version']}"
    assert [(each.name, each.rest) for each in stage.instructions] == [("COPY", ". ."), ("CMD", '["run", "pipeline.py"]')]
