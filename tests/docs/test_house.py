"""The house is as its documents say: the map is the tree, tests mirror it, and what documents name exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# written by us into a clone: not a part of the house
MADE = {"results", "site", "build", "dist"}


def rooms() -> set[str]:
    """Folders of the repository that hold a file of ours; stored results and tests are one room each."""
    found = set()
    for top in ROOT.iterdir():
        if top.name in MADE or (top.name.startswith(".") and top.name != ".ci"):
            continue
        for path in top.rglob("*") if top.is_dir() and not (top / "pyvenv.cfg").exists() else ():
            folder = path.parent.relative_to(ROOT)
            ours = path.is_file() and not any(part.endswith((".egg-info", "__pycache__")) for part in folder.parts)
            whole = folder.parts[:1] if folder.parts[0] == "tests" else folder.parts[:2]
            if ours and whole in (("tests",), ("benchmarks", "results")):
                found.add("/".join(whole))
            elif ours:
                found.add(folder.as_posix())
    return found


def drawn() -> list[str]:
    """The rooms of CONTRIBUTING's map, by indentation."""
    lines = re.search(r"^## The map\n(.*?)^## ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)[1]
    found, above = [], {}
    for indent, name, _ in re.findall(r"^    ( *)([\w.]+)/ +(\S.*)$", lines, re.MULTILINE):
        depth = len(indent) // 2
        above[depth] = name
        found.append("/".join(above[i] for i in range(depth + 1)))
    return found


def test_the_map_is_the_tree():
    assert len(drawn()) == len(set(drawn()))
    assert set(drawn()) == rooms()


def test_tests_mirror_the_rooms():
    """A folder of tests is named after a room, of the package or of the repository; `gpu` is for what needs a GPU."""
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")} - {
        Path("."),
        Path("gpu"),
    }
    for folder in folders:
        assert (ROOT / "fla_bdlru" / folder).is_dir() or (ROOT / folder).is_dir(), folder


DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(p for room in rooms() for p in (ROOT / room).glob("*.md"))]
    if path.name != "CHANGELOG.md"  # it names what was
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_document_names_exists(path):
    """Links to files, and files of code by their paths (a bare name: of any room)."""
    text = path.read_text()
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (path.parent / link).exists(), f"{path.name} links to {link}"
    names = {file.name for room in rooms() | {"tests"} for file in (ROOT / room).rglob("*.py")}
    for name in re.findall(r"`((?:[\w.]+/)*\w+\.py)`", text):
        bare = "/" not in name and name in names
        assert bare or (path.parent / name).exists() or (ROOT / name).exists(), f"{path.name} names {name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_rows_of_tables_stand_below_a_head(path):
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        head, line, *rows = [*table.splitlines(), ""]
        assert re.fullmatch(r"\|(?: ?:?-+:? ?\|)+", line), f"{path.name}: no table begins with {head}"
        for row in filter(None, rows):
            assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", head)), f"{path.name}: {row}"


def test_the_table_of_pitfalls_names_tests_that_exist():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "tests" / "README.md").read_text()))
    defined = {name for path in ROOT.glob("tests/**/test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    assert len(named) > 20
    assert named <= defined
