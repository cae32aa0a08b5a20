"""A web server of one tar."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """A real HTTP server of one body, which may close the connection before its end."""

    def __init__(self, body: bytes, ranges: bool, sent: int | None = None, failing: int = 0) -> None:
        self.failing = failing  # The next so many replies with a body are refused.
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.reply(send=False)

            def do_GET(self):
                self.reply(send=True)

            def reply(self, send):
                if self.path != "/a.tar":
                    self.send_error(404)
                    return
                if send and site.failing:
                    site.failing -= 1
                    self.send_error(503)
                    return
                first, last = 0, len(body) - 1
                asked = self.headers.get("Range") if ranges else None
                if asked:
                    low, _, high = asked.removeprefix("bytes=").partition("-")
                    first, last = int(low), min(last, int(high or last))
                self.send_response(206 if asked else 200)
                if ranges:
                    self.send_header("Accept-Ranges", "bytes")
                if asked:
                    self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
                self.send_header("Content-Length", str(last + 1 - first))
                self.end_headers()
                if send:
                    self.wfile.write(body[first : last + 1][:sent])

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/a.tar"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()
