"""A bucket of Google Cloud Storage in memory, for both programs that reach it: fsspec (through etils' epath), and
TensorStore's own client (through Orbax), which talks to a server of this process.

A bucket has objects and no folders: to make one does nothing, and a name with a prefix is all that is left of it.
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec
from etils.epath import backend
from fsspec.registry import _registry
from fsspec.spec import AbstractFileSystem
from orbax.checkpoint._src.path import gcs_utils

from ldm_jax import files
from ldm_jax.data import folder

FAKE = Path(__file__).with_name("fake_gcs")  # has a client for gs:// of the name gcsfs
OBJECTS: dict[str, tuple[bytes, int]] = {}  # "bucket/name" -> (contents, generation)
LOCK = threading.Lock()


def put(name: str, data: bytes) -> int:
    with LOCK:
        generation = OBJECTS.get(name, (b"", 0))[1] + 1
        OBJECTS[name] = data, generation
    folder.forget()
    return generation


def put_folder(name: str, folder: Path) -> None:
    """Puts the files of a folder into the bucket."""
    for path in folder.rglob("*"):
        if path.is_file():
            put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())


class HttpError(Exception):
    """As gcsfs has it for 401 and 5xx: no OSError."""

    def __init__(self, code: int):
        super().__init__(f"the server said so, {code}")
        self.code = code


REQUESTS: list[tuple[str, str]] = []  # (what was asked for, of which object or folder)
_REFUSED: list[tuple[str, Exception]] = []


@contextlib.contextmanager
def refusing(name: str, error: Exception) -> Iterator[None]:
    """While the block runs, requests for objects and folders whose names have `name` in them raise the error."""
    _REFUSED.append((name, error))
    try:
        yield
    finally:
        _REFUSED.remove((name, error))


def forbidden() -> OSError:
    """As gcsfs has it for 403."""
    return OSError("Forbidden: this account may not do that")


def _ask(kind: str, name: str) -> None:
    REQUESTS.append((kind, name))
    for part, error in list(_REFUSED):
        if part in name:
            raise error


class _Written(io.BytesIO):
    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def close(self) -> None:
        if not self.closed:
            put(self.name, self.getvalue())
        super().close()


def _told(name: str) -> dict:
    data, generation = OBJECTS[name]
    checksum = base64.b64encode(hashlib.md5(data).digest()).decode()
    return {"name": name, "size": len(data), "type": "file", "md5Hash": checksum, "generation": str(generation)}


class FileSystem(AbstractFileSystem):
    """As unkind as gcsfs: `exists` raises what is not "not found", `isdir` takes some errors for a no, and to read a
    file is two requests unless it is asked for in one piece."""

    protocol, cachable = ("gs", "gcs"), False

    def info(self, path, **_):
        path = self._strip_protocol(path)
        _ask("info", path)
        if path in OBJECTS:
            return _told(path)
        if any(name.startswith(f"{path}/") for name in list(OBJECTS)):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def exists(self, path, **_):
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def isdir(self, path):
        try:
            return self.info(path)["type"] == "directory"
        except OSError:
            return False

    def find(self, path, maxdepth=None, withdirs=False, detail=False, **_):
        path = self._strip_protocol(path)
        _ask("find", path)
        if maxdepth is not None or withdirs:
            return super().find(path, maxdepth, withdirs, detail)
        found = {name: _told(name) for name in sorted(OBJECTS) if name == path or name.startswith(f"{path}/")}
        return found if detail else list(found)

    def cat_file(self, path, start=None, end=None, concurrency=4, **_):
        if concurrency > 1 and end is None:
            self.info(path)
        with self._open(path) as file:
            data = file.read()
        if not data and end is not None:
            raise HttpError(416)
        return data[start:end]

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        _ask("ls", path)
        found = {}
        for name in list(OBJECTS):
            if name == path:
                found[name] = _told(name)
            elif name.startswith(f"{path}/"):
                child, below, _ = name[len(path) + 1 :].partition("/")
                size = None if below else len(OBJECTS[name][0])
                found[f"{path}/{child}"] = {
                    "name": f"{path}/{child}", "size": size, "type": "directory" if below else "file"
                }  # fmt: skip
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def _open(self, path, mode="rb", **_):
        path = self._strip_protocol(path)
        _ask("write" if mode == "wb" else "read", path)
        if mode == "wb":
            return _Written(path)
        if path not in OBJECTS:
            raise FileNotFoundError(path)
        return io.BytesIO(OBJECTS[path][0])

    def rm(self, path, recursive=False, maxdepth=None):
        path = self._strip_protocol(path)
        _ask("remove", path)
        names = [name for name in list(OBJECTS) if name == path or (recursive and name.startswith(f"{path}/"))]
        if not names:
            raise FileNotFoundError(path)
        for name in names:
            del OBJECTS[name]

    def rm_file(self, path):
        _ask("remove", self._strip_protocol(path))
        if OBJECTS.pop(self._strip_protocol(path), None) is None:
            raise FileNotFoundError(path)

    def cp_file(self, path1, path2, **_):
        path1 = self._strip_protocol(path1)
        if path1 not in OBJECTS:  # a prefix of names
            raise FileNotFoundError(path1)
        put(self._strip_protocol(path2), OBJECTS[path1][0])

    def mkdir(self, path, create_parents=True, **_):
        pass

    def makedirs(self, path, exist_ok=False):
        pass

    def rmdir(self, path):
        pass


class _Handler(BaseHTTPRequestHandler):
    """The part of Google's JSON API that TensorStore uses."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _asked(self):
        """(bucket, name of the object or "", options)."""
        url = urlsplit(self.path)
        bucket, _, rest = url.path.partition("/b/")[2].partition("/o")
        return bucket, unquote(rest.lstrip("/")), {k: v[0] for k, v in parse_qs(url.query).items()}

    def _answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        bucket, name, options = self._asked()
        if not name:
            prefix, start, end = options.get("prefix", ""), options.get("startOffset", ""), options.get("endOffset")
            names = sorted(key.partition("/")[2] for key in list(OBJECTS) if key.startswith(f"{bucket}/"))
            names = [n for n in names if n.startswith(prefix) and n >= start and (end is None or n < end)]
            items = [_described(n, *OBJECTS[f"{bucket}/{n}"]) for n in names]
            return self._answer(200, json.dumps({"items": items}).encode(), Content_Type="application/json")
        found = OBJECTS.get(f"{bucket}/{name}")
        if found is None:
            return self._answer(404)
        data, generation = found
        headers = {"x-goog-generation": str(generation), "Content_Type": "application/octet-stream"}
        if options.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304, **headers)
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if not asked:
            return self._answer(200, data, **headers)
        first, _, last = asked.partition("-")
        begin = int(first) if first else len(data) - int(last)
        stop = int(last) + 1 if first and last else len(data)
        stop = min(stop, len(data))
        headers["Content_Range"] = f"bytes {begin}-{stop - 1}/{len(data)}"
        return self._answer(206, data[begin:stop], **headers)

    def do_POST(self):
        bucket, _, options = self._asked()
        data, name = self.rfile.read(int(self.headers["Content-Length"])), options["name"]
        before = OBJECTS.get(f"{bucket}/{name}", (b"", 0))[1]
        if options.get("ifGenerationMatch", str(before)) != str(before):
            return self._answer(412)
        generation = put(f"{bucket}/{name}", data)
        body = json.dumps(_described(name, data, generation)).encode()
        return self._answer(200, body, Content_Type="application/json")

    def do_DELETE(self):
        bucket, name, _ = self._asked()
        return self._answer(204 if OBJECTS.pop(f"{bucket}/{name}", None) else 404)


