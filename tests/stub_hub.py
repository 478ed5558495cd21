"""A Hub over HTTP on loopback: as much of its protocol as pushing and loading need, and a memory of all it was told.

Create, validate a card, preupload, LFS batch / upload / verify, commit, branches, repository info, resolve. It checks
what the real one checks: the token, LFS hashes and sizes, that a commit's LFS objects are there, a card's metadata.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_StubTokenThatMustNotLeak"
REPO = re.compile(r"[\w.-]+/[\w.-]+")


class StubHub:
    """A running stub.

    Attributes:
        repos: ``{repo: {"private": bool, "branches": {name: [commit, …]}}}``; a commit is ``{"oid", "message",
            "files": {path: bytes}}`` with all files of that state.
        requests: (method, path, status) of every request.
        refuse_commits: how many of the next commits are answered by 503.
    """

    def __init__(self):
        self.repos: dict = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.refuse_commits = 0
        self.lock = threading.Lock()
        handler = type("Bound", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a branch."""
        return self.repos[repo]["branches"][revision][-1]["files"]

    def environment(self, cache) -> dict[str, str]:
        """What a process needs to take this for the Hub, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }  # fmt: skip


def card_problems(text: str) -> list[str]:
    """What the Hub's schema would not accept of a card's metadata."""
    match = re.match(r"---\n(.*?)\n---\n", text, re.S)
    if not match:
        return ["no metadata block"]
    data = yaml.safe_load(match[1])
    problems = []
    for key in ("base_model", "datasets"):
        values = data.get(key) or []
        for value in [values] if isinstance(values, str) else values:
            if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", value):
                problems.append(f"{key}: {value!r} is not a repository id")
    for key in ("library_name", "pipeline_tag", "license"):
        if key in data and not isinstance(data[key], str):
            problems.append(f"{key} must be text")
    if not all(isinstance(tag, str) for tag in data.get("tags") or []):
        problems.append("tags must be text")
    for model in data.get("model-index") or []:
        if not isinstance(model.get("name"), str) or not model.get("results"):
            problems.append("model-index: name and results are required")
        for result in model.get("results") or []:
            if not isinstance(result.get("task", {}).get("type"), str):
                problems.append("model-index: task.type is required")
            if not {"type", "name"} <= set(result.get("dataset", {})):
                problems.append("model-index: dataset.type and dataset.name are required")
            for metric in result.get("metrics") or [{}]:
                if "type" not in metric or not isinstance(metric.get("value"), int | float):
                    problems.append("model-index: a metric needs a type and a number")
    return problems


class _Handler(BaseHTTPRequestHandler):
    hub: StubHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    # ------------------------------------------------------------------ requests

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_GET(self) -> None:
        self._route("GET")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        lfs = re.fullmatch(r"/lfs/(\w{64})", path)
        with self.hub.lock:
            if method == "PUT" and lfs:
                good = hashlib.sha256(body).hexdigest() == lfs[1]
                if good:
                    self.hub.objects[lfs[1]] = body
                return self._answer(200 if good else 400, {})
            if method in ("POST", "PUT") and not authorized:
                return self._answer(401, {"error": "Invalid credentials"})
            for pattern, handle in ROUTES[method].items():
                match = re.fullmatch(pattern, path)
                if match:
                    return handle(self, *match.groups(), body=body, authorized=authorized)
            return self._answer(404, {"error": f"no route {path}"})

    def _answer(self, status: int, content, headers: dict | None = None) -> None:
        self.hub.requests.append((self.command, self.path, status))
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # ------------------------------------------------------------------ what they do

    def whoami(self, body, authorized) -> None:
        self._answer(200 if authorized else 401, {"name": "me", "type": "user", "orgs": []})

    def create(self, body, authorized) -> None:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        there = repo in self.hub.repos
        if not there:
            private = asked.get("private") is True or asked.get("visibility") == "private"
            empty = {"oid": _oid("init", repo), "message": "initial commit", "files": {}}
            self.hub.repos[repo] = {"private": private, "branches": {"main": [empty]}}
        self._answer(409 if there else 200, {"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo})

    def validate(self, body, authorized) -> None:
        problems = card_problems(json.loads(body)["content"])
        self._answer(400 if problems else 200, {"errors": [{"message": p} for p in problems], "warnings": []})

    def preupload(self, repo, revision, body, authorized) -> None:
        if revision not in self.hub.repos.get(repo, {"branches": {}})["branches"]:
            return self._answer(404, {"error": "no such revision"})
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png", ".pt", ".pth")) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        self._answer(200, {"files": files})

    def lfs_batch(self, repo, body, authorized) -> None:
        objects = []
        for item in json.loads(body)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"},
                "verify": {"href": f"{self.hub.url}/lfs/verify"},
            }
            missing = item["oid"] not in self.hub.objects
            objects.append({"oid": item["oid"], "size": item["size"]} | ({"actions": actions} if missing else {}))
        self._answer(200, {"transfer": "basic", "objects": objects})

    def lfs_verify(self, body, authorized) -> None:
        asked = json.loads(body)
        stored = self.hub.objects.get(asked["oid"])
        self._answer(200 if stored is not None and len(stored) == asked["size"] else 404, {})

    def commit(self, repo, revision, body, authorized) -> None:
        if self.hub.refuse_commits > 0:
            self.hub.refuse_commits -= 1
            return self._answer(503, {"error": "Service Unavailable"})
        branch = self.hub.repos[repo]["branches"].get(revision)
        if branch is None:
            return self._answer(404, {"error": "no such revision"})
        files, message = dict(branch[-1]["files"]), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self._answer(400, {"error": f"LFS object {value['oid']} is not there"})
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                files.pop(value["path"], None)
        oid = _oid(repo, revision, str(len(branch)))
        branch.append({"oid": oid, "message": message, "files": files})
        self._answer(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid})

    def branch(self, repo, name, body, authorized) -> None:
        branches = self.hub.repos[repo]["branches"]
        if name in branches:
            return self._answer(409, {"error": "Reference already exists"})
        branches[name] = list(branches["main"])
        self._answer(201, {})

    def info(self, repo, revision=None, *, body, authorized) -> None:
        commit = self._commit(repo, revision or "main", authorized)
        if commit is not None:
            siblings = [{"rfilename": path} for path in commit["files"]]
            there = {"id": repo, "modelId": repo, "sha": commit["oid"], "siblings": siblings, "tags": []}
            self._answer(200, there | {"private": self.hub.repos[repo]["private"]})

    def tree(self, repo, revision, folder="", *, body, authorized) -> None:
        commit = self._commit(repo, revision, authorized)
        if commit is None:
            return
        prefix = folder.strip("/") + "/" if folder and folder.strip("/") else ""
        rows = [
            {"type": "file", "path": path, "size": len(data), "oid": _oid(path)}
            for path, data in commit["files"].items()
            if path.startswith(prefix)
        ]
        self._answer(200 if rows else 404, rows or {"error": "no such folder"})

    def resolve(self, repo, revision, path, body, authorized) -> None:
        commit = self._commit(repo, revision, authorized)
        if commit is None:
            return
        if path not in commit["files"]:
            return self._answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit["oid"]})
        data = commit["files"][path]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self._answer(200, data, {"ETag": etag, "X-Repo-Commit": commit["oid"]})

    def _commit(self, repo: str, revision: str, authorized: bool) -> dict | None:
        """The newest commit of a branch, or the one of that id; an answer is sent where there is none."""
        there = self.hub.repos.get(repo)
        if there is None or (there["private"] and not authorized):
            self._answer(401 if not authorized else 404, {}, {"X-Error-Code": "RepoNotFound"})
            return None
        commits = there["branches"].get(revision, [])
        commits = commits or [c for branch in there["branches"].values() for c in branch if c["oid"] == revision]
        if not commits:
            self._answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return commits[-1]


_R = "([\\w.-]+/[\\w.-]+)"
ROUTES = {
    "POST": {
        "/api/repos/create": _Handler.create,
        "/api/validate-yaml": _Handler.validate,
        f"/api/models/{_R}/preupload/(.+)": _Handler.preupload,
        f"/api/models/{_R}/commit/(.+)": _Handler.commit,
        f"/api/models/{_R}/branch/(.+)": _Handler.branch,
        f"/{_R}\\.git/info/lfs/objects/batch": _Handler.lfs_batch,
        "/lfs/verify": _Handler.lfs_verify,
    },
    "PUT": {},
    "GET": {
        "/api/whoami-v2": _Handler.whoami,
        f"/api/models/{_R}": _Handler.info,
        f"/api/models/{_R}/revision/(.+)": _Handler.info,
        f"/api/models/{_R}/tree/([^/]+)(/.*)?": _Handler.tree,
        f"/{_R}/resolve/([^/]+)/(.+)": _Handler.resolve,
    },
}
ROUTES["HEAD"] = ROUTES["GET"]


def _oid(*words: str) -> str:
    """A commit's id, 40 hexadecimal digits."""
    return hashlib.sha1(" ".join(words).encode()).hexdigest()
