"""Makes one self-contained HTML page of a results folder: who wins where, by how much, over how many seeds.

python -m benchmarks.report                    # results/ to results/report.html
python -m benchmarks.report benchmarks/results --out report.html
"""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from benchmarks.records.summary import Comparison

TEMPLATE = Path(__file__).with_name("page.html.jinja")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def make_report(folder: str | Path) -> str:
    r"""The page: an overview, then tables and pictures of each comparison, and of language models.

    Args:
        folder (str | Path):
            Where results are kept: `compare.csv` or `compare-*.csv`, `lm.csv` or `lm-*.csv`, and `curves/` if there. Its
            subfolders are read, too; runs of two folders are not compared.

    Returns:
        str:
            HTML with style, script and pictures inside; it loads nothing.

    Raises:
        ValueError: if the folder holds no results, or a file that is not ours.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from benchmarks.records.summary import SOLVED, deviation

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
    views = _views([c for place, (runs, _) in places.items() for c in _comparisons(runs, place)])
    comparisons = [view["comparison"] for view in views]
    variants = {line.variant: None for c in comparisons for line in c.lines}
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(mean=mean, median=median, deviation=deviation, short=_short, shade=_shade)
    return environment.get_template(TEMPLATE.name).render(
        solved=SOLVED,
        rows=rows,
        views=views,
        models=_language_models(models),
        tasks=len({comparison.task for comparison in comparisons}),
        matrix={v: [next((n for n in c.lines if n.variant == v), None) for c in comparisons] for v in variants},
        origins={name: sorted({row[name] for row in rows + models} - {""}) for name in ("device", "versions", "commit")},
    )


def _read(folder: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    # rows of comparisons and of language models
    from benchmarks.records.store import read_folder, read_rows

    rows = list(read_folder(folder).values()) if any(folder.glob("compare*.csv")) else []
    paths = sorted(folder.glob("lm*.csv"))
    if not paths:
        return rows, []
    from benchmarks.lm.report import COLUMNS

    return rows, list({key: row for path in paths for key, row in read_rows(path, COLUMNS)[0].items()}.values())


def _comparisons(rows: list[dict[str, str]], folder: Path) -> list[tuple[Comparison, Path]]:
    from benchmarks.records.summary import compare

    return [(comparison, folder) for comparison in compare(rows)]


def _views(found: list[tuple[Comparison, Path]]) -> list[dict]:
    # what the page shows of each comparison, tasks in their usual order
    from benchmarks.records.summary import find_wins
    from benchmarks.tasks import TASKS, get_task

    order = {name: number for number, name in enumerate(TASKS)}
    found = sorted(found, key=lambda entry: order.get(entry[0].task, len(order)))
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
    from benchmarks.records.summary import DISTINCTIONS, counts_text, distinguish

    words: list[list[str]] = [[] for _ in found]
    for task in {c.task for c, _ in found}:
        places = [i for i, (c, _) in enumerate(found) if c.task == task]
        settings = [{"budget": c.matched.partition(" ")[2], **c.settings} for c in (found[i][0] for i in places)]
        told = distinguish(settings)
        for name in told[0]:  # one setting is enough where it tells as much as all of them
            if len({apart[name] for apart in told}) == len({tuple(apart.values()) for apart in told}):
                told = [{name: apart[name]} for apart in told]
                break
        for i, apart in zip(places, told):
            named = {name: (value or "default").replace(" ", ", ") for name, value in apart.items() if name != "budget"}
            words[i] = [DISTINCTIONS[name][1].format(value) for name, value in named.items()]
        for say in (
            lambda c, _: {"params": "equal parameters", "state": "equal state"}.get(c.kind, "sizes not recorded"),
            lambda c, _: f"{len(c.lines)} mixers, {counts_text(c.lines)}",
            lambda c, _: f"a budget of {c.matched.partition(' ')[2] or 'default'}",
            lambda _, folder: f"folder {folder.name}",
        ):
            alike = [i for i in places if sum(words[i] == words[j] for j in places) > 1]
            said = {say(*found[i]) for i in alike}
            for i in alike if len(said) > 1 else ():
                words[i] = [*words[i], say(*found[i])]
    return words


def _language_models(rows: list[dict[str, str]]) -> list[dict]:
    # models of one text and training, best first
    if not rows:
        return []
    from benchmarks.lm.report import describe, summarise

    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        settings = ("dataset", "tokenizer", "text_digest", "steps", "batch_size", "length", "lr", "eval_lengths")
        groups.setdefault(tuple(row[name] for name in settings), []).append(row)
    return [{"title": describe(found[0]), "lines": summarise(found)} for found in groups.values()]


def _short(number: float | str) -> str:
    # 28,992 as 29.0k
    number = float(number)
    for unit in ("", "k", "M", "G"):
        if abs(number) < 1000 or unit == "G":
            break
        number /= 1000
    return f"{number:.1f}{unit}" if unit else f"{number:g}"


def _shade(accuracy: float, chance: float) -> str:
    # how far from guessing to all right, as the opacity of a background
    return f"{0.55 * max(0.0, min(1.0, (accuracy - chance) / (1 - chance))):.3f}"


def _picture(draw, *arguments) -> str:
    file = io.BytesIO()
    draw(*arguments, file)
    return base64.b64encode(file.getvalue()).decode()


def _pictures(comparison: Comparison, folder: Path) -> list[tuple[str, str]]:
    """(what it shows, PNG in base64) of a comparison."""
    from benchmarks.records.plots import draw, draw_curves

    picture = _picture(draw, comparison.lines, comparison.task, comparison.description)
    found = [("Token accuracy by test length, and both accuracies at the training length", picture)]
    curves = {}
    for line in comparison.lines:
        paths = [folder / "curves" / f"{key}.csv" for key in line.keys]
        if all(path.exists() for path in paths):
            curves[line.variant] = [_read_curve(path) for path in paths]
    if curves:
        lengths = [int(length) for length in comparison.settings["lengths"].split()]
        title = f"{comparison.heading}: while training"
        found.append(("Learning curves", _picture(draw_curves, curves, lengths, title)))
    return found


def _read_curve(path: Path) -> list[tuple[int, float]]:
    with open(path, newline="", encoding="utf-8") as file:
        return [(int(point["step"]), float(point["token_accuracy"])) for point in csv.DictReader(file)]


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
    app()
