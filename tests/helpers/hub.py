"""A hub on this machine, which answers as much of the real one's protocol as a tokenizer needs."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_COMMIT = "0" * 39 + "1"


class _Hub(BaseHTTPRequestHandler):
    repositories: dict[str, dict[str, bytes]]

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        match self.path.strip("/").split("?")[0].split("/"):
            case ["api", "repos", "create"]:
                of = json.loads(body)
                name = "/".join(filter(None, (of.get("organization"), of["name"])))
                self.repositories.setdefault(name, {})
                self._answer({"url": f"http://{self.headers['Host']}/{name}"})
            case ["api", "validate-yaml"]:
                self._answer({"errors": [], "warnings": []})
            case ["api", "models", _, _, "preupload", "main"]:
                files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
                self._answer({"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]})
            case ["api", "models", owner, name, "commit", "main"]:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        self.repositories[f"{owner}/{name}"][line["value"]["path"]] = content
                address = f"http://{self.headers['Host']}/{owner}/{name}/commit/{_COMMIT}"
                self._answer({"commitUrl": address, "commitOid": _COMMIT, "success": True})
            case _:
                self._refuse()

    def do_GET(self):
        match self.path.strip("/").split("?")[0].split("/"):
            case ["api", "whoami-v2"]:
                self._answer({"name": "owner", "type": "user", "orgs": []})
            case ["api", "models", owner, name, *_] if f"{owner}/{name}" in self.repositories:
                self._answer({"id": f"{owner}/{name}", "sha": _COMMIT, "siblings": []})
            case [owner, name, "resolve", _, file] if file in self.repositories.get(f"{owner}/{name}", {}):
                content = self.repositories[f"{owner}/{name}"][file]
                self._send(content, {"X-Repo-Commit": _COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
            case _:
                self._refuse()

    do_HEAD = do_GET

    def _answer(self, value):
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self):
        self._send(b"{}", {"X-Error-Code": "RepoNotFound"}, status=404)

    def _send(self, content, headers, status=200):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def settings_of(address: str, home: Path) -> dict[str, str]:
    """Environment variables of a process for which a hub at that address is the real one."""
    return {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_none",
        "NO_PROXY": "127.0.0.1",
    }


@contextlib.contextmanager
def local_hub() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """Address of a hub without anything on it, and its files by repository and path."""
    handler = type("Hub", (_Hub,), {"repositories": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.repositories
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
