"""The script that tries versions: what it makes of outcomes, and the table that it writes."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("torch", "triton", "transformers", "flash-linear-attention", "numpy")


@pytest.fixture
def try_versions(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("try_versions", ROOT / "scripts" / "try_versions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_lie_within_what_the_package_asks_for(try_versions):
    """Oldest torch, pinned versions and every supported Python are among them."""
    rows, project = try_versions.ROWS, (ROOT / "pyproject.toml").read_text()
    assert try_versions.PACKAGES == VERSIONS
    assert all(len(row) == 1 + len(VERSIONS) for row in rows)
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert any(row[1:3] == (pins["torch"], pins["triton"]) for row in rows)
    oldest = re.search(r'cuda = \["torch>=([\d.]+)"', project)[1]
    assert any(row[1].startswith(oldest) for row in rows)
    assert {row[0] for row in rows} == set(re.findall(r"Python :: (3\.\d+)", project))
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(
    "code, output, expected",
    [
        (0, "....\n12 passed, 3 deselected in 2.0s", "12 passed"),
        (0, "| a | table |", "ok"),
        (1, "E   ValueError: no | good\n2 failed, 10 passed in 3s", "2 failed, 10 passed: ValueError: no / good"),
        (
            1,
            "E   ImportError: cannot import name 'a' from 'b' (/home/b.py)\nE  TypeError: x\nE  TypeError: x\n2 failed",
            "2 failed: ImportError: cannot import name 'a' from 'b'; TypeError: x",
        ),
        (1, "Traceback\nModuleNotFoundError: No module named 'x'", "fails: ModuleNotFoundError: No module named 'x'"),
        (139, "", "fails: exit code 139"),
    ],
)
def test_outcome(try_versions, code, output, expected):
    assert try_versions.outcome(code, output) == expected


@pytest.fixture
def ran(try_versions, monkeypatch):
    """Commands that a row runs, on a machine with every Python; what Triton's interpreter runs and what compiles it fail."""
    commands = []

    def run(*command, log, **variables):
        commands.append(command)
        bad = "TRITON_INTERPRET" in variables or command[1] == "tests/ops/compile_kernels.py"
        log.write_text("RuntimeError: bad" if bad else "3 passed in 1s")
        return int(bad)

    monkeypatch.setattr(try_versions, "run", run)
    monkeypatch.setattr(try_versions.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(try_versions, "torch_index", lambda gpu: ["--extra-index-url", "https://x"])
    monkeypatch.setattr(try_versions.subprocess, "check_output", lambda *_, **__: "2.7.1+cpu 3.5.1 5.6.2 0.6.0 2.3.5\n")
    return commands


def test_a_row_runs_every_check_and_keeps_what_fails(try_versions, ran, tmp_path):
    cells = try_versions.try_row(tmp_path, ("3.11", "2.7.1", "3.5.1", "5.6.2", "0.6.0", "2.3.5"))
    assert cells[:6] == ["3.11", "2.7.1+cpu", "3.5.1", "5.6.2", "0.6.0", "2.3.5"]
    assert cells[6:] == ["3 passed", "3 passed", "3 passed", "fails: RuntimeError: bad", "fails likewise"]
    make, packages, triton, *checks = ran
    assert make == ("/usr/bin/python3.11", "-m", "venv", tmp_path / "python-3.11-torch-2.7.1")
    assert {"https://x", "torch==2.7.1", "transformers==5.6.2", "flash-linear-attention==0.6.0"} <= set(packages)
    assert triton[-3:] == ("--no-deps", "triton==3.5.1", "numpy==2.3.5")
    assert len(checks) == len(try_versions.CHECKS)


def test_rows_that_cannot_be_installed_are_named_and_others_go_on(try_versions, ran, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- versions -->\n<!-- /versions -->")
    monkeypatch.setattr(try_versions, "PAGE", page)
    monkeypatch.setattr(try_versions.shutil, "which", lambda name: None if name == "python3.12" else name)
    bad, good = (next(i for i, row in enumerate(try_versions.ROWS, 1) if row[0] == version) for version in ("3.12", "3.13"))
    rows = ["--row", str(bad), "--row", str(good), "--write"]
    monkeypatch.setattr(sys, "argv", ["try_versions.py", "--folder", str(tmp_path), *rows])
    with pytest.raises(SystemExit, match=rf"^row {bad}: python3.12 is not on the PATH[^\n]*$"):
        try_versions.main()
    assert "| 3.13 | 2.7.1+cpu |" in page.read_text()
    monkeypatch.setattr(try_versions, "run", lambda *_, log: int("--no-deps" in _))
    with pytest.raises(SystemExit, match=f"row {good}: pip could not install these versions together"):
        try_versions.main()


@pytest.mark.parametrize("number", ["0", "99", "-1"])
def test_rows_that_do_not_exist(try_versions, monkeypatch, capsys, number):
    monkeypatch.setattr(sys, "argv", ["try_versions.py", f"--row={number}", "--write"])
    with pytest.raises(SystemExit):
        try_versions.main()
    assert f"argument --row: invalid choice: {number}" in capsys.readouterr().err


def test_a_row_takes_the_place_of_one_of_its_versions(try_versions, tmp_path):
    def row(number, result):
        python, torch, *others = try_versions.ROWS[number]
        return [python, f"{torch}+cpu", *others, *[result] * len(try_versions.CHECKS)]

    page, others = tmp_path / "page.md", [*["1"] * 6, *["ok"] * len(try_versions.CHECKS)]
    page.write_text("a\n<!-- versions -->\nold\n<!-- /versions -->\nb\n")
    for cells in (others, row(2, "fails: no"), row(0, "ok"), row(1, "ok"), row(2, "3 passed")):
        try_versions.write(cells, page)
    expected = [try_versions.HEAD, ["---"] * len(others), row(0, "ok"), row(1, "ok"), row(2, "3 passed"), others]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in expected)
    assert page.read_text() == f"a\n<!-- versions -->\n{table}\n<!-- /versions -->\nb\n"
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="has no <!-- versions -->"):
        try_versions.write(others, page)
    assert page.read_text() == "no marks"


def test_the_table_is_of_these_checks_and_rows(try_versions):
    after = try_versions.PAGE.read_text().partition(try_versions.MARKS[0])[2]
    lines = after.partition(try_versions.MARKS[1])[0].strip().splitlines()
    assert lines[0] == "| " + " | ".join(try_versions.HEAD) + " |"
    written = {tuple(cell.partition("+")[0] for cell in line.strip("| ").split(" | ")[:6]) for line in lines[2:]}
    assert written <= set(try_versions.ROWS)
    assert len(written) >= 10
