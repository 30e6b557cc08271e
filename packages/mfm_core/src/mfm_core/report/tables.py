"""The report's words and numbers as HTML: headline, comparison, warnings, unreadable files, config, environment.

Everything that comes from a run goes through `html.escape` here.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from mfm_core.monitor.settings import setting_tables, split_name
from mfm_core.monitor.writers import duration
from mfm_core.report.curves import colour
from mfm_core.report.runs import Run, number, title_of

_MOST_FILES = 500
_MOST_OPEN_ROWS = 30
"""Of a task's table; longer ones are folded away."""


@dataclass(frozen=True)
class Measure:
    """One number of a run for the headline and the comparison."""

    title: str
    value: Callable[[Run], float | None]
    show: Callable[[float], str]
    note: Callable[[Run], str] = lambda run: ""
    more_is_better: bool = False


def headline(run: Run) -> str:
    """The numbers of one run as cards."""
    cards = []
    for measure in MEASURES:
        value = measure.value(run)
        if value is None:
            continue
        note = measure.note(run)
        below = f'<div class="note">{escape(note)}</div>' if note else ""
        shown = escape(measure.show(value))
        cards.append(f'<div class="number"><dt>{escape(measure.title)}</dt><dd>{shown}{below}</dd></div>')
    return f'<dl class="numbers">{"".join(cards)}</dl>' if cards else ""


