"""The script that tries versions: what it makes of outcomes, and the table that it puts into README."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "try_versions.py"


@pytest.fixture
def try_versions(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("try_versions", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_lie_within_what_the_package_asks_for(try_versions):
    """Oldest torch and pinned versions are among them; every row has a version of each package."""
    assert all(len(row) == len(try_versions.PACKAGES) for row in try_versions.ROWS)
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert any(row[:2] == (pins["torch"], pins["triton"]) for row in try_versions.ROWS)
    oldest = re.search(r'cuda = \["torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert any(row[0].startswith(oldest) for row in try_versions.ROWS)
    assert len(set(try_versions.ROWS)) == len(try_versions.ROWS)


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


def test_a_row_runs_every_check_and_keeps_what_fails(try_versions, tmp_path, monkeypatch):
    ran = []

    def run(*command, log=None, **variables):
        ran.append((command, variables))
        if log is not None:
            log.write("E  RuntimeError: bad\n1 failed in 1s" if "TRITON_INTERPRET" in variables else "3 passed in 1s")
        return int("TRITON_INTERPRET" in variables)

    monkeypatch.setattr(try_versions, "run", run)
    monkeypatch.setattr(try_versions, "versions", lambda python: ["2.7.1+cpu", "3.5.1", "5.6.2", "0.6.0", "2.3.5"])
    monkeypatch.setattr(try_versions, "has_nvidia_gpu", lambda: False)
    row = ("2.7.1", "3.5.1", "5.6.2", "0.6.0", "2.3.5")
    found = try_versions.try_row(tmp_path, row)
    assert [name for name, text in found["results"].items() if text == "3 passed"] == list(try_versions.CHECKS)[:-1]
    assert found["results"]["Triton interprets"] == "1 failed: RuntimeError: bad"
    make, packages, triton, *checks = (command for command, _ in ran)
    assert "venv" in make
    assert {"torch==2.7.1", "transformers==5.6.2", "flash-linear-attention==0.6.0"} <= set(packages)
    assert triton[-3:] == ("--no-deps", "triton==3.5.1", "numpy==2.3.5")
    assert len(checks) == len(try_versions.CHECKS)

    monkeypatch.setattr(try_versions, "run", lambda *_, **__: 1)
    with pytest.raises(RuntimeError, match=r"no environment in .*torch-2.7.1"):
        try_versions.try_row(tmp_path, row)


def test_rows_that_cannot_be_installed_are_tried_again(try_versions, tmp_path, monkeypatch):
    def install(folder, row):
        tried.append(row)
        raise RuntimeError("pip could not install these versions together")

    tried = []
    monkeypatch.setattr(try_versions, "install", install)
    monkeypatch.setattr(sys, "argv", ["try_versions.py", "--folder", str(tmp_path), "--row", "2"])
    for _ in range(2):
        with pytest.raises(SystemExit, match="row 2: pip could not install"):
            try_versions.main()
    assert tried == [try_versions.ROWS[1]] * 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", ["0", "99", "-1"])
def test_rows_that_do_not_exist(try_versions, monkeypatch, capsys, number):
    monkeypatch.setattr(sys, "argv", ["try_versions.py", "--row", number, "--readme"])
    with pytest.raises(SystemExit):
        try_versions.main()
    assert f"--row {number} is not accepted; expected a number from 1 to" in capsys.readouterr().err


def test_rows_of_other_versions_stay_in_the_table(try_versions, tmp_path):
    def row(number, result):
        torch, *others = try_versions.ROWS[number]
        return {"versions": [f"{torch}+cpu", *others], "results": dict.fromkeys(try_versions.CHECKS, result)}

    readme, old = tmp_path / "README.md", [row(0, "ok"), row(2, "fails: no"), {**row(1, "ok"), "versions": ["1"] * 5}]
    readme.write_text(f"a\n<!-- versions -->\n{try_versions.table(old)}\n<!-- /versions -->\nb\n")
    try_versions.write_readme([], readme)
    assert try_versions.table(old) in readme.read_text()
    new = [row(1, "2 passed"), {**row(2, "3 passed"), "versions": list(try_versions.ROWS[2])}]
    try_versions.write_readme(new, readme)
    assert readme.read_text() == (
        f"a\n<!-- versions -->\n{try_versions.table([old[0], *new, old[2]])}\n<!-- /versions -->\nb\n"
    )


def test_the_table_goes_between_the_marks(try_versions, tmp_path):
    rows = [{"versions": ["2.13.0", "3.7.1", "5.23.0", "0.6.0", "2.4.6"], "results": dict.fromkeys(try_versions.CHECKS, "ok")}]
    text = try_versions.table(rows)
    assert text.splitlines()[2].startswith("| 2.13.0 | 3.7.1 | 5.23.0 | 0.6.0 | 2.4.6 | ok |")
    failing = dict.fromkeys(try_versions.CHECKS, "fails: ValueError: no") | {"packing": "ok"}
    last = try_versions.table([{"versions": ["x"] * 5, "results": failing}]).splitlines()[-1]
    assert last.endswith("| fails: ValueError: no | ok | fails likewise | fails likewise | fails likewise |")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- versions -->\nold\n<!-- /versions -->\nafter\n")
    for _ in range(2):
        try_versions.write_readme(rows, readme)
        assert readme.read_text() == f"before\n<!-- versions -->\n{text}\n<!-- /versions -->\nafter\n"
    readme.write_text("no marks")
    with pytest.raises(SystemExit, match="has no <!-- versions -->"):
        try_versions.write_readme(rows, readme)
    assert readme.read_text() == "no marks"


def test_readme_holds_a_table_of_these_checks(try_versions):
    after = (ROOT / "README.md").read_text().partition(try_versions.MARKS[0])[2]
    head = after.partition(try_versions.MARKS[1])[0].strip().splitlines()[0]
    assert head == try_versions.table([]).splitlines()[0]
