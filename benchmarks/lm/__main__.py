"""Trains language models that differ in their mixer, and scores them at the training length and beyond it.

Run it with `python -m benchmarks.lm --help`, or under `torchrun` on several devices.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from benchmarks import run_command
from benchmarks.lm.settings import Settings, load_settings

if TYPE_CHECKING:
    from benchmarks.lm.text import Corpus
    from benchmarks.lm.train import Run
    from benchmarks.records.store import ResultStore

GO_ON = "The same command goes on from there."
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help=__doc__)
def main(
    preset: Annotated[str, typer.Option(help="A name in benchmarks/lm/configs, or a .toml file.")] = "quick",
    mixers: Annotated[
        str | None,
        typer.Option(help="Comma list: entries of the preset or names of benchmarks.compare. Default: the preset's."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Number of seeds: 3 means 0, 1, 2. Default: the preset's.")
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Such as training.lr=1e-3; may be repeated.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="FILE_OR_FOLDER", help="Your own text, UTF-8, as one stream. Default: the preset's text."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of a process. Default: one core is left free, or OMP_NUM_THREADS.")
    ] = None,
    fsdp: Annotated[
        bool, typer.Option("--fsdp", help="Under torchrun, on GPUs: shard the model (FSDP2), not copy it (DDP).")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for results; runs that are there are not done again.")] = Path("results"),
    rerun: Annotated[bool, typer.Option("--rerun", help="Do runs again that are there already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show models, sizes and plan; train nothing.")] = False,
) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160, quiet=not _is_main(), highlight=False)

    def load() -> Settings:
        settings = load_settings(preset, tuple(change or ()))
        if mixers is not None:
            settings = settings.select(tuple(name.strip() for name in mixers.split(",") if name.strip()))
        if seeds is not None:
            settings = replace(settings, training=replace(settings.training, seeds=tuple(range(seeds))))
        return settings if text is None else replace(settings, data=replace(settings.data, text=text))

    name = f"lm-{Path(preset).stem}"
    raise typer.Exit(compare_models(console, load, device, out, name, threads, fsdp, rerun, dry_run))


def compare_models(
    console: Console,
    load: Callable[[], Settings],
    device: str,
    out: Path,
    name: str,
    threads: int | None = None,
    fsdp: bool = False,
    rerun: bool = False,
    dry_run: bool = False,
) -> int:
    """Runs the comparison that `load` returns; its picture is `<name>.png`. Returns an exit code; errors are said."""

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    try:
        settings = load()
        device, processes = _where(device, fsdp)
        _set_threads(threads)
        settings = _announce(console, say, settings, device, processes)
        if dry_run:
            return 0
        runs, corpus = _prepare(say, settings, out, processes)
    except ValueError as error:
        console.print("[bold red]Error:[/]", end=" ")
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("Stopped before training.")
        return 130
    try:
        return _train_all(console, say, name, runs, corpus, device, fsdp, processes, out, rerun)
    except OSError as error:
        if processes > 1:
            raise  # the others may be waiting for this one
        from benchmarks.records.store import unwritten

        say(f"{unwritten(error)} {GO_ON}")
        return 1


def _is_main() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def _where(device: str, fsdp: bool) -> tuple[str, int]:
    # the device and the number of processes
    from benchmarks.records.machine import choose_device

    device = choose_device(device)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if fsdp and (device == "cpu" or processes == 1):  # accelerate would ignore it in silence
        raise ValueError(
            "fsdp shards over GPUs: torchrun --nproc-per-node 8 -m benchmarks.lm --fsdp; without it the model is copied, as "
            f"works everywhere. Here: device={device!r}, {processes} process(es)."
        )
    return device, processes


def _set_threads(threads: int | None) -> None:
    # a thread that waits for a core which another process holds makes all of them wait
    import torch

    from benchmarks.records import machine

    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, (machine.usable_cores() - 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if threads is not None:
        torch.set_num_threads(threads)


def _announce(console: Console, say, settings: Settings, device: str, processes: int) -> Settings:
    from benchmarks.compare.models import quiet
    from benchmarks.lm.models import settle
    from benchmarks.lm.plan import check_text, describe, size_table

    quiet()
    settings = settle(settings)
    for line in describe(settings, processes):
        say(line)
    console.print(size_table(settings, device))
    if settings.data.text is not None:
        check_text(settings, say)
    return settings


def _prepare(say, settings: Settings, out: Path, processes: int) -> tuple[list[Run], Corpus]:
    from benchmarks.lm.plan import make_runs, prepare_corpus

    try:
        corpus = prepare_corpus(settings, out, say)
    except OSError as error:
        raise ValueError(f"out={str(out)!r} cannot be written: {error.strerror or error}.") from None
    return make_runs(settings, corpus, processes), corpus


def _train_all(
    console: Console, say, name: str, runs: list[Run], corpus: Corpus, device, fsdp, processes, out: Path, rerun
) -> int:
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from benchmarks.compare.run import Interrupted
    from benchmarks.lm.models import measure
    from benchmarks.lm.report import COLUMNS, CURVE_COLUMNS, model_row
    from benchmarks.lm.train import train
    from benchmarks.records.store import ResultStore, check_whole

    PartialState(cpu=device == "cpu")  # joins the processes of torchrun: gloo on a CPU, NCCL on GPUs
    store, failed, is_main = ResultStore(out, "lm", COLUMNS, CURVE_COLUMNS), 0, _is_main()
    with ExitStack() as stack:
        answer = [None, None]  # what the main process, which alone holds the store, tells the others
        if is_main:
            try:
                stack.enter_context(store)
                check_whole(store.rows.values(), store.path)
                answer[0] = [run.key for run in runs if rerun or run.key not in store.rows]
            except ValueError as error:
                answer[1] = str(error)
        todo, refusal = broadcast_object_list(answer)
        if refusal:
            say(f"Error: {refusal}")
            return 2
        say(f"{len(runs)} runs, {len(runs) - len(todo)} of them in {store.path} already")
        for run in (run for run in runs if run.key in todo):
            try:
                result = train(run, corpus, out, device, fsdp, processes, say)
            except Interrupted as stop:
                say(f"{run.title}: {stop}, in {out / 'checkpoints' / run.key}. {GO_ON}")
                return 130
            except KeyboardInterrupt:
                say(f"{run.title}: stopped at once; the same command goes on from its last checkpoint, if it has one.")
                return 130
            except Exception as error:
                if processes > 1:
                    raise  # the other processes may be waiting for this one
                failed += 1
                path = store.keep_error(run.key, traceback.format_exc())
                say(f"{run.title}: failed: {type(error).__name__}: {error} (see {path})")
                continue
            if is_main:
                store.add(model_row(run, measure(run.config, device), corpus, result, device), result["curve"])
                shutil.rmtree(out / "checkpoints" / run.key)
        if is_main:
            _show(console, say, store, name, runs)
    PartialState().destroy_process_group()  # its threads may abort the interpreter's end else
    return 1 if failed else 0


def _show(console: Console, say, store: ResultStore, name: str, runs: list[Run]) -> None:
    from benchmarks.lm.report import draw_models, model_table, rank_models, read_curves, size_words, training_words
    from benchmarks.records.style import keep_picture
    from benchmarks.records.tables import say_what_diverged

    rows = [store.rows[run.key] for run in runs if run.key in store.rows]
    if not rows:
        return
    lines = rank_models(rows)
    console.print(model_table(lines, f"{training_words(rows[0])}, {size_words(lines)}"))
    for note in say_what_diverged(lines):
        say(note)
    say(f"rows: {store.path}\ncurves: {store.folder / 'curves'}\nmodels: {store.folder / 'models'}")
    curves = read_curves(store.folder / "curves", rows)
    keep_picture(store.folder / f"{name}.png", partial(draw_models, lines, curves, training_words(rows[0])), say)


if __name__ == "__main__":
    run_command(app)
