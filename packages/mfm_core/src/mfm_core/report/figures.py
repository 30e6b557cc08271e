"""The report's curves and pictures as HTML: one chart per measure with all runs of a task, picture files embedded."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from mfm_core.monitor.settings import split_name, title_of
from mfm_core.report.curves import Series, colour, line_chart
from mfm_core.report.runs import Picture, Run, media_type
from mfm_core.report.tables import section

_MOST_PICTURES = 12
_MOST_BYTES = 16_000_000
_MOST_OTHERS = 16


@dataclass(frozen=True)
class Line:
    """What one line of a chart shows: `key` of the "step" or "epoch" records, times `scale`."""

    kind: str
    key: str
    label: str
    scale: float = 1.0


@dataclass(frozen=True)
class Chart:
    """A chart of the report; drawn where a run has data for one of its lines."""

    title: str
    lines: tuple[Line, ...]
    unit: str = ""
    log: bool = False
    zero: bool = False


CHARTS = (
    Chart("Loss", (Line("step", "loss", "training"), Line("epoch", "val_loss", "validation")), log=True),
    Chart("Accuracy", (Line("epoch", "top1", "top-1"), Line("epoch", "top5", "top-5")), "%"),
    Chart("k-NN accuracy of frozen features", (Line("epoch", "knn", "k-NN"),), "%"),
    Chart("Learning rate", (Line("step", "lr", "learning rate"),), zero=True),
    Chart("Gradient norm, before clipping", (Line("step", "grad_norm", "gradient norm"),), log=True),
    Chart("Share of clipped steps", (Line("epoch", "clipped_share", "clipped", 100.0),), "%", zero=True),
    Chart("Effective rank of features", (Line("epoch", "feature_rank", "rank"),), "RankMe", zero=True),
    Chart("Spread of features", (Line("epoch", "feature_std", "spread"),), "1 = evenly over the sphere", zero=True),
    Chart("Training speed", (Line("step", "images_per_s", "speed"),), "inputs per second", zero=True),
)
_SHOWN_ELSEWHERE = {"step", "epoch", "seconds", "eta_s", "memory_gb", "train_loss", "images_per_s"}


def curves(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """Curves over epochs, runs of one task overlaid; a section for each task there is."""
    sections = []
    tasks = list(dict.fromkeys(run.task for run in runs))
    for task in tasks:
        numbered = [(i, run) for i, run in enumerate(runs) if run.task == task]
        shown = "".join(
            _figure(chart, numbered, labels) for chart in (*CHARTS, *_setting_charts([r for _, r in numbered]))
        )
        others = "".join(_figure(chart, numbered, labels) for chart in _other_charts(run for _, run in numbered))
        body = f'<div class="charts">{shown}</div>' if shown else ""
        if others:
            more = f'<summary>More</summary><div class="charts">{others}</div>'
            body += f'<details class="more">{more}</details>'
        title = f"Curves: {task}" if len(tasks) > 1 and task else "Curves"
        sections.append(section(title, body))
    return "".join(sections)


def pictures(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """The runs' pictures: the latest of each kind open, the earlier ones folded away, thinned to what a page holds."""
    parts = []
    for run, label in zip(runs, labels):
        kinds = dict.fromkeys(picture.kind for picture in run.pictures)
        if len(runs) > 1 and kinds:
            parts.append(f"<h3>{escape(label)}</h3>")
        parts += [_kind([p for p in run.pictures if p.kind == kind], len(kinds)) for kind in kinds]
    return section("Pictures", "".join(parts))


def figure(picture: Picture, title: str | None = None) -> str:
    """A PNG or GIF as a data address with its caption; under `title`, else under its kind and epoch."""
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    if title is None:
        title = f"{picture.title}, epoch {picture.epoch:g}" if picture.epoch is not None else picture.path.stem
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    caption = f"<figcaption class=soft>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    alt = escape(picture.caption or picture.path.stem)
    image = f'<img src="data:{media_type(picture.path)};base64,{data}" alt="{alt}">'
    return f'<figure class="picture">{heading}{image}{caption}</figure>'


