"""Files that others read while they are written."""

import os
import threading
from pathlib import Path


def write_whole(file: Path, content: bytes | str) -> None:
    """Writes a file, in a folder that is there, whole or not at all, whoever else reads or writes it and whenever it is killed.
    Raises OSError."""
    part = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)
