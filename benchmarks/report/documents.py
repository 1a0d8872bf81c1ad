"""Writes the tables and the studies' figures of README and docs from stored rows: `python -m benchmarks.report.documents`.

A marker names a folder of `benchmarks/results`, `<!-- rows: s3-seeds -->` ... `<!-- /rows -->`, and behind it a task or one of
`KINDS`: `<!-- rows: quick s3 -->`. A figure is drawn if it is not there, or tells something else than the rows. Tests compare
pages and figures with rows.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pandas as pd

from benchmarks.compare.presets import MAD_TASKS
from benchmarks.records.fields import read_fields
from benchmarks.records.naming import parse_name, task_label
from benchmarks.records.plots import Figure
from benchmarks.records.store import read_folder
from benchmarks.records.style import read_told
from benchmarks.records.summary import CLAIM, SOLVED, Comparison, Line, compare, summarise
from benchmarks.records.tables import grows, short
from benchmarks.tasks import get_task

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- rows: (\S+)(?: (\S+))? -->\n).*?(<!-- /rows -->)", re.DOTALL)


def pages() -> list[Path]:
    """The documents that may hold tables."""
    return [ROOT / "README.md", *(path for folder in ("benchmarks", "docs") for path in sorted((ROOT / folder).rglob("*.md")))]


def _cell(values: list[float], digits: int = 3) -> str:
    spread = f" ({min(values):.{digits - 1}f}-{max(values):.{digits - 1}f})" if min(values) != max(values) else ""
    return f"{median(values):.{digits}f}{spread}"


def _scores(line: Line, name: str, digits: int = 3) -> list[str]:
    return [_cell(values, digits) for values in line.scores(name)]


def _name(line: Line) -> str:
    return f"**{line.variant}**" if line.ours else line.variant


def _markdown(rows: list[dict[str, str]]) -> str:
    head = list(rows[0])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *(row.values() for row in rows)))


def _accuracies(*paths: str) -> pd.DataFrame:
    """Token accuracy at the training length, a row a mixer and a column a task, of rows with one seed."""
    rows = [row for path in paths for row in read_folder(RESULTS / path).values()]
    return pd.DataFrame(rows).pivot(index="variant", columns="task", values="token_accuracy_1x")


def _spectra(name: str) -> str:
    """Eigenvalues of the transitions that were learned on every task of a folder."""
    accuracies, rows = _accuracies(f"{name}/compare.csv"), []
    for task in pd.read_csv(RESULTS / name / "overview-params.csv").columns[1:]:
        of = pd.read_csv(RESULTS / name / f"spectra-{task}-params.csv", index_col="variant")
        two, four = of.loc["bdlru-m2"], of.loc["bdlru-m4"]
        rows.append(
            {
                "task": f"`{task}`",
                "m = 2: negative": f"{two.negative:.0%}",
                "most negative": f"{two.most_negative:.2f}",
                "m = 4: negative": f"{four.negative:.0%}",
                "complex": f"{four.complex:.0%}",
                "widest angle": f"{four.angle:.0f} degrees",
                "token accuracy, m = 1, 2, 4": ", ".join(f"{accuracies[task][f'bdlru-m{m}']:.2f}" for m in (1, 2, 4)),
            }
        )
    return _markdown(rows)


def _convolution(name: str) -> str:
    """What a short convolution changes: without to with."""
    plain, conv = _accuracies(f"{name}/compare.csv"), _accuracies(f"{name}/compare-conv.csv")
    tasks, variants = [task for task in plain if task in conv], ("bdlru-m2", "bdlru-m4", "hlru-m4")
    cells = {v: {t.replace("_", " "): f"{plain[t][v]:.2f} to {conv[t][f'{v}-conv']:.2f}" for t in tasks} for v in variants}
    return _markdown([{"": f"`{variant}`", **row} for variant, row in cells.items()])


def _tasks(name: str) -> str:
    """A mixer a row, a task a column; not every mixer ran on every task."""
    table = _accuracies(name).rename(columns=lambda task: task.replace("_", " "))
    cells = table.map(lambda x: "-" if pd.isna(x) else f"{x:.3f}")
    return _markdown([{"": f"`{variant}`", **row} for variant, row in cells.to_dict("index").items()])


def _block_sizes(name: str) -> str:
    """Accuracies, eigenvalues and time constants of BD-LRU by block size, on S3 at equal parameters."""
    spectra = pd.read_csv(RESULTS / "spectra-s3-params.csv", index_col="variant")
    steps = pd.read_csv(RESULTS / "memory-s3-params.csv").groupby("variant").steps.median()
    lines = next(c for c in compare(list(read_folder(RESULTS / name).values())) if c.kind == "params").lines
    rows = [
        {
            "": f"`{line.variant}`",
            f"accuracy @{line.lengths[0]}, median (range)": _cell(line.tokens[0]),
            "solved": f"{line.solved} of {line.seeds}",
            "negative": f"{of.negative:.0%}",
            "complex": f"{of.complex:.0%}",
            "widest angle": f"{of.angle:.0f} degrees",
            "median time constant": f"{steps[line.variant]:.0f} steps",
        }
        for line in sorted(lines, key=lambda line: line.variant)
        for of in [spectra.loc[line.variant]]
    ]
    return _markdown(rows)


@dataclass(frozen=True)
class _Kept:
    """A mixer's runs on a group by a recipe, at its best learning rate, and what they keep at each length."""

    task: str
    variant: str
    runs: list[dict]  # with what they keep at lengths that they were not scored at in training
    rates: int  # that were tried
    right: list[int]  # runs with every sequence right, by length
    tokens: list[list[float]]  # token accuracy of each run, by length

    @property
    def louder(self) -> bool:
        """Whether it is by louder noise."""
        return self.runs[0]["curriculum"] == "louder"