def _kind(pictures: Sequence[Picture], kinds: int) -> str:
    """The pictures of one of a run's `kinds` kinds."""
    chosen = _chosen(pictures, _MOST_BYTES // kinds)
    latest, *earlier = [figure(picture) for picture in chosen]
    if not earlier:
        return latest
    left = len(pictures) - len(chosen)
    note = f" ({left} more in the folder)" if left else ""
    return f"{latest}<details><summary>{len(earlier)} earlier{note}</summary>{''.join(earlier)}</details>"


def _setting_charts(runs: Sequence[Run]) -> list[Chart]:
    """A chart for each measure that was logged for several settings (`monitor.settings`), a line for each of them."""
    lines: dict[tuple[str, str], list[Line]] = {}
    for kind in ("step", "epoch"):
        for name in dict.fromkeys(key for run in runs for key in run.keys(kind)):
            parts = split_name(name)
            if parts and any(len(run.series(kind, name)) > 1 for run in runs):
                measure, setting, value = parts
                lines.setdefault((measure, setting), []).append(Line(kind, name, f"{setting} {value}"))
    return [
        Chart(f"{title_of(measure).capitalize()} by {title_of(setting)}", tuple(of_measure))
        for (measure, setting), of_measure in lines.items()
    ]


def _other_charts(runs: Iterable[Run]) -> list[Chart]:
    """A chart for each further number that the runs logged."""
    known = {(line.kind, line.key) for chart in CHARTS for line in chart.lines}
    found: dict[tuple[str, str], None] = {}
    for run in runs:
        for kind in ("step", "epoch"):
            names = (key for key in run.keys(kind) if key not in _SHOWN_ELSEWHERE and not split_name(key))
            found |= dict.fromkeys((kind, key) for key in names)
    return [Chart(key, (Line(kind, key, key),)) for kind, key in found if (kind, key) not in known][:_MOST_OTHERS]


def _figure(chart: Chart, runs: Sequence[tuple[int, Run]], labels: Sequence[str]) -> str:
    """One chart with its legend; with several runs colour tells the run and dashes the second line."""
    alone = len(runs) == 1
    series = []
    for i, run in runs:
        for n, line in enumerate(chart.lines):
            points = [(x, y * line.scale) for x, y in run.series(line.kind, line.key)]
            if points:
                series.append(Series(points, i + n if alone else i, bool(n) and not alone))
    if not series:
        return ""
    values = [y for line in series for _, y in line.points]
    wide = min(values) > 0 and max(values) > 20 * min(values)
    svg = line_chart(series, log_y=chart.log and wide, zero=chart.zero)
    unit = f' <span class="soft">{escape(chart.unit)}</span>' if chart.unit else ""
    return f"<figure><h3>{escape(chart.title)}{unit}</h3>{_legend(chart, runs, labels)}{svg}</figure>"


def _legend(chart: Chart, runs: Sequence[tuple[int, Run]], labels: Sequence[str]) -> str:
    """What the colours and the dashes of a chart mean; nothing where there is one line."""
    drawn = [(n, line) for n, line in enumerate(chart.lines) if any(r.series(line.kind, line.key) for _, r in runs)]
    if len(runs) == 1:
        entries = [(colour(runs[0][0] + n), "solid", line.label) for n, line in drawn]
    else:
        shown = [i for i, run in runs if any(run.series(line.kind, line.key) for line in chart.lines)]
        entries = [(colour(i), "solid", labels[i]) for i in shown]
        if len(drawn) > 1:
            entries += [("var(--ink-soft)", "dashed" if n else "solid", line.label) for n, line in drawn]
    if len(entries) < 2:
        return ""
    items = (f'<li><i class="{dash}" style="color:{ink}"></i>{escape(label)}</li>' for ink, dash, label in entries)
    return f'<ul class="legend">{"".join(items)}</ul>'


def _chosen(pictures: Sequence[Picture], most_bytes: int) -> list[Picture]:
    """As many as fit the page, evenly over time, the latest and (but for one) the earliest among them."""
    for most in range(min(_MOST_PICTURES, len(pictures)), 1, -1):
        chosen = [pictures[round(i * (len(pictures) - 1) / (most - 1))] for i in range(most)]
        if sum(picture.path.stat().st_size for picture in chosen) <= most_bytes:
            return chosen
    return list(pictures[:1])
