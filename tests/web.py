"""A web server on loopback, for what is fetched by address."""

from __future__ import annotations

import http.server
import threading
from functools import partial
from pathlib import Path

from mfm_core.paths import WEB


class Site(http.server.ThreadingHTTPServer):
    """A folder on loopback that counts what it hands out."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.served = folder, []
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_request(self, code="-", size="-"):
        self.server.served.append((self.path, int(code)))

    def log_message(self, *arguments):
        pass


def ask_anew() -> None:
    """As a new process, which has not asked for anything yet."""
    for handler in WEB._path_handlers.values():
        handler.cache_map.clear()