def _kept(name: str) -> tuple[list[int], int, list[_Kept]]:
    """Lengths that stored weights were tested at (`benchmarks.report.lengths`), on how many sequences, and what was kept.

    A mixer of which no run was tested on a group is left out. ValueError, if some were, and not those that count.
    """
    from benchmarks.studies.figures import best_runs

    table, rows = pd.read_csv(RESULTS / name / "lengths.csv"), list(read_folder(RESULTS / name).values())
    fresh = table[table.finished == table.key.map({row["key"]: row["finished"] for row in rows})]  # else repeated since
    sequences, tokens = (
        dict(zip(zip(fresh.key, fresh.length), fresh[column])) for column in ("sequence_accuracy", "token_accuracy")
    )
    lengths, tested_once, found = sorted(table.length.unique()), set(table.key), []
    recipes: dict[str, list[dict]] = {}
    for row in rows:
        recipes.setdefault(row["curriculum"], []).append(row)
    best = {(recipe, *of): runs for recipe, by in recipes.items() for of, runs in best_runs(by).items()}
    for (recipe, variant, task), runs in best.items():
        keys = [run["key"] for run in runs]
        own = [row for row in recipes[recipe] if (row["variant"], row["task"]) == (variant, task)]
        if not any(row["key"] in tested_once for row in own):
            continue
        if missing := [f"{key} @{n}" for key in keys for n in lengths if (key, n) not in tokens]:
            raise ValueError(f"{name}/lengths.csv lacks runs of {variant} on {task}: {', '.join(missing)}; score them.")
        right = [sum(sequences[key, n] == 1 for key in keys) for n in lengths]
        tested = [[tokens[key, n] for key in keys] for n in lengths]
        more = [{f"sequence_accuracy_{n // max(run['lengths'])}x": sequences[run["key"], n] for n in lengths} for run in runs]
        runs = [{**run, **scores} for run, scores in zip(runs, more)]
        found.append(_Kept(task, variant, runs, len({row["lr"] for row in own}), right, tested))
    return lengths, table.examples.iloc[0], found


def _lengths(name: str) -> str:
    """How many seeds of a mixer get every sequence of a group right, by test length, a group and mixer a row."""
    lengths, examples, kept = _kept(name)
    told = len({k.louder for k in kept}) > 1
    kept.sort(key=lambda k: (k.task, k.louder, -k.right[0]))
    return _length_table([(f"`{k.variant}`" + ", louder" * (told and k.louder), k) for k in kept], lengths, examples)


def _start(name: str) -> str:
    """The same of mixers that begin in a learned state (`<name>-start`), beside the same that read BOS in its place."""
    lengths, examples, kept = _kept(name)
    base = name.removesuffix("-start")
    others = [k for folder in (base, f"{base}-louder") if (RESULTS / folder).exists() for k in _kept(folder)[2]]
    with_bos = {(k.task, k.variant, k.louder): k for k in others}
    lines = []
    for k in sorted(kept, key=lambda k: (k.louder, k.task)):
        recipe = ", louder" * k.louder
        lines.append((f"`{k.variant}`{recipe}", k))
        if other := with_bos.get((k.task, k.variant.removesuffix("-start"), k.louder)):
            lines.append((f"`{other.variant}`{recipe}, with BOS", other))
    return _length_table(lines, lengths, examples)


