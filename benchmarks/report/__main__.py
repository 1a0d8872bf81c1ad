"""Makes one self-contained HTML page of a results folder: who wins where, by how much, over how many seeds.

python -m benchmarks.report                    # results/ to results/report.html
python -m benchmarks.report benchmarks/results --out report.html
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks import run_command

if TYPE_CHECKING:
    from benchmarks.records.summary import Comparison

TEMPLATE = Path(__file__).with_name("page.html.jinja")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def make_report(folder: str | Path) -> str:
    """The page, HTML that loads nothing: an overview, then tables and pictures of each comparison, and of language models.

    The folder has `compare.csv` or `compare-*.csv`, `lm.csv` or `lm-*.csv`, and `curves/` if there. Folders right in it
    are read, too; runs of two folders are not compared. ValueError, if it holds no results, or a file that is not ours.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from benchmarks.records.naming import task_label
    from benchmarks.records.summary import SOLVED, compare
    from benchmarks.records.tables import short

    if not Path(folder).is_dir():
        raise ValueError(f"folder={str(folder)!r} is not a folder.")
    places = {
        place: _read(place) for place in (Path(folder), *sorted(path for path in Path(folder).iterdir() if path.is_dir()))
    }
    rows = [row for runs, _ in places.values() for row in runs]
    models = [row for _, found in places.values() for row in found]
    if not any(path for place in places for path in (*place.glob("compare*.csv"), *place.glob("lm*.csv"))):
        raise ValueError(f"folder={str(folder)!r} holds no results; expected one with a compare.csv, compare-*.csv or lm.csv.")
    if not rows and not models:
        raise ValueError(f"folder={str(folder)!r}: its results files hold no finished run yet.")
    views = _views([(c, place) for place, (runs, _) in places.items() for c in compare(runs)])
    comparisons = [view["comparison"] for view in views]
    variants = {line.variant: None for c in comparisons for line in c.lines}
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(median=median, short=short, shade=_shade, label=task_label)
    return environment.get_template(TEMPLATE.name).render(
        solved=SOLVED,
        rows=rows,
        views=views,
        models=_language_models(models),
        tasks=len({comparison.task for comparison in comparisons}),
        matrix={v: [next((n for n in c.lines if n.variant == v), None) for c in comparisons] for v in variants},
        origins={name: sorted({row[name] for row in rows + models} - {""}) for name in ("device", "versions", "commit")},
    )


def _read(folder: Path) -> tuple[list[dict], list[dict]]:
    # rows of comparisons and of language models
    from benchmarks.records.store import read_folder

    rows, paths = list(read_folder(folder, needed=False).values()), sorted(folder.glob("lm*.csv"))
    if not paths:
        return rows, []
    from benchmarks.lm.report import read

    return rows, read(paths)


def _views(found: list[tuple[Comparison, Path]]) -> list[dict]:
    # what the page shows of each comparison, tasks in their usual order
    from benchmarks.records.summary import find_wins
    from benchmarks.tasks import get_task, rank_task

    found = sorted(found, key=lambda entry: rank_task(entry[0].task))
    variants = [{line.variant for line in c.lines} for c, _ in found]
    views = []
    for number, ((c, folder), own, words) in enumerate(zip(found, variants, _differences(found)), 1):
        chance = get_task(c.task).chance
        views.append(
            {
                "anchor": f"c{number}",
                "comparison": c,
                "title": ", ".join([get_task(c.task).title, *words]),
                "brief": ", ".join(words),
                "chance": chance,
                "wins": find_wins(c, chance),
                "pictures": _pictures(c, folder),
                "most": max(len(others) for others in variants if own <= others),  # of a task that more mixers ran on
            }
        )
    return views


def _differences(found: list[tuple[Comparison, Path]]) -> list[list[str]]:
    # in words, what tells each comparison from the others of its task: settings; mixers and seeds; at last the folder
    from benchmarks.records.cell import MATCHES
    from benchmarks.records.summary import counts_text, distinguish, tell

    words: list[list[str]] = [[] for _ in found]
    for task in {c.task for c, _ in found}:
        places = [i for i, (c, _) in enumerate(found) if c.task == task]
        told = distinguish([found[i][0].told for i in places])
        for name in told[0]:  # one setting is enough where it tells as much as all of them
            if len({apart[name] for apart in told}) == len({tuple(apart.values()) for apart in told}):
                told = [{name: apart[name]} for apart in told]
                break
        for i, apart in zip(places, told):
            words[i] = tell({name: value for name, value in apart.items() if name != "budget"}, ", ")
        for say in (
            lambda c, _: MATCHES.get(c.kind, "sizes not recorded"),
            lambda c, _: f"{len(c.lines)} mixers, {counts_text(c.lines)}",
            lambda c, _: f"a budget of {c.budget or 'default'}",
            lambda _, folder: f"folder {folder.name}",
        ):
            alike = [i for i in places if sum(words[i] == words[j] for j in places) > 1]
            said = {say(*found[i]) for i in alike}
            for i in alike if len(said) > 1 else ():
                words[i] = [*words[i], say(*found[i])]
    return words


def _language_models(rows: list[dict]) -> list[dict]:
    # models of one text, model and training, best first
    from benchmarks.lm.report import group, rank_models, speed, titles

    groups = group(rows)
    return [{"title": title, "lines": rank_models(found), "speed": speed} for found, title in zip(groups, titles(groups))]


def _shade(accuracy: float, chance: float) -> str:
    # how far from guessing to all right, as the opacity of a background
    return f"{0.55 * max(0.0, min(1.0, (accuracy - chance) / (1 - chance))):.3f}"


def _picture(draw, *arguments, **options) -> str:
    file = io.BytesIO()
    draw(*arguments, path=file, **options)
    return base64.b64encode(file.getvalue()).decode()


def _pictures(comparison: Comparison, folder: Path) -> list[tuple[str, str]]:
    """(what it shows, PNG in base64) of a comparison."""
    import pandas as pd

    from benchmarks.records.plots import draw, draw_curves

    picture = _picture(draw, comparison.lines, comparison.task, comparison.description)
    above = "Token accuracy by test length; below, e" if len(comparison.lengths) > 1 else "E"
    found = [(f"{above}very seed at the training length", picture)]
    curves = {}
    for line in comparison.lines:
        paths = [folder / "curves" / f"{key}.csv" for key in line.keys]
        if all(path.exists() for path in paths):
            curves[line.variant] = [pd.read_csv(path) for path in paths]
    if curves:
        title = f"{comparison.heading}: while training"
        told = comparison.settings
        found.append(("Learning curves", _picture(draw_curves, curves, told["lengths"], title, curriculum=told["curriculum"])))
    return found


@app.command(help=__doc__.splitlines()[0])
def main(
    folder: Annotated[Path, typer.Argument(help="Folder with compare.csv or compare-*.csv.")] = Path("results"),
    out: Annotated[Path | None, typer.Option(help="The page. Default: report.html in the folder.")] = None,
) -> None:
    try:
        page = make_report(folder)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="FOLDER") from None
    path = out or folder / "report.html"
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{str(path)!r} cannot be written: {error.strerror}.", param_hint="--out") from None
    typer.echo(f"report: {path}")


if __name__ == "__main__":
    run_command(app)
