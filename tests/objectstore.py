"""A real S3 server on this machine, which can have bad days."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from pyarrow import fs

SECRET = "not-for-anybodys-eyes"


class ObjectStore:
    """moto's server with one bucket.

    Args:
        host: address to listen at.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app  # a second
        from werkzeug.serving import make_server

        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(host, 0, self._weathered, threaded=True)
        self.is_unavailable: Callable[[str], bool] = lambda path: False
        """Whether a request for a path is answered with 503."""
        self.is_forbidden: Callable[[str], bool] = lambda path: False
        """Whether one is answered with 403."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.options = f"endpoint_override={host}:{self._server.port}&scheme=http&region=us-east-1"
        files, path = fs.FileSystem.from_uri(self.uri("") + "&allow_bucket_creation=true")
        files.create_dir(path)

    def uri(self, folder: str, bucket: str = "bucket") -> str:
        """Of a folder, with what it takes to be let in."""
        return f"s3://user:{SECRET}@{bucket}/{folder}?{self.options}"

    def paths(self, folder: str = "") -> list[str]:
        """Of all files in a folder of the bucket."""
        files, _ = fs.FileSystem.from_uri(self.uri(""))
        inside = files.get_file_info(
            fs.FileSelector(f"bucket/{folder}", recursive=True, allow_not_found=True)
        )
        return sorted(info.path for info in inside if info.type == fs.FileType.File)

    def truncate(self, path: str) -> None:
        """Cut the last byte of a file off."""
        self.put(path, self.read(path)[:-1])

    def flip(self, path: str) -> None:
        """Change one bit in the middle of a file."""
        data = bytearray(self.read(path))
        data[len(data) // 2] ^= 1
        self.put(path, bytes(data))

    def read(self, path: str) -> bytes:
        """What a file holds."""
        files, _ = fs.FileSystem.from_uri(self.uri(""))
        with files.open_input_file(path) as file:
            held: bytes = file.read()
        return held

    def put(self, path: str, data: bytes) -> None:
        """Write a file."""
        files, _ = fs.FileSystem.from_uri(self.uri(""))
        with files.open_output_stream(path) as file:
            file.write(data)

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()

    def _weathered(self, environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        if self.is_unavailable(environ.get("PATH_INFO", "")):
            respond("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if self.is_forbidden(environ.get("PATH_INFO", "")):
            respond("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        answer: Iterable[bytes] = self._app(environ, respond)
        return answer