def _length_table(named: list[tuple[str, _Kept]], lengths: list[int], examples: int) -> str:
    lines = []
    for label, k in named:
        cells = {f"length {n:,}": f"{count} of {len(k.runs)}" for n, count in zip(lengths, k.right)}
        told = {f"tokens @{n:,}": _cell(values) for n, values in list(zip(lengths, k.tokens))[1:2]}
        lr = f"{k.runs[0]['lr']:g}" + f", best of {k.rates}" * (k.rates > 1)
        size = {"state": str(k.runs[0]["state_size"]), "FLOPs a token": f"{k.runs[0]['mixer_flops']:,}"}
        seconds = _seconds([run["seconds"] for run in k.runs])
        lines.append({"": f"{k.task.upper()}, {label}", **cells, **told, "lr": lr, **size, "s": seconds})
    note = f"Seeds with all of {examples} sequences right; tokens: accuracy, median and range."
    note += " FLOPs of the whole mixer; s: training, median and range."
    return f"{_markdown(lines)}\n{note}\n"


def _seconds(values: list[float]) -> str:
    low, middle, high = (f"{value:.0f}" for value in (min(values), median(values), max(values)))
    return middle + f" ({low}-{high})" * (low != high)


def _headline(name: str) -> str:
    """The same in short: a mixer a row, a group a column, the lengths in a cell; those that keep more come first.

    A mixer that has most groups by louder noise too (`<name>-louder`) has a row of that.
    """
    from benchmarks.studies.figures import in_order_of_law

    lengths, examples, kept = _kept(name)
    groups, mixers = in_order_of_law({k.task for k in kept}), _by_mixer(kept)
    if (RESULTS / f"{name}-louder").exists():
        louder = _by_mixer(_kept(f"{name}-louder")[2])
        mixers |= {f"{label}, louder": of for label, of in louder.items() if 2 * len(of) > len(groups)}
    usual = Counter(len(k.runs) for of in mixers.values() for k in of.values()).most_common(1)[0][0]

    def score(of: dict[str, _Kept]) -> list[float]:
        return [sum(k.right[i] / len(k.runs) for k in of.values()) for i in reversed(range(len(lengths)))]

    def cells(label: str, of: dict[str, _Kept]) -> dict[str, str]:
        others = {group: f" of {len(k.runs)}" for group, k in of.items() if len(k.runs) != usual}
        if len(others) == len(of) and len(set(others.values())) == 1:  # said once
            label, others = f"{label},{others.popitem()[1]}", {}
        right = {group: "/".join(map(str, k.right)) + others.get(group, "") for group, k in of.items()}
        return {"": label} | {group.upper(): right.get(group, "") for group in groups}

    lines = []
    for label, of in sorted(mixers.items(), key=lambda item: score(item[1]), reverse=True):
        runs = [run for k in of.values() for run in k.runs]
        seconds = f"{median(run['seconds'] for run in runs):.0f}"
        size = {"state": f"{runs[0]['state_size']:,}", "FLOPs": f"{runs[0]['mixer_flops']:,}"}
        lines.append({**cells(label, of), **size, "s": seconds})
    words = "/".join(f"{n:,}" for n in lengths)
    note = f"Seeds (of {usual}, if not said) with all of {examples} sequences right at lengths {words}."
    note += " FLOPs a token, whole mixer; s: training, median."
    return f"{_markdown(lines)}\n{note}\n"


def _by_mixer(kept: list[_Kept]) -> dict[str, dict[str, _Kept]]:
    mixers: dict[str, dict[str, _Kept]] = {}
    for k in kept:
        mixers.setdefault(f"`{k.variant}`", {})[k.task] = k
    return mixers


def _law(name: str) -> str:
    """Which block sizes learn and keep which groups (`benchmarks.studies law`)."""
    from benchmarks.studies.figures import law

    return law(_law_rows(name)).table()


