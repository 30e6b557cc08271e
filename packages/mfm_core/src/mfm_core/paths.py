"""Paths that may lie elsewhere: http(s) and ftp, s3 where boto3 is installed, and what other handlers of iopath add.

A remote file is fetched into iopath's cache folder (FVCORE_CACHE, else ~/.torch/iopath_cache) and read from there.
iopath (https://github.com/facebookresearch/iopath) finds who reads an address; its own handler of web addresses keeps
one file for equal paths of different hosts, never looks for a newer one, and follows `..` out of the cache, so that
an address in a stranger's file could write anywhere: `WebHandler` stands in its place.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import posixpath
import re
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from email.utils import formatdate, parsedate_to_datetime
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from iopath.common.file_io import HTTPURLHandler, PathHandler, PathManager, file_lock, g_pathmgr, get_cache_dir

from mfm_core.errors import UserError

logger = logging.getLogger(__name__)
HANDLERS = "mfm_core.path_handlers"
"""Entry points of this group in an installed package name iopath `PathHandler` classes for addresses of its kind."""
TIMEOUT_S = 60.0
ESCAPED = "backslashreplace"
"""How a text is written that the encoding does not have: names of files may be any bytes but zero and the slash."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def write_any_name() -> None:
    """From now on standard output takes names of files that are not text, as standard error does anyway."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ESCAPED)


class AbsentFile(UserError):
    """The place answers, and has no such file."""


class WebHandler(HTTPURLHandler):
    """Fetches http, https and ftp addresses into the cache: each once, whatever the number of processes that ask.

    A file that is there is asked for again by its date, so that a changed list is noticed; where nobody answers, the
    cached one is taken.
    """

    def _get_local_path(self, path: str, force: bool = False, cache_dir: str | None = None, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        cached = cached_name(path, get_cache_dir(cache_dir))
        with file_lock(cached):
            if force or path not in self.cache_map:
                _fetch(path, Path(cached))
        self.cache_map[path] = cached
        return cached


def cached_name(url: str, folder: str) -> str:
    """Where the file of a web address lies in the cache: folder/host/digest of the address/its own name."""
    parts = urlsplit(url)
    name = posixpath.basename(posixpath.normpath("/" + parts.path)).replace("\0", "") or "index"  # never `..`
    stem, suffix = os.path.splitext(name)
    host = re.sub(r"[^A-Za-z0-9.-]", "_", parts.netloc.rsplit("@", 1)[-1])
    digest = hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
    return os.path.join(folder, f"host-{host}", digest, stem[:100] + suffix[:20])


def _fetch(url: str, cached: Path) -> None:
    """Brings `cached` up to date, whole or not at all; raises OSError (urllib's are) where that fails."""
    known = {"If-Modified-Since": formatdate(cached.stat().st_mtime, usegmt=True)} if cached.is_file() else {}
    handle, name = tempfile.mkstemp(dir=cached.parent, prefix=".", suffix=".part")
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mfm", **known})
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            shutil.copyfileobj(answer, file)
            expected, date = answer.headers.get("Content-Length"), answer.headers.get("Last-Modified")
            if expected is not None and file.tell() != int(expected):
                raise OSError(f"{file.tell()} of {expected} bytes came")
        if date is not None:
            seconds = parsedate_to_datetime(date).timestamp()
            os.utime(name, (seconds, seconds))
        os.replace(name, cached)
    except urllib.error.URLError as error:  # an HTTPError is one, too
        code = getattr(error, "code", 500)
        if not known or code < 500 and code != 304:
            raise
        if code != 304:
            logger.warning("warning: %s cannot be asked for (%s); the copy in %s is taken.", url, error, cached)
    finally:
        Path(name).unlink(missing_ok=True)


def is_remote(path: str) -> bool:
    """Whether `path` is an address (scheme://…) rather than a path of this machine."""
    return _SCHEME.match(str(path)) is not None


def local_path(path: str, key: str) -> str:
    """`path` itself, or where the file of an address lies once it is fetched.

    `key` is the configuration key that names it. Raises UserError where no handler reads such addresses, or the file
    cannot be fetched; `AbsentFile` where it is not there.
    """
    if not is_remote(path):
        return path
    manager = manager_of(path, key)
    try:
        return manager.get_local_path(path)
    except FileNotFoundError:
        raise AbsentFile(f"{key}: {path} does not exist.") from None
    except Exception as error:  # each handler has errors of its own
        line = " ".join(str(error).split())[:200] or type(error).__name__
        kind = AbsentFile if getattr(error, "code", None) in (404, 410) else UserError
        raise kind(f"{key}: {path} cannot be fetched ({line}); download it and give its path.") from None


def manager_of(path: str, key: str) -> PathManager:
    """Who reads and writes such addresses.

    `key` is the configuration key that names it. Raises UserError where nobody does, or a handler cannot be made.
    """
    scheme = path.split("://")[0]
    try:
        manager = _manager(path)
    except Exception as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{key}: {path}: the handler for {scheme}:// cannot be used ({line}).") from None
    if manager is None:
        more = " (pip install boto3)" if scheme == "s3" else ""
        raise UserError(
            f"{key}: {path}: there is no handler for {scheme}:// here{more}; give a path of this machine, or install "
            f"a package with a handler (docs/scaling.md)."
        )
    return manager


def require_local(path: str, key: str, what: str) -> str:
    """`path`, which must be of this machine; raises UserError, in the words of `what`, for an address."""
    if is_remote(path):
        raise UserError(f"{key} is {path}; {what} must be a folder that this machine mounts, not an address.")
    return path


WEB = PathManager()
"""Reads web addresses by the handler above, whatever others have told iopath's own manager."""
WEB.register_handler(WebHandler())


def _manager(path: str) -> PathManager | None:
    """Who reads an address; None where nobody does."""
    if _knows(WEB, path):
        return WEB
    if not _knows(g_pathmgr, path):
        _register(path.split("://")[0] + "://")
    return g_pathmgr if _knows(g_pathmgr, path) else None


def _register(prefix: str) -> None:
    """Gives iopath the handlers of such addresses that are installed."""
    if prefix == "s3://" and find_spec("boto3"):
        from iopath.common.s3 import S3PathHandler

        g_pathmgr.register_handler(S3PathHandler(profile=None))
    for point in entry_points(group=HANDLERS):
        handler: PathHandler = point.load()()
        if prefix in handler._get_supported_prefixes():
            g_pathmgr.register_handler(handler)


def _knows(manager: PathManager, path: str) -> bool:
    return any(path.startswith(prefix) for prefix in manager._path_handlers)
