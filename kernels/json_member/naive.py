"""One object at a time: the definition, and what sets the member where the kernel does not find it at the end."""

import json
import re
from collections.abc import Sequence

SPACES = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()


def with_member(message: bytes, name: str, numbers: Sequence[str]) -> bytes:
    """A JSON object with `name` set to the string of the numbers, each followed by a comma.

    The value of the last member of that name is replaced; where there is none the member is added at the end. Everything else
    keeps its bytes. Raises ValueError for what is no JSON object.
    """
    text = message.decode()
    value = f'"{"".join(f"{number}," for number in numbers)}"'
    start = _after(text, 0)
    if text[start : start + 1] != "{":
        raise ValueError(f"expected a JSON object, got {text[:80]!r}")
    p = _after(text, start + 1)
    found: tuple[int, int] | None = None
    last = p
    while text[p] != "}":
        key, p = DECODER.raw_decode(text, p)
        p = _after(text, _after(text, p) + 1)
        _, last = DECODER.raw_decode(text, p)
        found = (p, last) if key == name else found
        p = _after(text, last)
        p = _after(text, p + 1) if text[p] == "," else p
    if found is None:
        comma = "," if last > _after(text, start + 1) else ""
        return f"{text[:last]}{comma}{json.dumps(name, ensure_ascii=False)}:{value}{text[last:]}".encode()
    return f"{text[: found[0]]}{value}{text[found[1] :]}".encode()


def _after(text: str, p: int) -> int:
    """The place after the white space at p."""
    match = SPACES.match(text, p)
    return match.end() if match else p