def _depth(name: str) -> str:
    """What more than one layer holds that one of the same blocks cannot (`benchmarks.studies law --only depth`)."""
    from benchmarks.studies.figures import in_order_of_law, smallest_block

    rows = list(read_folder(RESULTS / name).values())
    found = []
    for task in in_order_of_law({row["task"] for row in rows}):
        of = [row for row in rows if row["task"] == task]
        for line in sorted(summarise(of), key=lambda line: parse_name(line.variant).size):
            ours = parse_name(line.variant)
            cells = {"": f"{task_label(task)}, `{line.variant}`"}
            cells["one layer asks for"] = f"m = {smallest_block(task, signed=ours.norm != 'softmax')}"
            for i in (0, -1):
                cells[f"learned, {line.lengths[i]}"] = f"{sum(x >= SOLVED for x in line.tokens[i])} of {line.seeds}"
            found.append({**cells, f"tokens @{line.lengths[-1]}": _cell(line.tokens[-1])})
    note = f"Layers: {rows[0]['layers']}. Learned: seeds with at least {SOLVED:.0%} of tokens right; tokens: median and range."
    return f"{_markdown(found)}\n{note}\n"


def _law_counts(name: str) -> str:
    """What its cells come to on each side of the law's border."""
    from benchmarks.studies.figures import law_counts

    return f"{law_counts(_law_rows(name))}\n"


def _law_rows(name: str) -> list[dict]:
    # at the study's one learning rate
    rate = read_fields(ROOT / "benchmarks" / "studies" / "law.toml")["lr"]
    return [row for row in read_folder(RESULTS / name).values() if row["variant"].endswith("-sinh") and row["lr"] == rate]


def _rounding(name: str) -> str:
    """The same runs where rounding differs, by instruction set or processor: a folder of rows each."""
    sets = {path.name: read_folder(path) for path in sorted((RESULTS / name).iterdir())}
    one, *others = sets.values()
    rows = []
    for task, variant in dict.fromkeys((row["task"], row["variant"]) for row in one.values()):
        keys = [key for key, row in one.items() if (row["task"], row["variant"]) == (task, variant)]
        keys = [key for key in keys if all(key in of for of in others)]
        lengths = one[keys[0]]["eval_lengths"]
        first, last = (f"token_accuracy_{n // lengths[0]}x" for n in (lengths[0], lengths[-1]))
        cells = {"": f"{task.upper()}, `{variant}`", "lengths": f"{lengths[0]}, {lengths[-1]}"}
        for label, of in sets.items():
            solved = f"{sum(of[key][first] >= SOLVED for key in keys)} of {len(keys)}"
            cells[f"{label}: solved; tokens at the longer"] = f"{solved}; {_cell([of[key][last] for key in keys])}"
        for words, column in (("at the shorter", first), ("at the longer", last)):
            scores = [[of[key][column] for of in sets.values()] for key in keys]
            cells[f"a seed moves {words} by up to"] = f"{max(max(values) - min(values) for values in scores):.3f}"
        rows.append(cells)
    return _markdown(rows)


def _mad(name: str) -> str:
    """MAD's tasks at each mixer's best rates (`benchmarks.studies mad`): a mixer a row, best first, and a task a column."""
    from benchmarks.studies.figures import best_of_mad

    best, lines = best_of_mad(list(read_folder(RESULTS / name).values())), []
    tasks = [task for task in MAD_TASKS if any(task in of for of in best.values())]
    for variant, of in best.items():
        cells = {}
        for task in tasks:
            values = [run["token_accuracy_1x"] for run in of.get(task, [])]
            cells[task.replace("_", " ")] = _cell(values) if len(values) >= CLAIM else f"*{_cell(values)}*" if values else ""
        runs = next(iter(of.values()))
        lines.append({"mixer": f"`{variant}`", **cells, "state": grows(Line(variant, runs[:1]))})
    note = "Token accuracy at the training length, median and range; in italics what has fewer than five seeds. Equal"
    note += " parameters; those with more tasks come first, then by the mean of tasks."
    return f"{_markdown(lines)}\n{note}\n"


def _gpu(name: str) -> str:
    """Our chunked ops on a GPU, in bfloat16 at two shapes: time, bandwidth, and that over a large copy's."""
    table = pd.read_csv(RESULTS / name / "gpu.csv")
    table = table.query("contender == 'chunk' and dtype == 'bfloat16' and channels == 1024")
    table = table.query("B == 8 or B == 1 and T > 2048")
    rows = []
    for (op, m, B, T), part in table.groupby(["op", "m", "B", "T"]):
        row = {"op": op, "m": f"{m:g}", "B x T": f"{B} x {T:,}"}
        for x in part.sort_values("mode").itertuples():
            mode = "forward" if x.mode == "fwd" else "forward and backward"
            row[mode] = f"{x.ms:.3f} ms, {x.gb_per_s:,.0f} GB/s, {x.copy_fraction:.2f}"
        rows.append(row)
    return f"{_markdown(rows)}\n{_gpu_words(table.iloc[0])}; a copy moves {table.iloc[0].copy_gb_per_s:,.0f} GB/s.\n"


