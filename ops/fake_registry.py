"""A schema registry for tests and demos: a small HTTP server on 127.0.0.1 that knows the schemas that were added to it."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeRegistry:
    """schemas and subjects: what it answers. asked: the paths that were asked for, in order, and `logins` what was sent with
    them. failing: the status that it answers instead, if not 0."""

    address: str = ""
    schemas: dict[int, dict[str, Any]] = field(default_factory=dict)
    subjects: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    logins: list[str | None] = field(default_factory=list)
    failing: int = 0

    def add(self, schema: Mapping[str, Any] | Sequence[Any] | str, **more: Any) -> int:
        """Adds a schema, as JSON's objects or as text, and returns its id. more: further members of the answer."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        id = len(self.schemas) + 1
        self.schemas[id] = {"schema": text, **more}
        return id

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        """The status and body for a path."""
        match path.strip("/").split("/"):
            case _ if self.failing:
                return self.failing, {"error_code": self.failing}
            case ["schemas", "ids", id] if id.isdigit() and int(id) in self.schemas:
                return 200, self.schemas[int(id)]
            case ["subjects", subject, "versions", version] if (subject, int(version)) in self.subjects:
                return 200, self.subjects[subject, int(version)]
        return 404, {"error_code": 40403, "message": "not found"}

    def take(self, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """The status and body for a schema that is sent to a path: the id that it has, or gets."""
        match path.strip("/").split("/"):
            case _ if self.failing:
                return self.failing, {"error_code": self.failing}
            case ["subjects", _, "versions"]:
                known = (id for id, each in self.schemas.items() if each["schema"] == body["schema"])
                return 200, {"id": next(known, 0) or self.add(body["schema"])}
        return 404, {"error_code": 40401, "message": "not found"}


@contextmanager
def fake_registry(port: int = 0) -> Iterator[FakeRegistry]:
    """A registry on a free port, or on `port`, until the context ends."""
    registry = FakeRegistry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(*registry.answer(self.path))

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(*registry.take(self.path, json.loads(sent)))

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            registry.asked.append(self.path)
            registry.logins.append(self.headers.get("Authorization"))
            told = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    registry.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="fake-registry", daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