def comparison(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """The headline numbers of several runs as a table, a column for each; the best of a task is marked."""
    swatches = [f'<span class="swatch" style="background:{colour(i)}"></span>' for i in range(len(runs))]
    names = "".join(f'<th class="wide">{swatch}{escape(label)}</th>' for swatch, label in zip(swatches, labels))
    rows = [
        "<tr><th>Task</th>" + "".join(f"<td>{escape(run.task)}</td>" for run in runs) + "</tr>",
        "<tr><th>State</th>" + "".join(f"<td>{status_pill(run)}</td>" for run in runs) + "</tr>",
    ]
    for measure in MEASURES:
        if any(measure.value(run) is not None for run in runs):
            cells = "".join(_compared(measure, run, runs) for run in runs)
            rows.append(f"<tr><th>{escape(measure.title)}</th>{cells}</tr>")
    table = f'<thead class="runs"><tr><th></th>{names}</tr></thead><tbody>{"".join(rows)}</tbody>'
    return f'<div class="table numbers-table"><table>{table}</table></div>'


def status_pill(run: Run) -> str:
    """Whether the run came to its end."""
    kind = run.status if run.status in ("finished", "stopped", "failed") else "open"
    return f'<span class="pill {kind}">{escape(run.status or "no end yet")}</span>'


def warnings(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """What a reader should know before trusting the numbers: failures, warnings, lines that could not be read."""
    items = []
    for run, label in zip(runs, labels):
        said = [run.message] if run.message else []
        said += [text + (f" (× {times})" if times > 1 else "") for text, times in run.warnings.items()]
        if run.bad_files:
            said.append(f"{len(run.bad_files)} unreadable {_plural('file', len(run.bad_files))}, listed below")
        if run.unreadable_lines:
            lines = _plural("line", run.unreadable_lines)
            said.append(f"{run.unreadable_lines} {lines} of log.jsonl could not be read and {lines} left out")
        if not run.steps and not run.epochs:
            said.append("nothing has been logged yet")
        whose = f"<strong>{escape(label)}</strong>: " if len(runs) > 1 else ""
        items += [f"<li>{whose}{escape(text)}</li>" for text in said]
    return f'<div class="warnings"><strong>To note</strong><ul>{"".join(items)}</ul></div>' if items else ""


def settings(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """The latest numbers of each run that were measured for several settings: learning rates, numbers of neighbours."""
    parts = []
    for run, label in zip(runs, labels):
        record = next((r for r in reversed(run.epochs) if any(split_name(str(key)) for key in r)), {})
        for table in setting_tables({str(key): number(value) for key, value in record.items()}):
            whose = f"<h3>{escape(label)}</h3>" if len(runs) > 1 else ""
            head = table.head()
            parts.append(whose + _table(head, table.cells(), figures=range(1, len(head))))
    return section("By setting", "".join(parts))


def logged(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """The tables that the runs' tasks left; long ones are folded away."""
    parts = []
    for name in dict.fromkeys(name for run in runs for name in run.tables):
        body = []
        for run, label in zip(runs, labels):
            if name in run.tables:
                found = run.tables[name]
                whose = f"<h3>{escape(label)}</h3>" if len(runs) > 1 else ""
                note = f'<p class="soft">{escape(found.caption)}</p>' if found.caption else ""
                shown = _table(found.table.head, found.table.rows, found.table.figures)
                count = len(found.table.rows)
                folded = f"<details><summary>{count} rows</summary>{shown}</details>"
                body.append(whose + note + (folded if count > _MOST_OPEN_ROWS else shown))
        parts.append(section(title_of(name), "".join(body)))
    return "".join(parts)


def bad_files(runs: Sequence[Run]) -> str:
    """Unreadable files of all runs, the most often met first."""
    met: dict[tuple[str, str], int] = {}
    for run in runs:
        for file in run.bad_files:
            met[file.path, file.reason] = met.get((file.path, file.reason), 0) + file.times
    if not met:
        return ""
    ordered = sorted(met.items(), key=lambda item: (-item[1], item[0]))
    rows = [[path, reason, str(times)] for (path, reason), times in ordered[:_MOST_FILES]]
    left = len(ordered) - len(rows)
    note = f'<p class="soft">and {left} more in log.jsonl</p>' if left else ""
    return section("Unreadable files", _table(["File", "Reason", "Times met"], rows, figures=(2,)) + note)


def configuration(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """What differs between the runs' configs, and every config whole, folded away."""
    flat = [_flatten(run.config) for run in runs]
    parts = []
    if sum(map(bool, flat)) > 1:
        keys = sorted({key for config in flat for key in config})
        differing = [key for key in keys if len({config.get(key) for config in flat}) > 1]
        rows = [[key, *(config.get(key, "–") for config in flat)] for key in differing]
        if rows:
            parts.append(f"<details open><summary>What differs</summary>{_table(['Key', *labels], rows)}</details>")
    for label, config in zip(labels, flat):
        if config:
            rows = [[key, value] for key, value in sorted(config.items())]
            whose = f" of {escape(label)}" if len(runs) > 1 else ""
            parts.append(
                f"<details><summary>All {len(rows)} keys{whose}</summary>{_table(['Key', 'Value'], rows)}</details>"
            )
    return section("Configuration", "".join(parts))


def environment(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """Machine and versions of each run; one column where all agree."""
    flat = [_flatten({**run.environment, "started": run.time, "folder": run.folder.name}) for run in runs]
    if not any(run.environment for run in runs):
        return ""
    keys = list(dict.fromkeys(key for column in flat for key in column))
    rows = [[key, *(column.get(key, "–") for column in flat)] for key in keys]
    return section("Environment", _table(["", *labels] if len(runs) > 1 else [], rows))


def section(title: str, body: str) -> str:
    """A titled part of the page; nothing where `body` is empty. `title` is plain text, `body` is HTML."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], figures: Sequence[int] = ()) -> str:
    """Plain text as a table; the first column is a heading, the columns in `figures` are aligned as numbers."""

    def cell(text: str, column: int) -> str:
        tag = "td" if column else "th"
        kind = "figure" if column in figures else "wide mono" if column else "mono"
        return f'<{tag} class="{kind}">{escape(text)}</{tag}>'

    title = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join(f"<tr>{''.join(cell(text, i) for i, text in enumerate(row))}</tr>" for row in rows)
    head_row = f"<thead><tr>{title}</tr></thead>" if head else ""
    return f'<div class="table"><table>{head_row}<tbody>{body}</tbody></table></div>'


def _compared(measure: Measure, run: Run, runs: Sequence[Run]) -> str:
    value = measure.value(run)
    if value is None:
        return '<td class="soft">–</td>'
    rivals = [v for other in runs if other.task == run.task and (v := measure.value(other)) is not None]
    best = measure.more_is_better and len(rivals) > 1 and value == max(rivals)
    shown, note = escape(measure.show(value)), escape(measure.note(run))
    below = f'<div class="soft">{note}</div>' if note else ""
    return f"<td>{f'<strong class=best>{shown}</strong>' if best else shown}{below}</td>"


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested config as dotted keys and values in JSON's spelling (text without its quotes)."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + "s"


def _last(key: str) -> Callable[[Run], float | None]:
    return lambda run: run.last(key)


def _best(key: str) -> Callable[[Run], float | None]:
    return lambda run: best[1] if (best := run.best(key)) else None


def _best_note(key: str) -> Callable[[Run], str]:
    """Where the best was, and what the first and the final value were."""

    def note(run: Run) -> str:
        points, best = run.series("epoch", key), run.best(key)
        if best is None or len(points) < 2:
            return ""
        at = "at the end" if best == points[-1] else f"at epoch {best[0]:g}, {points[-1][1]:.2f} at the end"
        return f"{at}; {points[0][1]:.2f} at epoch {points[0][0]:g}"

    return note


def _tested_note(run: Run) -> str:
    videos = run.series("epoch", "test_videos")
    return f"of {videos[-1][1]:,.0f} videos, by several views" if videos else ""


def _speed(run: Run) -> float | None:
    """The median over epochs, else over steps."""
    points = run.series("epoch", "images_per_s") or run.series("step", "images_per_s")
    return statistics.median(y for _, y in points) if points else None


def _memory(run: Run) -> float | None:
    return max((y for _, y in run.series("step", "memory_gb")), default=None)


def _epochs(run: Run) -> float | None:
    points = run.series("epoch", "step") or run.series("step", "step")
    return points[-1][0] if points else None


def _epochs_note(run: Run) -> str:
    planned = number(run.plan.get("epochs"))
    starts = f", in {run.starts} starts" if run.starts > 1 else ""
    return f"of {planned:g}{starts}" if planned is not None else starts.lstrip(", ")


def _millions(count: float) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"


def _percent(value: float) -> str:
    return f"{value:.2f} %"


def _loss(value: float) -> str:
    return f"{value:.4g}"


MEASURES = (
    Measure("Top-1, best", _best("top1"), _percent, _best_note("top1"), more_is_better=True),
    Measure("Best learning rate", _last("best_lr"), lambda value: f"{value:g}", lambda run: "of PROBE.LRS, final"),
    Measure("Top-5, final", _last("top5"), _percent, more_is_better=True),
    Measure("Test top-1", _last("test_top1"), _percent, _tested_note, more_is_better=True),
    Measure("Test top-5", _last("test_top5"), _percent, _tested_note, more_is_better=True),
    Measure("k-NN, best", _best("knn"), _percent, _best_note("knn"), more_is_better=True),
    Measure("Validation loss, final", _last("val_loss"), _loss),
    Measure("Training loss, final", _last("train_loss"), _loss),
    Measure("Feature rank", _last("feature_rank"), lambda value: f"{value:.1f}", lambda run: "RankMe, final"),
    Measure("Epochs", _epochs, lambda value: f"{value:.4g}", _epochs_note),
    Measure("Parameters", lambda run: number(run.plan.get("parameters")), _millions),
    Measure("Inputs per second", _speed, lambda value: f"{value:.4g}", lambda run: "median of training"),
    Measure("Memory, peak", _memory, lambda value: f"{value:.2f} GB"),
    Measure("Time", lambda run: run.seconds, duration),
)
"""In the order they are shown; a run shows those it has."""
