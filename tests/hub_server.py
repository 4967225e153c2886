"""A local server that speaks the endpoints of the Hub that are used here, for the real client of huggingface_hub."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import parse_qs

import huggingface_hub
import pytest
import transformers

from puma_trl.record.hub_calls import THREAD


TOKEN = "hf_" + "secretsecret" * 3
PREUPLOAD, COMMIT = r"/api/(?:models|datasets)/(.+)/preupload/\w+", r"/api/(?:models|datasets)/(.+)/commit/\w+"
BRANCH = r"/api/models/.+/branch/\w+"
TREE, INFO = (
    r"/api/(?:models|datasets)/(me/\w+)/tree/\w+/?(.*)",
    r"/api/(?:models|datasets)/(\w+/\w+)(?:/revision/\w+)?",
)
PATHS, FILE = r"/api/datasets/(.+)/paths-info/\w+", r"/(?:datasets/)?(me/\w+)/resolve/\w+/(.+)"
REVISION = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """
    Keeps what is uploaded in `server.repositories`; answers `server.failures` first (path pattern → status, or
    "silence"), with the token that it has got.
    """

    def log_message(self, *args):
        pass

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_request(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        for pattern, status in self.server.failures.items():
            if re.search(pattern, path):
                if status == "silence":
                    return self.server.release.wait()
                return self.answer({"error": f"not now, {self.headers.get('Authorization')}"}, status)
        if path.startswith("/lfs/"):
            self.server.objects[path.removeprefix("/lfs/")] = body
            return self.answer({})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid user token."}, 401)
        if path == "/api/whoami-v2":
            return self.answer({"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            private = wanted.get("private") or wanted.get("visibility") == "private"
            self.server.repositories.setdefault(name, {"private": private})
            return self.answer({"url": f"{self.server.address}/{name}", "id": name, "name": name})
        if re.fullmatch(BRANCH, path):
            return self.answer({}, 201)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if re.fullmatch(PREUPLOAD, path):
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in files]
            return self.answer({"files": modes})
        if match := re.fullmatch(TREE, path):
            files = [entry for entry in self.entries(match[1]) if Path(match[2]) in Path(entry["path"]).parents]
            if match[2] and not files:
                return self.send_file(None)
            if "recursive=true" not in self.path.lower():
                depth = len(Path(match[2]).parts) + 1
                folders = {"/".join(Path(entry["path"]).parts[:depth]) for entry in files}
                files = [entry for entry in files if entry["path"] in folders]
                folders -= {entry["path"] for entry in files}
                files += [{"type": "directory", "path": path, "oid": REVISION} for path in folders]
            return self.answer(files)
        if match := re.fullmatch(INFO, path):
            files = [{"rfilename": entry["path"]} for entry in self.entries(match[1])]
            facts = {"id": match[1], "sha": REVISION, "siblings": files, "tags": []}
            return self.answer(facts | {"private": bool(self.server.repositories[match[1]].get("private"))})
        if match := re.fullmatch(PATHS, path):
            wanted = parse_qs(body.decode())["paths"]
            return self.answer([entry for entry in self.entries(match[1]) if entry["path"] in wanted])
        if match := re.fullmatch(FILE, path):
            return self.send_file(self.server.repositories[match[1]].get(match[2]))
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for found in objects:
                found["actions"] = {"upload": {"href": f"{self.server.address}/lfs/{found['oid']}", "header": {}}}
            return self.answer({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(COMMIT, path):
            self.commit(self.server.repositories[match[1]], [json.loads(line) for line in body.splitlines()])
            return self.answer(
                {"commitUrl": f"{self.server.address}/{match[1]}/commit/{REVISION}", "commitOid": REVISION}
            )
        return self.answer({"error": "not found"}, 404)

    def entries(self, name):
        for path, content in self.server.repositories[name].items():
            if path != "private":
                yield {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def send_file(self, content):
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", REVISION)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", hashlib.sha1(content).hexdigest())
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if self.command == "GET" and content is not None:
            self.wfile.write(content)

    def commit(self, repository, lines):
        for line in lines:
            if line["key"] == "file":
                repository[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                content = self.server.objects[line["value"]["oid"]]
                assert hashlib.sha256(content).hexdigest() == line["value"]["oid"]
                repository[line["value"]["path"]] = content
            elif line["key"] == "deletedFile":
                del repository[line["value"]["path"]]

    do_GET = do_POST = do_PUT = do_HEAD = handle_request


def mode(path):
    return "lfs" if path.endswith((".safetensors", ".png", ".bin", ".parquet")) else "regular"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The server, which the client in this process is led to; nobody waits between two attempts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.repositories, server.objects, server.failures, server.requests = {}, {}, {}, []
    server.release = Event()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    for each in threading.enumerate():  # calls that were left behind share their client with those of the next test
        if each.name == THREAD:
            each.join(20)
