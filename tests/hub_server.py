"""A small server that speaks as much of the Hugging Face Hub as its client needs."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator

import yaml

TOKEN = "hf_secret"


class Hub:
    """Repositories by name: their branches, and the files of every commit."""

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.messages: list[str] = []
        self.fetched: list[str] = []

    def commit(self, name: str, branch: str, files: dict[str, bytes]) -> str:
        """Put files on a branch; returns the commit."""
        before = self.commits.get(self.branches[name].get(branch, ""), {})
        files = {**before, **files}
        digest = hashlib.sha1(name.encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + content)
        commit = digest.hexdigest()
        self.commits[commit] = files
        self.branches[name][branch] = commit
        return commit


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request; `hub` is set on a subclass."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Nothing."""

    def answer(self, body: object, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, X_Error_Code=code)

    @property
    def known(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def found(self, name: str, revision: str) -> dict[str, bytes] | None:
        """The files of a revision; None where the answer has been given already."""
        if name not in self.hub.branches or (
            name in self.hub.private and not self.known
        ):
            self.refuse(401, "RepoNotFound")
            return None
        commit = self.hub.branches[name].get(revision, revision)
        if commit not in self.hub.commits:
            self.refuse(404, "RevisionNotFound")
            return None
        return self.hub.commits[commit]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if match := re.fullmatch(r"/api/models/(.+/.+)/revision/(.+)", path):
            files = self.found(*match.groups())
            if files is not None:
                siblings = [{"rfilename": name} for name in files]
                commit = self.hub.branches[match[1]].get(match[2], match[2])
                self.answer({"id": match[1], "sha": commit, "siblings": siblings})
        elif match := re.fullmatch(r"/api/models/(.+/.+)/tree/(\w+)", path):
            files = self.found(*match.groups())
            if files is not None:
                self.answer([described(*file) for file in files.items()])
        elif match := re.fullmatch(r"/(.+/.+)/resolve/(\w+)/(.+)", path):
            files = self.found(match[1], match[2])
            if files is not None:
                if self.command == "GET":
                    self.hub.fetched.append(match[3])
                content = files[match[3]]
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                self.answer(content, ETag=etag, X_Repo_Commit=match[2])
        else:
            self.refuse(404, "EntryNotFound")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        hub = self.hub
        if self.path == "/api/validate-yaml":
            front = json.loads(body)["content"].split("---\n")[1]
            assert isinstance(yaml.safe_load(front), dict)
            return self.answer({"errors": [], "warnings": []})
        if not self.known:
            return self.refuse(403, "Forbidden")
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            address = f"http://{self.headers['host']}/{name}"
            if name in hub.branches:
                return self.answer({"error": "It is there", "url": address}, 409)
            hub.branches[name] = {}
            hub.commit(name, "main", {".gitattributes": b""})
            if asked.get("visibility") == "private" or asked.get("private"):
                hub.private.add(name)
            return self.answer({"url": address})
        name, action, branch = re.fullmatch(
            r"/api/models/(.+/.+)/(branch|preupload|commit)/([^?]+).*", self.path
        ).groups()
        if action == "branch":
            hub.branches[name].setdefault(branch, hub.branches[name]["main"])
            return self.answer({})
        if branch not in hub.branches[name]:
            return self.refuse(404, "RevisionNotFound")
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        lines = [json.loads(line) for line in body.splitlines()]
        hub.messages += [x["value"]["summary"] for x in lines if x["key"] == "header"]
        files = [line["value"] for line in lines if line["key"] == "file"]
        content = {f["path"]: base64.b64decode(f["content"]) for f in files}
        commit = hub.commit(name, branch, content)
        return self.answer(
            {"success": True, "commitOid": commit, "commitUrl": f"/{name}/c/{commit}"}
        )


def described(path: str, content: bytes) -> dict:
    """A file as listings show it."""
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}


@contextlib.contextmanager
def serve() -> Iterator[tuple[str, Hub]]:
    """A hub, and its address while the block lasts."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        server.server_close()
