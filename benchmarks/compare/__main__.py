"""Compares mixers on one backbone: the same data, the same optimiser, matched in size.

Run it with `make compare` or `python -m benchmarks.compare --help`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from benchmarks import run_command
from benchmarks.compare.settings import FIELDS, lay_out, parse_field, read_sweep
from benchmarks.records.cell import MATCHES
from benchmarks.records.fields import FieldError

if TYPE_CHECKING:
    from benchmarks.compare.settings import Part
    from benchmarks.records.cell import Cell

HARDER = "--task s5 --preset tracking --mixers bdlru-m5-sinh,lstm"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _device(name: str, ray_address: str | None) -> str:
    from benchmarks.records.machine import choose_device

    try:
        return choose_device(name, elsewhere=ray_address is not None)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from None


def _summary(cell: Cell, result: dict) -> str:
    scores = ", ".join(f"{s['token_accuracy']:.3f} @{n}" for n, s in zip(cell.eval_lengths, result["scores"]))
    early = f", ended at step {result['steps_done']}" if result["steps_done"] < cell.steps else ""
    return f"token accuracy {scores} ({result['seconds']:.0f} s{early})" + (", DIVERGED" if result["diverged"] else "")


def _with_flags(command: Callable) -> Callable:
    # a flag for each field of a sweep, in the place of the command's `**given`; a flag's value is a tuple
    def flag(name: str) -> inspect.Parameter:
        def parse(text: str) -> tuple:
            try:
                return parse_field(name, text, name)
            except FieldError as error:
                raise typer.BadParameter(error.message) from None

        hint = Annotated[tuple | None, typer.Option(help=FIELDS[name].help, parser=parse, metavar="TEXT")]
        return grid.replace(name=name, annotation=hint)

    signature = inspect.signature(command, eval_str=True)
    grid, *others, _ = signature.parameters.values()
    command.__signature__ = signature.replace(parameters=[grid, *map(flag, FIELDS), *others])
    return command


@app.command(help=__doc__)
@_with_flags
def main(
    grid: Annotated[Path | None, typer.Option(help="TOML or YAML file of the fields below; see benchmarks/README.md.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at once. Default: one per core; one on a GPU.")] = None,
    oversubscribe: Annotated[
        bool, typer.Option("--oversubscribe", help="Go on where workers times threads is more than there are cores.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each process.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    ray_address: Annotated[
        str | None, typer.Option(help="Run by Ray: local, auto or a cluster's address; workers: all it has room for.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for results; runs that are there are not done again.")] = Path("results"),
    weights: Annotated[bool, typer.Option(help="Keep the trained weights, which benchmarks.analysis reads.")] = True,
    rerun: Annotated[bool, typer.Option("--rerun", help="Do runs again that are there already.")] = False,
    **given: tuple | None,
) -> None:
    console = Console(width=None if sys.stdout.isatty() else 80)
    try:
        flags = {name: values for name, values in given.items() if values is not None}
        parts = read_sweep(grid, flags) if grid else lay_out(flags, {}, {})
    except FieldError as error:
        raise typer.BadParameter(error.message, param_hint=error.where) from None
    device = _device(device, ray_address)
    if ray_address is None:
        workers = _fit_workers(console, workers, threads, device, oversubscribe)
    try:
        code = _compare(console, parts, Workers(device, workers, threads, ray_address), out, weights, rerun)
    except OSError as error:
        from benchmarks.records.store import unwritten

        code = _error(console, unwritten(error))
    raise typer.Exit(code)


def _fit_workers(console: Console, workers: int | None, threads: int, device: str, oversubscribe: bool) -> int:
    # how many run at once on this machine
    from benchmarks.records.machine import usable_cores

    if device == "cuda":
        return workers or 1
    cores = usable_cores()
    workers = workers or max(1, cores // threads)
    if workers * threads > cores:
        need = f"{workers} worker(s) of {threads} thread(s) need {workers * threads} cores, and there are {cores}"
        if not oversubscribe:
            expected = f"expected at most {cores} in all, or --oversubscribe to go on"
            raise typer.BadParameter(f"{need}; {expected}.", param_hint="--workers, --threads")
        _say(console, f"note: {need}; they will wait for each other.")
    return workers


@dataclass(frozen=True)
class Workers:
    """What runs the cells."""

    device: str
    workers: int | None
    threads: int
    ray_address: str | None

    def __str__(self) -> str:
        by = f" by Ray at {self.ray_address}" if self.ray_address else ""
        return f"{self.workers or 'as many as fit'} worker(s) of {self.threads} thread(s){by}"


def _compare(console: Console, parts: list[Part], machine: Workers, out: Path, weights: bool, rerun: bool) -> int:
    from benchmarks.compare.models import quiet
    from benchmarks.compare.plan import join_labels, make_row, merge, narrow, plan
    from benchmarks.compare.run import Interrupted, WorkerDied, run_cells
    from benchmarks.records.store import ResultStore, check_whole, unwritten

    quiet()
    with ExitStack() as stack:
        try:
            grids = [plan(p.task, p.mixers, p.match, p.budget, p.settings, machine.device) for p in parts]
            store = stack.enter_context(ResultStore(out))
            check_whole(store.rows.values(), store.path)
        except ValueError as error:
            return _error(console, error)
        laid_out = merge([grid for grid, _ in grids])
        planned, later = narrow(laid_out, store.rows)
        todo = [p.cell for key, p in planned.items() if rerun or key not in store.rows]
        missing = sum(p.cell.key not in store.rows for p in later)
        _announce(console, store, parts, list(planned), todo, missing, machine)
        labels = {key: row["matched"] for key, row in store.rows.items()}
        for key, p in laid_out.items():
            if key in labels and join_labels(labels[key], p.matched) != labels[key]:
                store.add({**store.rows[key], "matched": join_labels(labels[key], p.matched)})

        def finished(cell: Cell, result: dict) -> str:
            row = make_row(laid_out[cell.key], result, labels.get(cell.key, ""))
            store.add(row, result["curve"], result["weights"] if weights else None)
            return _summary(cell, result)

        def failed(cell: Cell, result: dict) -> str:
            return f"failed: {result['error']} (see {store.keep_error(cell.key, result['traceback'])})"

        failures, ran = {}, set()
        try:
            while todo:
                failures |= run_cells(
                    todo, finished, machine.device, machine.workers, machine.threads, console, machine.ray_address, failed
                )
                ran |= {cell.key for cell in todo}
                planned, later = narrow(laid_out, store.rows)
                todo = [p.cell for key, p in planned.items() if key not in ran and (rerun or key not in store.rows)]
        except ValueError as error:
            return _error(console, error)
        except Interrupted:
            return _stopped(console, store, planned, later, "Stopped.", 130)
        except OSError as error:
            return _stopped(console, store, planned, later, unwritten(error), 1)
        except WorkerDied:
            return _stopped(console, store, planned, later, "A worker died (out of memory? --workers 1 needs less).", 1)
        together = _together(parts)
        for alike, picture in zip(together, _pictures([parts[i] for i, *_ in together])):
            cells, matches = [p for i in alike for p in grids[i][0]], {k: m for i in alike for k, m in grids[i][1].items()}
            rows = {p.cell.key: {**store.rows[p.cell.key], "matched": p.matched} for p in cells if p.cell.key in store.rows}
            if rows:
                _show(console, store, [parts[i] for i in alike], picture, list(rows.values()), matches)
        if store.path.exists():
            _say(console, f"rows: {store.path}\ncurves: {store.folder / 'curves'}")
            _say(console, _next_step(parts))
        for key, failure in failures.items():
            _say(console, f"{planned[key].cell.title}: {failed(planned[key].cell, failure)}", style="red")
        return 1 if failures else 0


def _say(console: Console, text: str, style: str | None = None) -> None:
    # paths and errors may hold brackets, which are rich's markup
    console.print(text, highlight=False, markup=False, style=style)


def _error(console: Console, error: ValueError | str) -> int:
    _say(console, f"Error: {error}", style="red")
    return 2


def _stopped(console, store, planned, later, reason: str, code: int) -> int:
    done = sum(key in store.rows for key in (*planned, *(p.cell.key for p in later)))
    where = f" in {store.path}" if store.path.exists() else ""
    _say(console, f"{reason} {done} of {len(planned) + len(later)} runs are kept{where}.")
    _say(console, "The same command goes on from there.")
    return code


def _announce(console, store, parts: list[Part], planned: list[str], todo: list[Cell], later: int, machine: Workers) -> None:
    from benchmarks.records.machine import commit

    for number in store.dropped:
        _say(console, f"{store.path}: line {number} is incomplete; its run is done again.")
    said = []
    for part in parts:
        s = part.settings
        lengths, rates, decays = ("/".join(f"{x:g}" for x in of) for of in (s.lengths, s.lrs, s.decays))
        rates += f", weight decay {decays}" * (len(s.decays) > 1)
        words = f"task {part.task}, {MATCHES[part.match]}: {s.words}"
        said.append(f"{words}, lengths {lengths}, AdamW lr {rates}, {s.schedule}")
    for words in dict.fromkeys(said):
        _say(console, words)
    _say(console, f"{len(planned)} runs, {len(planned) - len(todo)} of them in {store.folder} already; {machine}")
    if later:
        _say(console, f"then {later} more, at each mixer's best learning rate and weight decay")
    new = {cell.key for cell in todo}
    old = {store.rows[key]["commit"] for key in planned if key not in new} - {commit()}
    if old:
        _say(console, f"note: some were made by another version of the code ({', '.join(old)}); --rerun does them again")


def _next_step(parts: list[Part]) -> str:
    # what to type next: more seeds, then the harder group, then everything
    if min(len(part.settings.seeds) for part in parts) < 5:
        return f"Fewer than five seeds are a demonstration. Next: add --seeds 5, or --mixers all, or {HARDER}."
    return f"Next: --mixers all, or {HARDER}."


def _together(parts: list[Part]) -> list[list[int]]:
    # numbers of the parts that are one comparison: they differ in mixers, rates, learning and decay, and seeds
    groups: dict[tuple, list[int]] = {}
    for i, part in enumerate(parts):
        settings = replace(part.settings, lrs=(), weight_decay=0.0, decays=(), seeds=(), tune=0)
        groups.setdefault((part.task, part.match, part.budget, settings), []).append(i)
    return list(groups.values())


def _pictures(parts: list[Part]) -> list[str]:
    # each with what tells it from the other parts of the same task and rule of matching
    from benchmarks.records.cell import SETTINGS
    from benchmarks.records.summary import distinguish, join_name

    names, own = [], [name for name in SETTINGS if hasattr(parts[0].settings, name)]
    for part in parts:
        alike = [p for p in parts if (p.task, p.match) == (part.task, part.match)]
        told = [{"budget": p.budget, **{name: getattr(p.settings, name) for name in own}} for p in alike]
        apart = distinguish(told)[alike.index(part)]
        names.append(f"{join_name('compare', part.task, part.match, apart=apart)}.png")
    return names


def _show(console, store, parts: list[Part], picture: str, rows, matches) -> None:
    from benchmarks.records.plots import draw
    from benchmarks.records.style import keep_picture
    from benchmarks.records.summary import summarise
    from benchmarks.records.tables import make_table, say_what_diverged, say_what_was_seen
    from benchmarks.tasks import get_task

    lines, part = summarise(rows), parts[0]
    settings = f"Trained up to length {lines[0].lengths[0]}, {part.settings.words}, {MATCHES[part.match]}"
    task = get_task(part.task)
    title, decays = f"{part.task}: t{settings[1:]}", any(len(p.settings.decays) > 1 for p in parts)
    console.print(make_table(lines, title, console.width, task.chance, decays))
    for name, matched in matches.items():
        if matched.note:
            _say(console, f"{name}: {matched.note}.")
    for note in say_what_diverged(lines):
        _say(console, note)
    keep_picture(store.folder / picture, partial(draw, lines, part.task, settings), partial(_say, console))
    _say(console, say_what_was_seen(lines, task.title))


if __name__ == "__main__":
    run_command(app)