def _gpu_peers(name: str) -> str:
    """Our chunked ops and their peers on a GPU at one shape, in one run."""
    table = pd.read_csv(RESULTS / name / "gpu.csv").query("table == 'op' and channels == 1024 and B * T == 16_384")
    ours, rows = table.query("contender == 'chunk'"), []
    least = {mode: part.query("op == 'bdlru' and m == 1").ms.item() for mode, part in ours.groupby("mode")}
    for (contender, op, m), part in table.groupby(["contender", "op", "m"], dropna=False, sort=False):
        fla = f"FLA's `{contender}`" if contender.startswith(("chunk_", "fused_")) else contender
        row = {"op": f"`chunk_{op}`, m = {m:g}" if contender == "chunk" else fla}
        times = dict(zip(part["mode"], part.ms))  # none, where a peer refused
        for mode, head in (("fwd", "forward"), ("fwd+bwd", "forward and backward")):
            row[head] = f"{times[mode]:.3f} ms, {times[mode] / least[mode]:.1f}" if times.get(mode, 0) > 0 else ""
        rows.append(row)
    first, widths = table.iloc[0], "1,024 channels or heads of 128 (Mamba2: 64, with a state of 128)"
    note = f"{first['B']} x {first['T']:,} tokens, {widths}, {first['dtype']}; beside a time its ratio to the first."
    return f"{_markdown(rows)}\n{note} {_gpu_words(first)}.\n"


def _gpu_words(row: pd.Series) -> str:
    return f"{row.device}, driver {row.driver}, {row.versions}, commit {row.commit}"


def _gpu_layers(name: str) -> str:
    """Layers of one size on a GPU, forward and backward, beside the matrix products that they contain."""
    table = pd.read_csv(RESULTS / name / "gpu.csv").query("table == 'layer' and mode == 'fwd+bwd'")
    rows = [
        {
            "layer": f"`{x.contender}`",
            "parameters": short(int(x.params)),
            "forward and backward": f"{x.ms:.2f} ms",
            "its matrix products alone": f"{x.matmul_ms:.2f} ms",
            "ratio": f"{x.over_matmul:.2f}",
            "tokens/s": f"{x.tokens_per_s:,.0f}",
        }
        for x in table.itertuples()
    ]
    first = table.iloc[0]
    return f"{_markdown(rows)}\n{first['B']} x {first['T']:,} tokens, {first['dtype']}. {_gpu_words(first)}.\n"


def _cpu(name: str) -> str:
    """Our ops and layers on a CPU, each against its peer in the same run (`benchmarks.ops.cpu`)."""
    table = pd.read_csv(RESULTS / name)
    rows = [
        {
            "": f"{x.op}, m = {x.m}",
            "associative scan over our op": f"{x.scan_ratio:.1f}",
            "`nn.LSTM` over our layer": f"{x.lstm_ratio:.1f}",
            "our layer over its matrix products": f"{x.products_ratio:.1f}",
            "parameters of our layer": short(x.layer_params),
            "of `nn.LSTM`": short(x.lstm_params),
        }
        for x in table.itertuples()
    ]
    x = table.iloc[0]
    shapes = f"Op: B = {x.B}, T = {x['T']:,}, H = {x.H}, {x['dtype']}; layers of width and state {x.width}, float32"
    return f"{_markdown(rows)}\n{shapes}. {x.device}, {x.threads} thread(s), commit {x.commit}, {x.versions}.\n"


def _roofline(name: str) -> str:
    """Our ops on a CPU beside a copy of memory (`benchmarks.ops.cpu --roofline`)."""
    table = pd.read_csv(RESULTS / name)
    shares = [f"{dtype}_{mode}_share" for dtype in ("float32", "bfloat16") for mode in ("fwd", "both")]
    head = ["float32, forward", "both", "bfloat16, forward", "both ", "bfloat16 faster, forward", "both  "]
    rows = []
    for x in table.to_dict("records"):
        cells = [f"{x[key]:.0%}" for key in shares] + [f"{x[key]:.1f} times" for key in ("fwd_ratio", "both_ratio")]
        rows.append({"": f"{x['op']}, m = {x['m']}", **dict(zip(head, cells))})
    x = table.iloc[0]
    shape = f"B = {x.B}, T = {x['T']:,}, H = {x.H}; a copy moves {table.copy_gb_per_s.median():.0f} GB/s"
    return f"{_markdown(rows)}\n{shape}. {x.device}, {x.threads} thread(s), commit {x.commit}, {x.versions}.\n"


