"""Scores the trained weights of a results folder at other lengths than they were scored at, for instance 256 times as long.

python -m benchmarks.report.lengths results --lengths 32,256,8192

What stands in the file is not scored again, unless the run was repeated since.
"""

from __future__ import annotations

import csv
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import run_command

RUN = ("key", "task", "variant", "seed", "lr", "finished")  # of a row
COLUMNS = (*RUN, "length", "examples", "token_accuracy", "sequence_accuracy")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help=__doc__)
def main(
    folder: Annotated[Path, typer.Argument(help="Results, with the weights that were kept.")] = Path("results"),
    lengths: Annotated[str, typer.Option(help="Comma list of test lengths.")] = "32,256,8192",
    examples: Annotated[int, typer.Option(min=1, help="Sequences per length.")] = 256,
    out: Annotated[Path | None, typer.Option(help="The CSV file. Default: lengths.csv in the folder.")] = None,
) -> None:
    from filelock import FileLock, Timeout

    from benchmarks.compare.models import quiet
    from benchmarks.compare.train import evaluate
    from benchmarks.records.fields import whole
    from benchmarks.records.store import read_folder, unwritten
    from benchmarks.report.transitions import load_model
    from benchmarks.tasks import get_task

    quiet()
    try:
        tested = [whole(1).convert(length) for length in lengths.split(",")]
    except ValueError:
        words = f"{lengths!r} is not accepted; expected whole numbers greater than 0 and commas between them (32,256)."
        raise typer.BadParameter(words, param_hint="--lengths") from None
    if folder.is_file():
        words = f"{str(folder)!r} is a file; expected the folder that holds it, with its weights."
        raise typer.BadParameter(words, param_hint="FOLDER")
    try:
        rows = list(read_folder(folder).values())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="FOLDER") from None
    try:
        for task, length in product(dict.fromkeys(row["task"] for row in rows), tested):
            get_task(task).check_length(length)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--lengths") from None
    out = out or folder / "lengths.csv"
    with ExitStack() as stack:
        try:
            out.open("a").close()
            lock = out.with_name(f".{out.name}.lock")
            stack.enter_context(FileLock(lock, timeout=0))
            stack.callback(lock.unlink, missing_ok=True)
            done = _done(out, {row["key"]: row["finished"] for row in rows})
            file = stack.enter_context(out.open("a", newline="", encoding="utf-8"))
        except Timeout:
            words = f"{str(out)!r} is in use by another run; wait for it or name another."
            raise typer.BadParameter(words, param_hint="--out") from None
        except OSError as error:
            raise typer.BadParameter(unwritten(error), param_hint="--out") from None
        writer = csv.writer(file, lineterminator="\n")
        if not file.tell():
            writer.writerow(COLUMNS)
        for row in rows:
            missing = [length for length in tested if (row["key"], length, examples) not in done]
            if not get_task(row["task"]).extrapolates and set(missing) - set(row["lengths"]):
                print(f"{row['task']} {row['variant']} seed {row['seed']}: knows no lengths but those of its training")
                missing = [length for length in missing if length in row["lengths"]]
            if not missing:
                continue
            if not (folder / "weights" / f"{row['key']}.safetensors").exists():
                print(f"{row['variant']} seed {row['seed']}: no weights were kept")
                continue
            model, task = load_model(folder, row), get_task(row["task"], row["bos"])
            for length in missing:
                scores = evaluate(model, task, length, examples, "cpu")
                found = [f"{scores[name]:.6f}" for name in COLUMNS[-2:]]
                writer.writerow([*(row[name] for name in RUN), length, examples, *found])
                file.flush()
                run = f"{row['task']} {row['variant']} seed {row['seed']}"
                print(f"{run} @{length}: token, sequence {', '.join(found)}", flush=True)


def _done(out: Path, finished: dict[str, str]) -> set[tuple[str, int, int]]:
    """What stands in the file of runs that `finished` at a time, by key.

    A last line that was cut, and what a run scored before it was repeated, are taken out, and scored again.
    """
    from benchmarks.records.store import write_file

    text = out.read_text(encoding="utf-8") if out.exists() else ""
    head, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]
    if not f"{','.join(COLUMNS)}\n".startswith(text[: text.find("\n") + 1] or text):
        words = f"{str(out)!r} holds something else ({text[:60]!r}); expected a file with the columns {', '.join(COLUMNS)}."
        raise typer.BadParameter(words, param_hint="--out")
    scored = [dict(zip(COLUMNS, line)) for line in csv.reader(lines)]
    fresh = [i for i, line in enumerate(scored) if line["finished"] == finished.get(line["key"], line["finished"])]
    kept = "".join(f"{line}\n" for line in [head, *(lines[i] for i in fresh)] if line)
    if kept != text:
        write_file(out, kept.encode())
    return {(scored[i]["key"], int(scored[i]["length"]), int(scored[i]["examples"])) for i in fresh}


if __name__ == "__main__":
    run_command(app)
