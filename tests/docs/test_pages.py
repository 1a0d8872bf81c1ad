"""README and docs: their snippets run, their tables are the stored rows, the errors they explain are ours."""

import ast
import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
from fresh import ROOT, run_fresh

from benchmarks.records.style import read_told
from benchmarks.report.documents import KINDS, MARKED, figures, fill, pages

README = ROOT / "README.md"
# ```python and ```bash are run; ```sh is only shown: it takes long, or needs a network, a GPU or several processes
SNIPPET = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OPTIONAL = ("mamba_ssm", "peft", "lm_eval")


def snippets(path: Path) -> list[tuple[str, str]]:
    """(language, code) in order, without those that need a package that is not here."""
    missing = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    return [found for found in SNIPPET.findall(path.read_text()) if not any(name in found[1] for name in missing)]


def follow(parts: list[tuple[str, str]], folder: Path) -> None:
    """Runs the parts in order in one fresh process, in an empty folder, on one thread, without a network."""
    lines = {
        "python": "exec(compile({code!r}, 'snippet {i}', 'exec'))",
        "bash": "__import__('subprocess').run(['bash', '-euc', {code!r}], check=True)",
    }
    script = "\n".join(lines[language].format(code=code, i=i) for i, (language, code) in enumerate(parts))
    environ = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / ".huggingface"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    run_fresh("-c", script, cwd=folder, env=environ)


@pytest.mark.parametrize("path", [p for p in sorted((ROOT / "docs").glob("*.md")) if snippets(p)], ids=lambda path: path.stem)
def test_a_page_is_followed_from_top_to_bottom(path, tmp_path):
    follow(snippets(path), tmp_path)


@pytest.mark.parametrize("i", range(len(snippets(README))))
def test_a_snippet_of_readme_stands_alone(i, tmp_path):
    follow([snippets(README)[i]], tmp_path)


def test_readme_is_one_screen():
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1200
    assert len(snippets(README)) >= 2


@pytest.mark.parametrize("path", [path for path in pages() if MARKED.search(path.read_text())], ids=lambda path: path.name)
def test_tables_are_the_stored_rows(path):
    """`python -m benchmarks.report.documents` would change nothing."""
    assert fill(path.read_text()) == path.read_text()


def test_figures_of_studies_are_the_stored_rows():
    """Each tells what the rows do, and stands on a page; `python -m benchmarks.report.documents` would draw none."""
    text = "".join(path.read_text() for path in pages())
    for path, figure in figures().items():
        assert read_told(path) == figure.text, path
        assert f"{path.relative_to(ROOT)})" in text


def test_some_pages_have_tables():
    assert {path.name for path in pages() if MARKED.search(path.read_text())} >= {"README.md", "results.md"}
    text = "".join(path.read_text() for path in pages())
    assert all(f" {kind} -->" in text for kind in KINDS)


def test_errors_of_troubleshooting_are_in_the_code():
    """The first column quotes our messages: the pieces between `...` are in one string of the code."""
    strings = []
    for path in (*(ROOT / "fla_bdlru").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                strings.append("...".join(part.value for part in node.values if isinstance(part, ast.Constant)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
    quoted = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 20
    for message in quoted:
        pieces = [piece.strip(" ,.") for piece in message.split("...")]
        assert any(all(piece in text for piece in pieces) for text in strings), message