def _steps(name: str) -> str:
    """Where the time of a training step of each mixer goes (`benchmarks.ops.steps`)."""
    table, rows = pd.read_csv(RESULTS / name / "steps.csv"), []
    for x in table.to_dict("records"):
        shares = {part: f"{x[f'{part}_ms'] / x['step_ms']:.0%}" for part in ("data", "forward", "backward", "optimiser")}
        cells = {"mixer": f"`{x['mixer']}`", "a step over the first's": f"{x['ratio']:.2f}", **shares}
        rows.append({**cells, "matrix products": f"{x['products_share']:.0%}"})
    x = table.iloc[0]
    return f"{_markdown(rows)}\n{x.task.upper()}, preset {x.preset}. {x.device}, {x.threads} thread, commit {x.commit}.\n"


def _lm(name: str) -> str:
    """Language models of a file, best first."""
    from benchmarks.lm.report import read

    return language_models(read([RESULTS / name]))


def language_models(models: list[dict]) -> str:
    """A table of rows of language models, best first, for each text, model and training."""
    from benchmarks.lm.report import group, titles

    groups = group(models)
    return "\n".join(_language_models(rows, title) for rows, title in zip(groups, titles(groups)))


def _language_models(models: list[dict], title: str) -> str:
    from benchmarks.lm.report import rank_models, size_words, speed

    rows, lines = [], rank_models(models)
    for line in lines:
        bits = zip(line.lengths, _scores(line, "bits_per_byte"))
        row = {"mixer": _name(line), "mixer parameters": short(line["mixer_params"]), "state": grows(line)}
        row |= {f"bits per byte @{n}" if n == line.lengths[0] else f"@{n}": cell for n, cell in bits}
        row[f"perplexity @{line.lengths[0]}"] = _scores(line, "perplexity")[0]
        rows.append({**row, "seeds": str(line.seeds), "tokens/s in training": f"{speed(line):,.0f}"})
    runs = sorted((run for line in lines for run in line.runs), key=lambda run: run["finished"])
    threads, devices, commits = (
        ", ".join(dict.fromkeys(str(run[name]) for run in runs)) for name in ("threads", "device", "commit")
    )
    of = f"{title}, {size_words(lines)}, {threads} thread(s), {devices}, commit{'s' * (', ' in commits)} {commits}"
    return f"{_markdown(rows)}\n{of}.\n"


def _sizes(name: str) -> str:
    """Sizes of a preset's models, which are built without memory."""
    from benchmarks.lm.models import make_config, measure
    from benchmarks.lm.settings import load_settings

    rows, settings = [], load_settings(name)
    for entry in settings.mixers:
        sizes = measure(make_config(settings, entry, None))
        row = {"(m, H)": str(tuple(entry.mixer_config[of] for of in ("block_size", "num_blocks")))}
        row["without embeddings"] = f"{sizes.params - sizes.embedding_params:,}"
        rows.append({**row, "mixers": f"{sizes.mixer_params:,}", "state": f"{sizes.state_size:,}", "all": f"{sizes.params:,}"})
    return _markdown(rows)


def _memory(name: str) -> str:
    """What layers keep for the backward, without and with `recompute_gates` (`benchmarks.ops.memory`)."""
    table = pd.read_csv(RESULTS / name / "memory.csv")
    rows = [
        {
            "": f"`{x.layer}`",
            "parameters": f"{x.params / 1e6:.1f}M",
            "state": f"{x.state:,}",
            "bytes a token": f"{x.kept:,.0f}",
            "`recompute_gates`": "" if pd.isna(x.recomputed) else f"{x.recomputed:,.0f} ({x.recomputed / x.kept:.0%})",
            "time": "" if pd.isna(x.recomputed) else f"{x.price:.2f}",
        }
        for x in table.itertuples()
    ]
    first = table.iloc[0]
    return f"{_markdown(rows)}\nTimes on {first.device}, {first.threads} thread; {first.versions}, commit {first.commit}.\n"


