"""In place of the package gcsfs, where this folder is on sys.path: gs://BUCKET is the folder FAKE_GCS/BUCKET, for all
processes. A folder without files is none. Where there is a file FAKE_GCS_AWAY, the bucket does not answer."""

import os
from pathlib import Path

from fsspec.spec import AbstractFileSystem


class GCSFileSystem(AbstractFileSystem):
    protocol = ("gs", "gcs")

    def _place(self, path: str) -> Path:
        if os.path.exists(os.environ.get("FAKE_GCS_AWAY", "")):
            raise ConnectionResetError("the bucket is away")
        return Path(os.environ["FAKE_GCS"]) / self._strip_protocol(path)

    def ls(self, path, detail=True, **_):
        place = self._place(path)
        found = [place] if place.is_file() else [p for p in place.glob("*") if not p.name.endswith(".tmp")]
        if not found:
            raise FileNotFoundError(path)
        top = os.environ["FAKE_GCS"]
        kinds = {True: "file", False: "directory"}
        infos = [
            {"name": p.relative_to(top).as_posix(), "size": p.stat().st_size, "type": kinds[p.is_file()]} for p in found
        ]
        return infos if detail else [info["name"] for info in infos]

    def _open(self, path, mode="rb", **_):
        place = self._place(path)
        if mode == "wb":
            place.parent.mkdir(parents=True, exist_ok=True)
        return place.open(mode)

    def makedirs(self, path, exist_ok=False):
        pass

    def rm_file(self, path):
        self._place(path).unlink()
