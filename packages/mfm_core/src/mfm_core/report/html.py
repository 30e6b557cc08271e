"""The report: one HTML file that opens from disk with no network, written from the folders of one or several runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mfm_core.errors import UserError
from mfm_core.report import figures, tables
from mfm_core.report.document import document, write_page
from mfm_core.report.runs import Run, number, read_run


def write_report(run_folders: Sequence[Path], path: Path) -> None:
    """Writes the report of `run_folders` to `path`, atomically; several runs are compared.

    Reads each folder's `log.jsonl` and `pictures/` and nothing else, so it serves running, stopped and resumed
    runs alike; a part without data is left out. The same folders give the same bytes.
    Raises `UserError` for a folder without a log and for a path that cannot be written.
    """
    if not run_folders:
        raise UserError("no run folder is given; name at least one OUTPUT_DIR")
    runs = [read_run(Path(folder)) for folder in run_folders]
    write_page(Path(path), page(runs))


def page(runs: Sequence[Run]) -> str:
    """The whole page of `runs`."""
    labels = _labels(runs)
    title = labels[0] if len(runs) == 1 else f"{len(runs)} runs compared"
    numbers = tables.headline(runs[0]) if len(runs) == 1 else tables.comparison(runs, labels)
    parts = [
        f"<h1>{escape(title)}</h1>",
        _subtitle(runs[0]) if len(runs) == 1 else "",
        numbers,
        tables.warnings(runs, labels),
        tables.settings(runs, labels),
        figures.curves(runs, labels),
        figures.pictures(runs, labels),
        tables.logged(runs, labels),
        tables.bad_files(runs),
        tables.configuration(runs, labels),
        tables.environment(runs, labels),
    ]
    return document(title, parts)


def _subtitle(run: Run) -> str:
    """State, task, start and size of the data, as far as known."""
    images, batch = number(run.plan.get("images")), number(run.plan.get("batch_size"))
    noun = "videos" if run.plan.get("modality") == "video" else "images"
    facts = [
        escape(run.task),
        escape(f"started {run.time}") if run.time else "",
        f"{images:,.0f} {noun}" if images else "",
        f"batch {batch:g}" if batch is not None else "",
    ]
    return f'<p class="soft">{tables.status_pill(run)}&ensp;{" · ".join(fact for fact in facts if fact)}</p>'


def _labels(runs: Sequence[Run]) -> list[str]:
    """The runs' names; names that come twice get their folder, and their number where that does not help."""
    named = Counter(run.name for run in runs)
    labels = [run.name if named[run.name] == 1 else f"{run.name} ({run.folder.name})" for run in runs]
    again = Counter(labels)
    return [label if again[label] == 1 else f"{label} #{i + 1}" for i, label in enumerate(labels)]
