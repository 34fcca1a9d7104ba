"""A W&B server on this machine, which knows one user, one project and one run, and records what it is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY, PROJECT, RUN = "team", "xnli", "abc123"
PAGE = {"hasNextPage": False, "endCursor": None}


@dataclass
class Server:
    """What a server knows and has been asked.

    Attributes:
        url: its address.
        config: of the run.
        summary: of the run.
        asked: name of a query or mutation, and its variables, in order.
        keys: the credentials that came with them.
        refuses: whether it knows nobody.
    """

    url: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    refuses: bool = False

    def views(self) -> dict[str, dict[str, Any]]:
        """Type of a view -> the variables of the mutation that saved it."""
        return {given["type"]: given for name, given in self.asked if name in ("UpsertView2", "upsertView")}

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        name = query.split("(")[0].split("{")[0].split()[-1]
        self.asked.append((name, given))
        here = given.get("entity", given.get("entityName")) == ENTITY
        here = here and given.get("name" if name == "GetProject" else "project", given.get("projectName", PROJECT)) == PROJECT
        answers: dict[str, Callable[[], dict[str, Any]]] = {
            "Viewer": lambda: {
                "viewer": None
                if self.refuses
                else {"id": "u", "entity": ENTITY, "username": "u", "email": "", "flags": "{}", "teams": None}
            },
            "GetDefaultEntity": lambda: {"viewer": {"id": "u", "entity": ENTITY}},
            "GetProject": lambda: {"project": self._project() if here else None},
            "GetProjects": lambda: {"models": {"pageInfo": PAGE, "edges": [{"node": self._project()}]}},
            "ProjectInternalId": lambda: {"project": {"id": "p", "internalId": "17"} if here else None},
            "Run": lambda: {"project": {"internalId": "17", "run": self._run() if here and given["name"] == RUN else None}},
            "UpsertView2": lambda: self._saved(given),
            "upsertView": lambda: self._saved(given),
        }
        return answers[name]()

    def _project(self) -> dict[str, Any]:
        about = {"id": "p", "name": PROJECT, "entityName": ENTITY, "createdAt": "2026-01-01T00:00:00", "isBenchmark": False}
        return {"__typename": "Project", **about, "user": None}

    def _run(self) -> dict[str, Any]:
        config = {name: {"value": value} for name, value in self.config.items()}
        texts = {"config": json.dumps(config), "summaryMetrics": json.dumps(self.summary), "systemMetrics": "{}"}
        names = {"id": "r", "name": RUN, "displayName": "a fit", "projectId": "17", "state": "finished", "tags": []}
        return {**names, **texts, "createdAt": "2026-01-01T00:00:00", "heartbeatAt": "2026-01-01T00:00:00", "user": {}}

    def _saved(self, given: dict[str, Any]) -> dict[str, Any]:
        about = {name: given[name] for name in ("type", "name", "displayName", "description", "spec")}
        project = {"id": "p", "name": given["projectName"], "entityName": given["entityName"]}
        view = {**about, "id": "Vmlldzox", "project": project, "updatedAt": "2026-01-01T00:00:00"}
        return {"upsertView": {"view": view, "inserted": True}}


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Answer requests while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Nothing on the terminal."""

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/graphql":  # the client's own measurements
                self.send_error(404)
                return
            asked = json.loads(sent)
            server.keys.add(self.headers["Authorization"] or "")
            content = json.dumps({"data": server.answer(asked["query"], asked.get("variables") or {})}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    server.url = f"http://127.0.0.1:{listening.server_port}"
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
