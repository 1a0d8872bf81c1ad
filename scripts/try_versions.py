"""Tries which versions of torch, Triton, transformers and FLA work together. Standard library only.

    python3 scripts/try_versions.py                        # every row, in a temporary folder; an hour and about 10 GB
    python3 scripts/try_versions.py --folder envs --row 1 --row 3 --readme

Each torch has an environment of its own in the folder; a row installs its versions there and runs the CHECKS. A row whose
result is in the folder is not run again. `--readme` puts the results into README.md's table, where rows of other versions
stay. pip's own settings apply, and TORCH_INDEX_URL, as in scripts/setup_env.py.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from setup_env import ROOT, has_nvidia_gpu, say, torch_arguments, venv_python

TOOLS = ("accelerate", "einops", "hypothesis", "numba", "psutil", "pytest>=8", "pytest-timeout")
PACKAGES = ("torch", "triton", "transformers", "flash-linear-attention", "numpy")

# torch, Triton, transformers, FLA, numpy. Oldest and newest that are supported or were out when the table was made; Triton as
# the torch of the row brings it, and others.
ROWS = [
    ("2.15.0", "3.9.0", "5.23.0", "0.6.0", "2.4.6"),
    ("2.13.0", "3.7.1", "5.23.0", "0.6.0", "2.4.6"),
    ("2.13.0", "3.7.1", "5.6.2", "0.6.0", "2.4.6"),
    ("2.13.0", "3.9.0", "5.23.0", "0.6.0", "2.4.6"),
    ("2.13.0", "3.6.0", "5.23.0", "0.6.0", "2.4.6"),
    ("2.13.0", "3.6.0", "5.23.0", "0.6.0", "2.3.5"),
    ("2.13.0", "3.5.1", "5.23.0", "0.6.0", "2.3.5"),
    ("2.7.1", "3.5.1", "5.6.2", "0.6.0", "2.3.5"),
    ("2.7.1", "3.7.1", "5.23.0", "0.6.0", "2.4.6"),
    ("2.7.1", "3.3.1", "5.6.2", "0.6.0", "2.3.5"),
]

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:warnings", "--timeout=300")
CHECKS = {
    "models": (*PYTEST, "tests/models/test_native.py", "tests/mixers/test_fla_configs.py", "-k",
               "native or TransformerConfig or GatedDeltaNetConfig"),
    "packing": (*PYTEST, "tests/mixers/test_packing.py", "-k", "collator or positions or documents"),
    "torch.compile": (*PYTEST, "tests/test_compile.py", "-k", "bdlru and (few_compilations or inductor or export)"),
    "Triton compiles": ("tests/ops/compile_kernels.py", '[{"op": "bdlru", "M": 4}]'),
    "Triton interprets": (*PYTEST, "tests/ops/triton_cases.py", "-k", "test_sizes and (3 or 4) or test_packed"),
}  # fmt: skip

MARKS = ("<!-- versions -->", "<!-- /versions -->")


def run(*command, log=None, **variables) -> int:
    """Exit code of a command whose output goes to `log`, or is shown."""
    words = [str(word) for word in command]
    say("$ " + " ".join(words))
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    stream = {} if log is None else {"stdout": log, "stderr": subprocess.STDOUT}
    return subprocess.call(words, cwd=str(ROOT), env=environ, **stream)


def install(folder: Path, row: tuple) -> Path:
    """The interpreter of an environment with the row's versions; Triton and numpy go in past what torch asks for."""
    torch, triton, transformers, fla, numpy = row
    venv = folder / f"torch-{torch}"
    python = venv_python(venv)
    if not python.exists() and run(sys.executable, "-m", "venv", venv):
        raise RuntimeError(f"no environment in {venv}")
    pip = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check")
    index = torch_arguments(has_nvidia_gpu(), sys.platform, os.environ)[:-1]
    wanted = (f"torch=={torch}", f"transformers=={transformers}", f"flash-linear-attention=={fla}", *TOOLS)
    if run(*pip, *index, *wanted) or run(*pip, "--no-deps", f"triton=={triton}", f"numpy=={numpy}"):
        raise RuntimeError("pip could not install these versions together")
    return python


def versions(python: Path) -> list:
    """What is really there, in the order of PACKAGES."""
    code = f"import importlib.metadata as m; print(*map(m.version, {PACKAGES!r}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.split()


