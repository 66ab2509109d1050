"""A small server that speaks as much of S3 and of Google's JSON API as readers need."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from xml.sax.saxutils import escape

PAGE = 3  # names in one answer: lists come in parts


class Store:
    """The files of buckets, each with a number that grows when it is written again."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, tuple[bytes, int]]] = {}
        self.sent: list[str] = []
        self.denied: set[str] = set()

    def write(self, bucket: str, key: str, content: bytes) -> None:
        """Put a file."""
        files = self.buckets.setdefault(bucket, {})
        generation = files[key][1] + 1 if key in files else 1
        files[key] = content, generation

    def page(self, bucket: str, prefix: str, after: str) -> tuple[list[str], str]:
        """Names in order, and where the next page begins, if there is one."""
        names = sorted(n for n in self.buckets[bucket] if n.startswith(prefix))
        start = int(after or 0)
        end = start + PAGE
        return names[start:end], str(end) if len(names) > end else ""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request; `store` is set on a subclass."""

    store: Store
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Nothing."""

    def answer(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD" and status != 304:
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.answer(x_amz_bucket_region="us-east-1")

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path.startswith("/storage/v1/b/"):
            bucket, _, key = url.path.removeprefix("/storage/v1/b/").partition("/o")
            self.google(bucket, urllib.parse.unquote(key.lstrip("/")), query)
        else:
            bucket, _, key = url.path.lstrip("/").partition("/")
            self.amazon(bucket, urllib.parse.unquote(key), query)

    def google(self, bucket: str, key: str, query: dict[str, str]) -> None:
        if bucket in self.store.denied:
            self.answer(b'{"error": {"code": 403, "message": "no access"}}', 403)
        elif bucket not in self.store.buckets:
            self.answer(b'{"error": {"code": 404, "message": "no bucket"}}', 404)
        elif not key:
            after = query.get("pageToken", "")
            names, more = self.store.page(bucket, query.get("prefix", ""), after)
            items = [{"name": name, "generation": "1"} for name in names]
            token = {"nextPageToken": more} if more else {}
            self.answer(json.dumps({"items": items, **token}).encode())
        elif key not in self.store.buckets[bucket]:
            self.answer(b"", 404)
        else:
            content, generation = self.store.buckets[bucket][key]
            if query.get("ifGenerationNotMatch") == str(generation):
                self.answer(status=304)
            else:
                self.store.sent.append(key)
                self.answer(content, x_goog_generation=str(generation))

    def amazon(self, bucket: str, key: str, query: dict[str, str]) -> None:
        if bucket in self.store.denied:
            self.answer(b"<Error><Code>AccessDenied</Code></Error>", 403)
        elif bucket not in self.store.buckets:
            self.answer(b"<Error><Code>NoSuchBucket</Code></Error>", 404)
        elif not key:
            after = query.get("continuation-token", "")
            names, more = self.store.page(bucket, query.get("prefix", ""), after)
            contents = "".join(
                f"<Contents><Key>{escape(name)}</Key><Size>1</Size></Contents>"
                for name in names
            )
            token = f"<NextContinuationToken>{escape(more)}</NextContinuationToken>"
            text = f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>{contents}"
            count = f"<KeyCount>{len(names)}</KeyCount>"
            tag = "ListBucketResult"
            body = f"<{tag}>{count}{text}{token if more else ''}</{tag}>"
            self.answer(body.encode(), Content_Type="application/xml")
        elif key not in self.store.buckets[bucket]:
            self.answer(b"<Error><Code>NoSuchKey</Code></Error>", 404)
        else:
            content, _ = self.store.buckets[bucket][key]
            etag = f'"{hashlib.md5(content).hexdigest()}"'
            if self.headers.get("If-None-Match") == etag:
                self.answer(status=304, ETag=etag)
            else:
                self.store.sent.append(key)
                self.answer(content, ETag=etag)


@contextlib.contextmanager
def serving() -> Iterator[tuple[Store, str]]:
    """A store, and the address at which both protocols reach it."""
    store = Store()
    handler = type("Bound", (Handler,), {"store": store})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