def _described(name, data, generation):
    when = "2026-01-01T00:00:00Z"
    return {
        "name": name, "size": str(len(data)), "generation": str(generation), "metageneration": "1", "timeCreated": when,
        "updated": when, "md5Hash": "", "crc32c": "",
    }  # fmt: skip


@contextlib.contextmanager
def bucket():
    """While the block runs, gs:// is this bucket, which is empty at first."""
    OBJECTS.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fsspec.register_implementation("gcs", FileSystem, clobber=True)
    _forget()
    variables = {
        "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{server.server_port}", "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "EPATH_USE_TF": "no",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    hierarchical = gcs_utils.is_hierarchical_namespace_enabled
    gcs_utils.is_hierarchical_namespace_enabled = lambda path: False  # it would ask Google's own client
    try:
        yield "gs://bucket"
    finally:
        gcs_utils.is_hierarchical_namespace_enabled = hierarchical
        _registry.pop("gcs", None)  # else it would stay there for the tests after it
        fsspec.register_implementation("gcs", "gcsfs.GCSFileSystem", clobber=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        _forget()
        server.shutdown()


def _forget() -> None:
    """What is remembered of clients."""
    backend.fsspec_backend._get_filesystem.cache_clear()
    files._has_client.cache_clear()
    folder.forget()
    REQUESTS.clear()
    _REFUSED.clear()


@contextlib.contextmanager
def bucket_on_disk(folder: Path) -> Iterator[dict[str, str]]:
    """While the block runs, gs://NAME is the folder of that name in `folder`, for this process and for those that it
    starts; for others with these variables, too. TensorStore, and so Orbax, does not know of it."""
    variables = {"FAKE_GCS": str(folder), "EPATH_USE_TF": "no"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    sys.modules.pop("gcsfs", None)
    sys.path.insert(0, str(FAKE))
    _forget()
    try:
        yield variables | {"PYTHONPATH": str(FAKE)}
    finally:
        sys.path.remove(str(FAKE))
        sys.modules.pop("gcsfs", None)
        _registry.pop("gcs", None)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        _forget()
