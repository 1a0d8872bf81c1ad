"""Tries which versions of Python, torch, Triton, transformers and FLA work together. Standard library only.

    python3 scripts/try_versions.py                          # every row, in a temporary folder: an hour and about 10 GB
    python3 scripts/try_versions.py --folder envs --row 1 --row 3 --write

Each Python and torch have an environment of their own in the folder; a row installs its versions there and runs the CHECKS.
`--write` puts each row into the table as it ends; rows of other versions stay there. A row's Python has to be on the PATH;
pip's own settings apply, and TORCH_INDEX_URL, as in scripts/setup_env.py.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from setup_env import ROOT, has_gpu, torch_index

TOOLS = ("accelerate", "einops", "hypothesis", "numba", "psutil", "pytest>=8", "pytest-timeout")
PACKAGES = ("torch", "triton", "transformers", "flash-linear-attention", "numpy")

# Python and PACKAGES. Oldest and newest that are supported or were out when the table was made; Triton as the torch of the row
# brings it, and others.
ROWS = [
    ("3.11", "2.13.0", "3.7.1", "5.24.0", "0.6.0", "2.4.6"),
    ("3.11", "2.15.0", "3.9.0", "5.23.0", "0.6.0", "2.4.6"),
    ("3.11", "2.14.1", "3.8.0", "5.24.0", "0.6.0", "2.4.6"),
    ("3.11", "2.12.1", "3.7.1", "5.24.0", "0.6.0", "2.4.6"),
    ("3.11", "2.11.0", "3.6.0", "5.24.0", "0.6.0", "2.3.5"),
    ("3.11", "2.10.0", "3.6.0", "5.24.0", "0.6.0", "2.3.5"),
    ("3.11", "2.9.1", "3.5.1", "5.24.0", "0.6.0", "2.3.5"),
    ("3.11", "2.8.0", "3.5.1", "5.24.0", "0.6.0", "2.3.5"),
    ("3.11", "2.13.0", "3.7.1", "5.23.0", "0.6.0", "2.4.6"),
    ("3.11", "2.13.0", "3.7.1", "5.6.2", "0.6.0", "2.4.6"),
    ("3.11", "2.13.0", "3.9.0", "5.23.0", "0.6.0", "2.4.6"),
    ("3.11", "2.13.0", "3.6.0", "5.23.0", "0.6.0", "2.4.6"),
    ("3.11", "2.13.0", "3.6.0", "5.23.0", "0.6.0", "2.3.5"),
    ("3.11", "2.13.0", "3.5.1", "5.23.0", "0.6.0", "2.3.5"),
    ("3.11", "2.13.0", "3.7.1", "5.23.0", "0.6.0", "1.26.4"),
    ("3.11", "2.13.0", "3.7.1", "5.23.0", "0.6.0", "1.23.5"),
    ("3.11", "2.7.1", "3.5.1", "5.6.2", "0.6.0", "2.3.5"),
    ("3.11", "2.7.1", "3.7.1", "5.23.0", "0.6.0", "2.4.6"),
    ("3.11", "2.7.1", "3.3.1", "5.6.2", "0.6.0", "2.3.5"),
    ("3.10", "2.13.0", "3.7.1", "5.20.2", "0.6.0", "2.2.6"),
    ("3.12", "2.13.0", "3.7.1", "5.23.0", "0.6.0", "2.4.6"),
    ("3.13", "2.13.0", "3.7.1", "5.23.0", "0.6.0", "2.4.6"),
    ("3.14", "2.13.0", "3.7.1", "5.23.0", "0.6.0", "2.4.6"),
]

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:warnings", "--timeout=300")
CHECKS = {
    "models": (*PYTEST, "tests/models/test_native.py", "tests/mixers/test_cache_name.py", "tests/mixers/test_fla_configs.py",
               "-k", "native or cache_name or TransformerConfig or GatedDeltaNetConfig"),
    "packing": (*PYTEST, "tests/mixers/test_packing.py", "-k", "collator or positions or documents"),
    "torch.compile": (*PYTEST, "tests/test_compile.py", "tests/fla_cpu/test_models.py",
                      "-k", "bdlru and (few_compilations or inductor or export) or compiled_models"),
    "Triton compiles": ("tests/ops/compile_kernels.py", '[{"op": "bdlru", "M": 4}]'),
    "Triton interprets": (*PYTEST, "tests/ops/triton_cases.py", "-k", "test_sizes and (3 or 4) or test_packed"),
}  # fmt: skip
HEAD = ("Python", *PACKAGES, *CHECKS)
PAGE, MARKS = ROOT / "docs" / "start.md", ("<!-- versions -->\n", "<!-- /versions -->")


def run(*command, log: Path, **variables) -> int:
    """Exit code of a command whose output goes to `log`."""
    words = [*map(str, command)]
    print("$", *words, flush=True)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    with log.open("w") as stream:
        return subprocess.call(words, cwd=ROOT, env=environ, stdout=stream, stderr=subprocess.STDOUT)


def outcome(code: int, output: str) -> str:
    """`"12 passed"`, `"ok"`, or the first two kinds of errors, shortened and without paths."""
    if code == 0:
        return (re.findall(r"\d+ passed", output) or ["ok"])[-1]
    errors = re.findall(r"^(?:E +)?((?:[\w.]+)?(?:Error|Exception|Unsupported|Timeout)\b.*)", output, re.MULTILINE)
    reasons = dict.fromkeys(re.sub(r"\s*\(?/[\w./+-]+\)?", "", error).replace("|", "/")[:100] for error in errors)
    counts = re.findall(r"\d+ failed(?:, \d+ passed)?", output) or ["fails"]
    return f"{counts[-1]}: {'; '.join([*reasons][:2]) or f'exit code {code}'}"


def try_row(folder: Path, row: tuple) -> list:
    """The row's cells: what is really installed, and the outcome of every check; a failure is told once.

    Raises:
        RuntimeError: where the versions cannot be installed, now or at all.
    """
    version, *pins = row
    torch, triton, transformers, fla, numpy = map("==".join, zip(PACKAGES, pins))
    venv, log = folder / f"python-{version}-torch-{pins[0]}", folder / f"{'-'.join(row)}.log"
    python, base = venv / "bin" / "python", shutil.which(f"python{version}")
    if not python.exists() and (base is None or run(base, "-m", "venv", venv, log=log)):
        raise RuntimeError(f"python{version} is not on the PATH, or makes no environment")
    pip = (python, "-m", "pip", "install", "--disable-pip-version-check")
    past_torch = ("--no-deps", triton, numpy)  # whatever torch asks for
    if run(*pip, *torch_index(has_gpu()), torch, transformers, fla, *TOOLS, log=log) or run(*pip, *past_torch, log=log):
        raise RuntimeError(f"pip could not install these versions together; {log} says why")
    code = f"import importlib.metadata as m; print(*map(m.version, {PACKAGES!r}))"
    cells = [version, *subprocess.check_output([python, "-c", code], text=True).split()]
    for name, command in CHECKS.items():
        log = folder / f"{'-'.join(row)}-{name.replace(' ', '-')}.log"
        variables = {"TRITON_INTERPRET": "1"} if name == "Triton interprets" else {}
        found = outcome(run(python, *command, log=log, **variables), log.read_text())
        cells.append("fails likewise" if ":" in found and found in cells else found)
    return cells


def write(cells: list, page: Path) -> None:
    """Puts a row into the table between the page's marks, in the order of ROWS; builds such as +cpu are one version."""
    before, _, rest = page.read_text().partition(MARKS[0])
    old, found, after = rest.partition(MARKS[1])
    if not found:
        raise SystemExit(f"{page} has no {''.join(MARKS)} to put the table between.")
    head, *rows = [line.strip("| ").split(" | ") for line in old.splitlines()] or [[]]
    rows = [*rows[1:], cells] if head == [*HEAD] else [cells]
    table = {tuple(cell.partition("+")[0] for cell in row[: len(ROWS[0])]): row for row in rows}
    rows = (table[row] for row in dict.fromkeys((*ROWS, *table)) if row in table)
    lines = ("| " + " | ".join(row) + " |\n" for row in (HEAD, ["---"] * len(HEAD), *rows))
    page.write_text("".join((before, MARKS[0], *lines, MARKS[1], after)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where environments and logs are kept (default: a temporary folder)")
    parser.add_argument("--row", type=int, action="append", choices=range(1, len(ROWS) + 1), metavar="N",
                        help=f"number of a row of ROWS, 1 to {len(ROWS)}; may be repeated (default: all)")  # fmt: skip
    parser.add_argument("--write", action="store_true", help="put each row into the table between the marks of its page")
    options, failed = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for number in options.row or range(1, len(ROWS) + 1):
            try:
                cells = try_row(folder, ROWS[number - 1])
            except RuntimeError as error:
                failed.append(f"row {number}: {error}")
                continue
            print(*cells, sep=" | ")
            if options.write:
                write(cells, PAGE)
    sys.exit("\n".join(failed) or 0)


if __name__ == "__main__":
    main()
