"""The frame of every page: one file, one style, nothing loaded and nothing run; and pages that only show pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from mfm_core.report.atomic import write_bytes
from mfm_core.report.figures import figure
from mfm_core.report.runs import Picture
from mfm_core.report.style import CSS

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""The page may load nothing and run nothing, whatever a class name or a path tries."""


def document(title: str, parts: Sequence[str]) -> str:
    """The page of `parts`, which are HTML already; empty ones are left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{CSS}\n</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def write_page(path: Path, page: str) -> None:
    """Writes a page atomically; raises `UserError` where that fails."""
    # a file name that is not UTF-8 comes as lone surrogates, which no encoding takes as they are
    write_bytes(path, page.encode("utf-8", errors="backslashreplace"))


def write_gallery(path: Path, title: str, subtitle: str, notes: Sequence[str], pictures: Sequence[Picture]) -> None:
    """A page with a heading, lines to know beforehand, and PNG or GIF files embedded in their order."""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(subtitle)}</p>',
        f'<div class="warnings"><ul>{items}</ul></div>' if notes else "",
        *(f"<h2>{escape(picture.title)}</h2>{figure(picture, '')}" for picture in pictures),
    ]
    write_page(path, document(title, parts))