def outcome(code: int, output: str) -> str:
    """`"12 passed"`, `"ok"`, or the first two kinds of errors, shortened and without paths."""
    if code == 0:
        counts = re.findall(r"\d+ passed", output)
        return counts[-1] if counts else "ok"
    errors = re.findall(r"^(?:E +)?((?:[\w.]+)?(?:Error|Exception|Unsupported|Timeout)\b.*)", output, re.MULTILINE)
    counts = re.findall(r"\d+ failed(?:, \d+ passed)?", output)
    reasons = dict.fromkeys(re.sub(r"\s*\(?/[\w./+-]+\)?", "", error).replace("|", "/")[:100] for error in errors)
    reason = "; ".join(list(reasons)[:2]) or f"exit code {code}"
    return f"{counts[-1] if counts else 'fails'}: {reason}"


def try_row(folder: Path, row: tuple) -> dict:
    """Versions and the outcome of every check; `RuntimeError` where the versions cannot be installed."""
    python = install(folder, row)
    results = {}
    for name, command in CHECKS.items():
        log = folder / f"{'-'.join(row)}-{name.replace(' ', '-')}.log"
        variables = {"TRITON_INTERPRET": "1"} if name == "Triton interprets" else {}
        with log.open("w") as stream:
            code = run(python, *command, log=stream, **variables)
        results[name] = outcome(code, log.read_text())
        say(f"{name}: {results[name]}")
    return {"versions": versions(python), "results": results}


def table(rows: list) -> str:
    """Markdown; a failure that a row has more than once is told once."""
    head = [*PACKAGES, *CHECKS]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = []
        for text in row["results"].values():
            cells.append("fails likewise" if ":" in text and text in cells else text)
        lines.append([*row["versions"], *cells])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def read_table(text: str) -> list:
    """The rows of a `table` of today's columns; none of another."""
    lines = [line.strip().strip("|").split(" | ") for line in text.strip().splitlines()]
    lines = [[cell.strip() for cell in line] for line in lines]
    if not lines or lines[0] != [*PACKAGES, *CHECKS]:
        return []
    size = len(PACKAGES)
    return [{"versions": line[:size], "results": dict(zip(CHECKS, line[size:]))} for line in lines[2:]]


def merge(rows: list, new: list) -> list:
    """`rows` with `new` ones in the place of those of the same versions (builds such as +cpu aside), in the order of ROWS."""

    def key(row):
        return tuple(version.partition("+")[0] for version in row["versions"])

    order = {row: number for number, row in enumerate(ROWS)}
    merged = {key(row): row for row in [*rows, *new]}
    return [merged[found] for found in sorted(merged, key=lambda found: order.get(found, len(ROWS)))]


def write_readme(rows: list, readme: Path = ROOT / "README.md") -> None:
    """Puts rows into the table between the marks; those of other versions stay."""
    before, _, rest = readme.read_text().partition(MARKS[0])
    old, found, after = rest.partition(MARKS[1])
    if not found:
        raise SystemExit(f"{readme} has no {MARKS[0]} ... {MARKS[1]} to put the table between.")
    text = table(merge(read_table(old), rows))
    readme.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where environments and results are kept (default: a temporary folder)")
    parser.add_argument("--row", type=int, action="append", help="number of a row, from 1; may be repeated (default: all)")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--readme", action="store_true", help="put the results into the table of README.md")
    options = parser.parse_args()
    if options.list:
        for number, row in enumerate(ROWS, 1):
            print(number, *(f"{name}=={version}" for name, version in zip(PACKAGES, row)))
        return
    numbers = options.row or range(1, len(ROWS) + 1)
    unknown = [number for number in numbers if not 1 <= number <= len(ROWS)]
    if unknown:
        parser.error(f"--row {unknown[0]} is not accepted; expected a number from 1 to {len(ROWS)} (--list shows them).")
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        found = []
        for number, row in enumerate(ROWS, 1):
            result = folder / f"{'-'.join(row)}.json"
            if not result.exists() and number in numbers:
                try:
                    result.write_text(json.dumps(try_row(folder, row)))
                except RuntimeError as error:  # a network's, perhaps: the next call tries again
                    failed.append(f"row {number}: {error}")
            if result.exists():
                found.append(json.loads(result.read_text()))
    print(table(found))
    if options.readme:
        write_readme(found)
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
