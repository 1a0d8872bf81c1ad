"""Progress over a whole sweep, with the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import mean

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.records.cell import Cell

PLAIN_SECONDS = 15.0


class TimeLeft:
    """Estimates the time left of all `cells`, by what each mixer has cost per step so far.

    A mixer of which nothing has run yet is taken to cost as much as the others on average. Of a run, what comes before its
    first report does not count: kernels are compiled there.
    """

    def __init__(self, cells: list[Cell], workers: int, clock: Callable[[], float] = time.monotonic):
        self.workers, self.clock = workers, clock
        self.waiting = {cell.key: cell for cell in cells}
        self.started: dict[str, float] = {}
        self.reports: dict[str, list[tuple[float, int]]] = {}  # when, and at which step: the first one and the last
        self.rates: dict[tuple, list[float]] = {}

    @staticmethod
    def _kind(cell: Cell) -> tuple:
        return cell.task, cell.variant, cell.width, cell.layers

    def update(self, key: str, step: int) -> None:
        """A cell has got to a step; the first call starts its clock."""
        self.started.setdefault(key, self.clock())
        if step:
            self.reports[key] = [*self.reports.get(key, [])[:1], (self.clock(), step)]

    def finish(self, cell: Cell, failed: bool = False) -> None:
        """A cell has ended; one that failed says nothing about the time of others."""
        del self.waiting[cell.key]
        if cell.key in self.started and not failed:
            began, first = self.reports.get(cell.key, [(self.started[cell.key], 0)])[0]
            self.rates.setdefault(self._kind(cell), []).append((self.clock() - began) / max(1, cell.steps - first))

    def seconds(self) -> float | None:
        """Seconds left, or `None` while nothing is known."""
        rates = {kind: list(values) for kind, values in self.rates.items()}
        for key, cell in self.waiting.items():
            if len(self.reports.get(key, [])) == 2:
                (began, first), (now, last) = self.reports[key]
                rates.setdefault(self._kind(cell), []).append((now - began) / max(1, last - first))
        if not rates:
            return None
        average = mean(mean(values) for values in rates.values())
        work = sum(
            (cell.steps - self.reports.get(key, [(0.0, 0)])[-1][1]) * mean(rates.get(self._kind(cell), [average]))
            for key, cell in self.waiting.items()
        )
        return work / max(1, min(self.workers, len(self.waiting)))

    def __str__(self) -> str:
        seconds = self.seconds()
        if seconds is None:
            return "time left not known yet"
        hours, minutes = divmod(round(seconds / 60), 60)
        if hours:
            return f"about {hours} h {minutes} min left"
        return f"about {minutes} min left" if seconds > 90 else f"about {seconds:.0f} s left"


class Display:
    """What a sweep shows while it runs, as a context manager: `update` tells it of a step, `finish` of the end of a cell."""

    def __init__(self, console: Console, cells: list[Cell], left: TimeLeft):
        self.console, self.left, self.waiting = console, left, left.waiting
        self.count, self.total = len(cells), sum(cell.steps for cell in cells)
        self.running: dict[str, tuple] = {}

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass

    def finish(self, cell: Cell, summary: str, failed: bool = False) -> None:
        self.left.finish(cell, failed)

    @property
    def runs_done(self) -> str:
        return f"{self.count - len(self.waiting)}/{self.count}"


class BarDisplay(Display):
    """An overall bar with the time left, and a line per running cell."""

    def __init__(self, console: Console, cells: list[Cell], left: TimeLeft):
        super().__init__(console, cells, left)
        self.progress = Progress(
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self.overall = self.progress.add_task("all runs", total=self.total, numbers="steps")

    def __enter__(self):
        self.progress.start()

    def __exit__(self, *_):
        self.progress.stop()

    def update(self, key: str, step: int, loss: float, accuracy: float) -> None:
        if key not in self.waiting:  # a message that was under way when its cell ended
            return
        cell = self.waiting[key]
        if key not in self.running:
            self.running[key] = (self.progress.add_task(cell.title, total=cell.steps, numbers=""), 0)
        line, before = self.running[key]
        numbers = f"loss {loss:.3f}  accuracy {accuracy:.3f}" if step else "starting"
        self.progress.update(line, completed=step, numbers="scoring" if step == cell.steps else numbers)
        self.progress.advance(self.overall, step - before)
        self.running[key] = (line, step)
        self.left.update(key, step)
        self._show_overall()

    def _show_overall(self) -> None:
        self.progress.update(self.overall, numbers=f"steps, {self.runs_done} runs done, {self.left}")

    def finish(self, cell: Cell, summary: str, failed: bool = False) -> None:
        self.update(cell.key, cell.steps, 0.0, 0.0)
        self.progress.remove_task(self.running.pop(cell.key)[0])
        super().finish(cell, summary, failed)
        self._show_overall()
        self.progress.console.print(f"{cell.title}: {summary}", highlight=False, markup=False)


class PlainDisplay(Display):
    """A line now and then, for logs."""

    def __init__(self, console: Console, cells: list[Cell], left: TimeLeft):
        super().__init__(console, cells, left)
        self.steps_done = 0
        self.last = time.monotonic()

    def update(self, key: str, step: int, loss: float, accuracy: float) -> None:
        if key in self.waiting:
            self.running[key] = (step, loss, accuracy)
            self.left.update(key, step)
        now = time.monotonic()
        if now - self.last < PLAIN_SECONDS:
            return
        self.last = now
        steps = self.steps_done + sum(step for step, _, _ in self.running.values())
        lines = [
            f"{self.waiting[k].title} step {s}/{self.waiting[k].steps} loss {loss:.3f} accuracy {accuracy:.3f}"
            for k, (s, loss, accuracy) in self.running.items()
            if s
        ]
        head = f"{steps / self.total:.0%} of all steps, {self.runs_done} runs done, {self.left}"
        self._print("; ".join([head, *lines]))

    def finish(self, cell: Cell, summary: str, failed: bool = False) -> None:
        self.running.pop(cell.key, None)
        super().finish(cell, summary, failed)
        self.steps_done += cell.steps
        left = f", {self.left}" if self.waiting else ""
        self._print(f"[{self.runs_done}] {cell.title}: {summary}{left}")

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
