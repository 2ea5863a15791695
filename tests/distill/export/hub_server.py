"""A small Hub on this machine: what huggingface_hub asks for, to push and to pull models."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_sEcReTtOkEnOfMeThatNobodyMaySee"


class Repository:
    """Branches to commits, commits to files; every commit that was ever made is in `commits`."""

    def __init__(self, private):
        self.private, self.branches, self.commits = private, {}, {}
        self.commit("main", {})

    def commit(self, branch, files):
        before = self.commits.get(self.branches.get(branch), {})
        sha = hashlib.sha1(f"{len(self.commits)}{branch}".encode()).hexdigest()
        self.commits[sha] = {**before, **files}
        self.branches[branch] = sha
        return sha


class HubServer(ThreadingHTTPServer):
    """`trouble` is a list of (part of a request's line, what happens): a status, (status, headers),
    "drop" before anything was done, or "lose" the answer of what was done; each happens once."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories, self.large, self.trouble, self.asked = {}, {}, [], []
        self.users, self.role = {TOKEN: "me"}, "write"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # connections that tests drop


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do(self):
        server, line = self.server, f"{self.command} {unquote(self.path)}"
        server.asked.append(line)
        lose = False
        for number, (part, what) in enumerate(server.trouble):
            if part in line:
                del server.trouble[number]
                if what == "drop":
                    return self.drop()
                lose = what == "lose"
                if not lose:
                    status, headers = what if isinstance(what, tuple) else (what, {})
                    # Said aloud, or the client may try the connection again: one more failure.
                    self.close_connection = True
                    headers = {"Connection": "close", **headers}
                    return self.answer({"error": "trouble"}, status, headers)
                break
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        answer = self.found(path, body)
        return self.drop() if lose else self.answer(*answer)

    do_GET = do_POST = do_PUT = do_HEAD = do  # noqa: N815

    def drop(self):
        self.close_connection = True
        self.connection.shutdown(2)

    def answer(self, content, status=200, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def user(self):
        return self.server.users.get((self.headers.get("Authorization") or "").partition(" ")[2])

    def found(self, path, body):
        server, parts = self.server, path.strip("/").split("/")
        if parts[:2] == ["api", "whoami-v2"]:
            if self.user() is None:
                return {"error": "Invalid credentials in Authorization header"}, 401
            role = {"accessToken": {"role": server.role}}
            return {"type": "user", "name": self.user(), "orgs": [], "auth": role}, 200
        if parts[:2] == ["api", "validate-yaml"]:
            return {"errors": [], "warnings": []}, 200
        if parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or self.user()}/{asked['name']}"
            if not name.startswith(f"{self.user()}/"):
                return {"error": "Forbidden"}, 403
            if name in server.repositories:
                return {"url": f"{server.url}/{name}"}, 409
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            server.repositories[name] = Repository(private)
            return {"url": f"{server.url}/{name}"}, 200
        if parts[0] == "lfs":
            server.large[parts[1]] = body
            return {}, 200
        if parts[1].endswith(".git"):
            objects = json.loads(body)["objects"]
            for one in objects:
                if one["oid"] not in server.large:
                    one["actions"] = {"upload": {"href": f"{server.url}/lfs/{one['oid']}"}}
            return {"transfer": "basic", "objects": objects}, 200
        api = parts[0] == "api"
        name = "/".join(parts[2:4] if api else parts[:2])
        repository = server.repositories.get(name)
        if repository is None or (repository.private and not self.user()):
            return {"error": "Not found"}, 404, {"X-Error-Code": "RepoNotFound"}
        verb, *rest = parts[4 if api else 2 :] or ["info"]
        revision = rest[0] if rest else "main"
        if verb == "branch":
            if revision in repository.branches:
                return {"error": "exists"}, 409
            repository.branches[revision] = repository.branches["main"]
            return {}, 200
        if verb in ("preupload", "commit") and not name.startswith(f"{self.user()}/"):
            return {"error": "Forbidden"}, 403
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            return {"error": "No branch"}, 404, {"X-Error-Code": "RevisionNotFound"}
        files = repository.commits[sha]
        if verb == "preupload":
            return {"files": [upload(one, files) for one in json.loads(body)["files"]]}, 200
        if verb == "commit":
            new = {}
            for entry in map(json.loads, body.splitlines()):
                value = entry["value"]
                if entry["key"] == "file":
                    new[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    new[value["path"]] = server.large[value["oid"]]
            sha = repository.commit(revision, new)
            return {"commitOid": sha, "commitUrl": f"{server.url}/{name}/commit/{sha}"}, 200
        if verb == "tree":
            entries = [described(path, content) for path, content in files.items()]
            return entries, 200
        if verb == "resolve":
            content = files.get("/".join(rest[1:]))
            if content is None:
                return {"error": "No file"}, 404, {"X-Error-Code": "EntryNotFound"}
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return content, 200, {"ETag": etag, "X-Repo-Commit": sha}
        siblings = [{"rfilename": path} for path in files]
        about = {"id": name, "sha": sha, "private": repository.private, "siblings": siblings}
        return about, 200


def large(path):
    return path.endswith(".safetensors")


def oid(path, content):
    if large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def upload(asked, files):
    path = asked["path"]
    found = {"path": path, "uploadMode": "lfs" if large(path) else "regular"}
    known = oid(path, files[path]) if path in files else None
    return {**found, "shouldIgnore": False, "oid": known}


def described(path, content):
    entry = {"type": "file", "path": path, "size": len(content), "oid": oid(path, content)}
    if large(path):
        entry["lfs"] = {"oid": entry["oid"], "size": len(content), "pointerSize": 128}
    return entry