def _half_lives(name: str) -> str:
    """Letters until half of a difference is left, measured and by the formula (`benchmarks.ops.half_lives`)."""
    table = pd.read_csv(RESULTS / name)

    def letters(x: float) -> str:
        return f"{x:,.0f}" if x >= 1000 else f"{x:.1f}"

    softmax = [
        {
            "softmax, d": f"{x.distance:g}",
            "measured": letters(x.measured),
            "ln 2 / -ln lambda": letters(x.formula),
            "e^d ln 2 / (m + 1)": letters(math.exp(x.distance) * math.log(2) / (x.m + 1)),
        }
        for x in table[table.gate_norm == "softmax"].itertuples()
    ]
    others = [
        {"measured (ln 2 / -ln lambda)": f"`{gate_norm}`, s = {small:g}"}
        | {f"d = {x.distance:g}": f"{letters(x.measured)} ({letters(x.formula)})" for x in part.itertuples()}
        for (gate_norm, small), part in table[table.gate_norm != "softmax"].groupby(["gate_norm", "small"], sort=False)
    ]
    x = table.iloc[0]
    note = f"Letters until half is left, m = {x.m}, {x['dtype']}. {x.device}, {x.threads} thread, commit {x.commit}."
    return f"{_markdown(softmax)}\n{_markdown(others)}\n{note}\n"


def _passes(name: str) -> str:
    """What each pass asks of an H100, predicted from executed code (`tests/ops/predict.py`)."""
    table = pd.read_csv(RESULTS / name / "predicted.csv")
    passes = {"1": "fwd_kernel_h", "3": "fwd_kernel_o", "back 1": "bwd_kernel_dh", "back 3": "bwd_kernel_dvg"}
    rows = []
    for (op, m), part in table.groupby(["op", "m"]):
        cells = []
        for kernel in passes.values():
            x = part[part.kernel.str.endswith(kernel)].iloc[0]
            times = f"{x.memory_us:.0f} / {x.issue_us:.0f} / {x.wait_us:.0f}"
            cells.append(f"{x.registers}, {x.warps}; {x.instructions_a_gate:.1f}; {times}")
        rows.append([op, str(m), str(part.chunks.iloc[0]), *cells])
    head = ["op", "m", "chunks", *(f"pass {name}" for name in passes)]
    return _markdown([dict(zip(head, cells)) for cells in rows])


def _predicted(name: str) -> str:
    """The sum of the passes, beside what an H100 was measured to take at the same shape."""
    table, measured = pd.read_csv(RESULTS / name / "predicted.csv"), pd.read_csv(RESULTS / "gpu-h100" / "gpu.csv")
    measured = measured[(measured.contender == "chunk") & (measured.dtype == "bfloat16") & (measured.channels == 1024)]
    measured = measured[(measured.B == 8) & (measured["T"] == 2048)].set_index(["op", "m", "mode"])
    rows = []
    for (op, m), part in table.groupby(["op", "m"]):
        cells = [op, str(m)]
        for mode, of in (("fwd", part[part.direction == "forward"]), ("fwd+bwd", part)):
            least, time = of.groupby("direction").least_bytes.first().sum(), of.us.sum()
            took = 1e3 * measured.ms[op, m, mode]
            cells += [f"{of.bytes.sum() / least:.2f}", f"{time:.0f}", f"{took:.0f}", f"{took / time:.2f}"]
        rows.append([*cells, f"{part.sectors_over_fewest.max():.2f}"])
    of = ["bytes over bound", "us", "measured", "ratio"]
    head = ["op", "m", *of, *(f"both: {x}" for x in of), "sectors over fewest"]
    return _markdown([dict(zip(head, cells)) for cells in rows])


def _norms(name: str) -> str:
    """Machine instructions a gate with each gate norm, both passes forward, both back (`tests/ops/predict.py --norms`)."""
    table = pd.read_csv(RESULTS / name / "norms.csv")
    ways = {"fwd": ("fwd_h", "fwd_o"), "bwd": ("bwd_dh", "bwd_dvg")}
    rows = []
    for norm in table.gate_norm.unique():
        cells = {"norm": f"`{norm}`"}
        for (op, m), part in table[table.gate_norm == norm].groupby(["op", "m"]):
            counts = part.set_index("kernel").instructions_a_gate
            cells[f"{op} {m}"] = ", ".join(f"{sum(counts[kernel] for kernel in kernels):.0f}" for kernels in ways.values())
        rows.append(cells)
    return _markdown(rows)


def _norms_cpu(name: str) -> str:
    """The op's time with each gate norm over that with softmax, on a CPU (`benchmarks.ops.norms`)."""
    table, rows = pd.read_csv(RESULTS / name / "norms.csv"), []
    for norm in table.gate_norm.unique():
        cells = {"norm": f"`{norm}`"}
        for _, row in table[table.gate_norm == norm].iterrows():
            cells[f"m = {row.m}, {row['dtype']}"] = f"{row.forward_ratio:.2f}, {row.both_ratio:.2f}"
        rows.append(cells)
    first = table.iloc[0]
    note = f"Forward, forward and backward; B={first.B}, T={first['T']}, {first.channels} channels, median of {first.repeats}."
    return f"{_markdown(rows)}\n{note} {first.device}, {first.threads} thread; commit {first.commit}.\n"


