"""Secrets of the settings, which are never in the settings: those say where they are, `file:PATH` or `env:NAME`."""

import os
from collections.abc import Mapping
from pathlib import Path

FORMS = ("file:", "env:")
SECRET_OPTIONS = (
    "sasl.password", "ssl.key.password", "ssl.key.pem", "ssl.keystore.password", "sasl.oauthbearer.client.secret",
)  # fmt: skip


class SecretError(ValueError):
    """A secret that is needed is not there, or is none; the message names the setting, never a value."""


def looked_up(said: str, setting: str) -> str:
    """The secret that a setting says the place of, `file:PATH` or `env:NAME`, less the white space around it.

    Raises SecretError where the place is not said so, or has nothing.
    """
    form, _, place = said.partition(":")
    if form == "env" and place:
        found, what = os.environ.get(place, ""), f"the environment variable {place}"
    elif form == "file" and place:
        what = f"the file {place}"
        try:
            found = Path(place).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SecretError(f"setting {setting}: {what} cannot be read: {getattr(error, 'strerror', 'no text')}") from None
    else:
        raise SecretError(f"setting {setting}: expected file:PATH or env:NAME, got something else (not shown)")
    if not found.strip():
        raise SecretError(f"setting {setting}: {what} is empty or not set")
    return found.strip()


def client_options(said: Mapping[str, str]) -> dict[str, str]:
    """librdkafka's settings with what is secret looked up; other values may be `file:` or `env:`, too.

    Raises SecretError, for a secret in clear as well.
    """
    return {
        name: looked_up(value, f"kafka: {name}") if name in SECRET_OPTIONS or value.startswith(FORMS) else value
        for name, value in said.items()
    }
