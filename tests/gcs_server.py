"""A Google Cloud Storage for tests, on loopback: the part of its JSON API that TensorStore uses, with generations and
conditional writes. It can be told to fail.

    python tests/gcs_server.py            prints the port; answers until it is killed
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 3  # names in one answer of a listing: every listing of a test is of several pages


@dataclasses.dataclass
class Fault:
    """A request that goes wrong. ``kind``: a status as 503, ``cut`` (no answer), ``lost`` (done, but no answer comes)
    or seconds of delay as ``slow:2``; ``times``: how often; ``wanted``: function of (method, object's name)."""

    kind: str
    times: int = 1
    wanted: Callable[[str, str], bool] = lambda method, name: True


class Server(ThreadingHTTPServer):
    """Answers on ``url``; ``objects``: (bucket, name) to (generation, content); ``asked``: (method, name) of all
    requests."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *buckets: str, port: int = 0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.buckets, self.faults, self.asked = set(buckets), [], []
        self.objects: dict[tuple[str, str], tuple[int, bytes]] = {}
        self.lock, self.generation = threading.Lock(), int(time.time() * 1e6)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request, client_address):  # a client that was killed
        pass

    def fault_of(self, method: str, name: str) -> str:
        with self.lock:
            self.asked.append((method, name))
            for fault in self.faults:
                if fault.times > 0 and fault.wanted(method, name):
                    fault.times -= 1
                    return fault.kind
        return ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet for an answer
    server: Server

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        self._answer("GET")

    def do_POST(self):
        self._answer("POST")

    def do_DELETE(self):
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        parts = url.path.removeprefix("/upload").removeprefix("/storage/v1/b/").split("/")
        bucket, name = parts[0], query.get("name") or unquote("/".join(parts[2:]))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault_of(method, name)
        if fault.startswith("slow:"):
            time.sleep(float(fault[5:]))
        elif fault == "cut":
            self.close_connection = True
            return
        elif fault.isdigit():
            self._send(int(fault), {"error": {"code": int(fault), "message": "told to fail"}})
            return
        status, found, headers = self._do(method, bucket, name, query, body)
        if fault == "lost":
            self.close_connection = True
            return
        self._send(status, found, headers)

    def _do(self, method: str, bucket: str, name: str, query: dict[str, str], body: bytes):
        server = self.server
        with server.lock:
            if bucket not in server.buckets:
                return 404, {"error": {"code": 404, "message": "The specified bucket does not exist."}}, {}
            if method == "GET" and not name:
                return 200, self._listed(bucket, query), {}
            generation, content = server.objects.get((bucket, name), (0, b""))
            if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
                return 412, {"error": {"code": 412, "message": "conditionNotMet"}}, {}
            if query.get("ifGenerationNotMatch") == str(generation):
                return 304, b"", {}
            if method == "POST":
                server.generation += 1
                server.objects[bucket, name] = server.generation, body
                return 200, self._metadata(bucket, name), {}
            if not generation:
                return 404, {"error": {"code": 404, "message": "No such object"}}, {}
            if method == "DELETE":
                del server.objects[bucket, name]
                return 204, b"", {}
            if query.get("alt") != "media":
                return 200, self._metadata(bucket, name), {}
        return *self._range(content), {"x-goog-generation": str(generation)}

    def _range(self, content: bytes) -> tuple[int, bytes]:
        if not (wanted := self.headers.get("Range")):
            return 200, content
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if first else len(content) - int(last)
        end = min(int(last), len(content) - 1) if first and last else len(content) - 1
        self._content_range = f"bytes {start}-{end}/{len(content)}"
        return 206, content[start : end + 1]

    def _listed(self, bucket: str, query: dict[str, str]) -> dict:
        names = sorted(name for where, name in self.server.objects if where == bucket)
        names = [name for name in names if name >= query.get("startOffset", "")
                 and (not query.get("endOffset") or name < query["endOffset"])
                 and name > query.get("pageToken", "")]  # fmt: skip
        found = {"kind": "storage#objects", "items": [self._metadata(bucket, name) for name in names[:PAGE]]}
        return found | ({"nextPageToken": names[PAGE - 1]} if len(names) > PAGE else {})

    def _metadata(self, bucket: str, name: str) -> dict:
        generation, content = self.server.objects[bucket, name]
        return {"name": name, "bucket": bucket, "generation": str(generation), "metageneration": "1",
                "size": str(len(content))}  # fmt: skip

    def _send(self, status: int, found: dict | bytes, headers: dict[str, str] | None = None) -> None:
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", self._content_range)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status != 304:
            self.wfile.write(body)


if __name__ == "__main__":
    print(Server("bucket").server_address[1], flush=True)
    threading.Event().wait()