def _own_rates(name: str) -> str:
    """Mixers of one comparison that each ran at a learning rate of its own, in one table."""
    rows = list(read_folder(RESULTS / name).values())
    return _compared([(compare(rows)[0], summarise(rows))], rows, "each mixer's own {}")


def _compared(tables: list[tuple[Comparison, list[Line]]], rows: list[dict], at: str) -> str:
    # a table each, best first, of lines that ran `at` a rate
    text = ""
    for c, lines in tables:
        table = []
        for line in lines:
            row = {"mixer": _name(line), "parameters": short(line["mixer_params"]), "state": grows(line)}
            row |= {"solved": f"{line.solved} of {line.seeds}"}
            row |= {f"@{length}": cell for length, cell in zip(c.lengths, _scores(line, "token_accuracy"))}
            row |= {"lr": f"{line['lr']:g}"} | ({"decay": f"{line['weight_decay']:g}"} if c.decays else {})
            table.append({**row, "s": f"{line.seconds:.0f}"})
        text += f"{get_task(c.task).title}. {c.description}.\n\n{_markdown(table)}\n"
    devices = ", ".join(sorted({f"{row['device']}, {row['threads']} thread" for row in rows}))
    several = any(line.seeds > 1 for _, lines in tables for line in lines)
    seeds = "median and range of seeds" if several else "one seed"
    rates = at.format("rate" + " and weight decay" * any(c.decays for c, _ in tables))
    return (
        f"{text}Token accuracy at each length, {seeds}, at {rates}; solved: {SOLVED:g} or more at {tables[0][0].lengths[0]}; "
        f"s: seconds of training{', median' * several}. {devices}.\n"
    )


KINDS = {
    "norms": _norms,
    "norms-cpu": _norms_cpu,
    "half-lives": _half_lives,
    "passes": _passes,
    "predicted": _predicted,
    "memory": _memory,
    "law": _law,
    "law-counts": _law_counts,
    "depth": _depth,
    "mad": _mad,
    "rounding": _rounding,
    "lengths": _lengths,
    "start": _start,
    "headline": _headline,
    "gpu": _gpu,
    "gpu-peers": _gpu_peers,
    "gpu-layers": _gpu_layers,
    "cpu": _cpu,
    "roofline": _roofline,
    "steps": _steps,
    "lm": _lm,
    "sizes": _sizes,
    "spectra": _spectra,
    "convolution": _convolution,
    "tasks": _tasks,
    "block-sizes": _block_sizes,
    "own-rates": _own_rates,
}


def stored_table(name: str, kind: str | None = None) -> str:
    r"""The table of a folder of `benchmarks/results`, or of a file of rows in it, as Markdown: a part for each comparison.

    `kind` is a task, where the folder has several, or one of `KINDS`, another table. ValueError, if there are no results.

    Example:
        >>> from benchmarks.report.documents import stored_table
        >>> assert "| **bdlru-m4** |" in stored_table("s3-seeds")
    """
    if kind in KINDS:
        return KINDS[kind](name)
    rows = [row for row in read_folder(RESULTS / name).values() if kind in (None, row["task"])]
    return _compared([(c, c.lines) for c in compare(rows)], rows, "the {} of those tried that did best on validation data")


def fill(text: str) -> str:
    """A document with the tables between its markers as the rows are now."""
    return MARKED.sub(lambda match: f"{match[1]}{stored_table(match[2], match[3])}{match[4]}", text)


def figures() -> dict[Path, Figure]:
    """The studies' figures that are stored, by file, as the rows are now."""
    from benchmarks.studies.figures import law, mad, state_tracking

    older = _kept("tracking")[2]
    groups = {k.task for k in older}
    held = [run for k in (*older, *_kept("tracking-louder")[2]) if k.task in groups for run in k.runs]
    return {
        RESULTS / "tracking" / "state_tracking.png": state_tracking(held),
        RESULTS / "tracking" / "law.png": law(_law_rows("tracking")),
        RESULTS / "mad" / "mad.png": mad(list(read_folder(RESULTS / "mad").values())),
    }


def main() -> None:
    for path in pages():
        old = path.read_text(encoding="utf-8")
        new = fill(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    for path, figure in figures().items():
        if read_told(path) != figure.text:
            figure.draw(path)
            print(f"drew {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
