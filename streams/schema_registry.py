"""Writers' schemas from a schema registry (Confluent's, or one with its interface), by their ids."""

import base64
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import orjson

from kernels.avro.writer import SchemaError, Type, read_schema
from kernels.flat_json.naive import Fault

TRIES, TIMEOUT, PAUSE = 5, 5.0, 0.25
UNKNOWN_FOR = 10.0
MOST_UNKNOWN = 10_000


class RegistryError(RuntimeError):
    """The schema registry gives no answer; the message says why and what to do."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other: what is secret is not sent elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


class SchemaRegistry:
    """Asks a registry for schemas. Each is read once; an id that it does not know is asked for again after some seconds."""

    def __init__(
        self,
        address: str,
        login: str = "",
        *,
        tries: int = TRIES,
        timeout: float = TIMEOUT,
        pause: float = PAUSE,
        unknown_for: float = UNKNOWN_FOR,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """address: http://HOST:PORT, perhaps with a path. login: "USER:PASSWORD", if it wants one; it may stand in the address
        too, and is shown nowhere. tries: how often it is asked before RegistryError, with `pause` seconds after the first
        and twice as many after each more. Raises ValueError for an address that is none.
        """
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"schema registry: expected http://HOST:PORT, got {'another address' if '@' in address else repr(address)}"
            )
        self.address = without_login(address).rstrip("/")
        login = login or unquote(parts.netloc.rpartition("@")[0])
        self._headers = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}
        if login:
            self._headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        self._tries, self._timeout, self._pause, self._unknown_for = tries, timeout, pause, unknown_for
        self._clock, self._sleep = clock, sleep
        self._known: dict[int, Type | Fault] = {}
        self._unknown: dict[int, tuple[float, Fault]] = {}
        self._open = urllib.request.build_opener(_NoRedirect()).open

    def find(self, id: int) -> Type | Fault:
        """The schema with an id, or why messages with it are refused: unknown_schema, bad_schema. Raises RegistryError."""
        if (known := self._known.get(id)) is not None:
            return known
        until, fault = self._unknown.get(id, (0.0, None))
        if fault is not None and self._clock() < until:
            return fault
        told = self._get(f"/schemas/ids/{id}")
        if told is None:
            if len(self._unknown) >= MOST_UNKNOWN:
                self._unknown.clear()
            fault = Fault("unknown_schema", "a schema that the registry has", f"id {id}", "byte 1")
            self._unknown[id] = self._clock() + self._unknown_for, fault
            return fault
        self._known[id] = made = self._read(id, told)
        return made

    def _read(self, id: int, told: Any) -> Type | Fault:
        try:
            kind = told.get("schemaType", "AVRO")
            if kind != "AVRO":
                raise SchemaError(f"expected a schema of Avro, got one of {kind}")
            known: dict[tuple[str, int], str] = {}
            self._referred(told, known)
            return read_schema(told["schema"], list(known.values()))
        except (AttributeError, KeyError, TypeError) as error:
            raise RegistryError(f"{self.address} is no schema registry: it has no schema in its answer for id {id}") from error
        except SchemaError as error:
            return Fault("bad_schema", "a schema of Avro", f"id {id}, whose schema is not: {error}", "byte 1")

    def _referred(self, told: Any, known: dict[tuple[str, int], str]) -> None:
        """The texts of the schemas that one refers to, those that they refer to first."""
        for each in told.get("references") or []:
            named = each["subject"], int(each["version"])
            if named in known:
                continue
            there = self._get(f"/subjects/{quote(named[0], safe='')}/versions/{named[1]}")
            if there is None:
                raise SchemaError(f"it refers to {named[0]} version {named[1]}, which the registry does not have")
            self._referred(there, known)
            known[named] = there["schema"]

    def _get(self, path: str) -> Any:
        """What the registry has there, None if nothing. Raises RegistryError."""
        reason = ""
        for attempt in range(self._tries):
            if attempt:
                self._sleep(self._pause * 2 ** (attempt - 1))
            try:
                request = urllib.request.Request(self.address + path, headers=self._headers)
                with self._open(request, timeout=self._timeout) as answer:
                    return orjson.loads(answer.read())
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"it answers {error.code} {error.reason}".strip()
                if error.code == 404:
                    return None
                if error.code < 500 and error.code not in (408, 429):
                    raise RegistryError(
                        f"the schema registry at {self.address} refuses {path}: {reason}{_hint(error.code)}"
                    ) from None
            except orjson.JSONDecodeError:
                reason = "its answer is not JSON"
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", None) or error or type(error).__name__)
        raise RegistryError(
            f"no schema registry answers at {self.address} ({reason}; asked {self._tries} times for {path}): "
            "start it, or name it with HEADRACE_SCHEMA_REGISTRY"
        )


def _hint(code: int) -> str:
    return ": set HEADRACE_SCHEMA_REGISTRY_LOGIN to USER:PASSWORD" if code in (401, 403) else ""


def without_login(address: str) -> str:
    """The address without the user and password that may stand in it."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
