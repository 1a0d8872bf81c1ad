"""The page, opened in a real browser where there is one."""

import contextlib
import os
import re
import shutil

import pytest
from typer.testing import CliRunner

from benchmarks.records.store import ResultStore, read_folder
from benchmarks.records.summary import compare
from benchmarks.report import documents
from benchmarks.report.__main__ import _shade, app, make_report

# longest names and most columns that a page has to hold
ACCURACIES = {
    "lstm": (1.0, 0.9),
    "bdlru-m4": (0.95, 0.97),
    "gated_deltaproduct-neg": (0.4, 0.41),
    "attn": (0.2, 0.3),
    "hlru-m4": (0.3, 0.5),
}


@pytest.fixture
def folder(make_row, tmp_path):
    with ResultStore(tmp_path / "night") as store:
        for task in ("s3", "selective_copying", "modular_arithmetic_brackets"):
            for variant, values in ACCURACIES.items():
                for seed, value in enumerate(values):
                    more = {"task": task, "state_size": "" if variant == "attn" else "64", "versions": "torch 2.13, " * 9}
                    curve = [(step, 32, 0.01, 1.0, value * step / 100) for step in range(1, 101)]
                    store.add(make_row(variant, value, seed, **more), curve)
    return tmp_path / "night"


def test_the_page_is_self_contained(folder):
    page = make_report(folder)
    assert not re.search(r"""(src|href)=["']?(https?:|//)|@import|url\(""", page)
    assert page.count("data:image/png;base64,") == 6  # a comparison and its curves for each task
    assert "<script src" not in page


def test_numbers_on_the_page_are_medians_and_ranges(folder):
    page = make_report(folder)
    wins = page[page.index('id="table-wins"') : page.index('id="table-overview"')]
    assert "0.960" in wins  # bdlru-m4, median of 0.95 and 0.97
    assert "0.95–0.97" in wins
    assert 'data-value="0.0099' in wins or 'data-value="0.01' in wins  # ahead of lstm, 0.95
    assert "seeds overlap" in wins
    assert "grows" in page
    assert "9.0k" in page


def test_learning_curves_are_told_the_curriculum(make_row, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("benchmarks.records.plots.draw_curves", lambda *_, path, curriculum: drawn.append(curriculum))
    with ResultStore(tmp_path) as store:
        for task, more in (("s3", {}), ("s5", {"curriculum": "restarting"})):
            store.add(make_row("lstm", 0.5, task=task, **more), [(1, 32, 0.01, 1.0, 0.5)])
    page = make_report(tmp_path)
    assert drawn == ["stages", "restarting"]
    assert "the same batches where the curriculum is stages: in\nothers lengths come with each mixer's own accuracy" in page


def test_names_are_escaped(make_row, tmp_path):
    with ResultStore(tmp_path) as store:
        store.add(make_row("<script>alert(1)</script>", 0.5))
    assert "<script>alert" not in make_report(tmp_path)


def test_rows_of_an_older_file_are_shown(make_row, tmp_path):
    with ResultStore(tmp_path) as store:
        store.add(make_row("lstm", 0.5, flops_per_token="", matched=""))
    assert "not recorded" in make_report(tmp_path)


def test_the_stored_results_make_a_page():
    page = make_report("benchmarks/results")  # of the folder, its subfolder, and language models
    assert "gated_<wbr>deltaproduct-neg</span>" in page
    assert re.search(
        r'title="[^"]*lstm[^"]*">14 of 14 mixers</span>', page
    )  # memorization: a tie of all needs no fourteen lines
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    quick = "Composing permutations of three things (S3), stages curriculum, readout noise 0.0, learning rate 0.01, "
    assert f"{quick}equal parameters, 14 mixers, 1 seed" in heads
    assert len(set(heads)) == len(heads)  # told apart without a folder's name
    assert not any("quick" in head for head in heads)
    assert re.search(r'id="table-lm1">.*bits per byte @2048', page, re.DOTALL)
    tasks = ["two things", "three things", "(parity)", "(compression)"]
    places = [next(i for i, head in enumerate(heads) if task in head) for task in tasks]
    assert places == sorted(places)


def test_contents_lead_to_every_part(folder):
    page = make_report(folder)
    nav = page[page.index("<nav") : page.index("</nav>")]
    targets = re.findall(r'href="#(.*?)"', nav)
    assert targets == ["wins", "overview", "c1", "c2", "c3", "origin"]
    assert all(f'id="{target}"' in page for target in targets)
    assert page.index("<nav") < page.index("<table")


def test_nothing_learned_is_no_win(make_row, tmp_path):
    with ResultStore(tmp_path) as store:
        for variant, value in (("lstm", 0.04), ("gla", 0.03)):
            store.add(make_row(variant, value, task="s5"))
        store.add(make_row("lstm", 0.9))
    page = make_report(tmp_path)
    wins = page[page.index("<tbody>") : page.index("</tbody>")]
    rows = re.findall(r"<tr>.*?</tr>", wins, re.DOTALL)
    assert ["(S5)" in row for row in rows] == ["near guessing" in row for row in rows] == [False, False, True, True]
    assert ["lstm</span>" in row for row in rows] == [True, True, False, False]  # nobody is named where nobody learned
    assert ["1 of 2 mixers" in row for row in rows] == [True, True, False, False]


def test_two_settings_have_two_headings(make_row, tmp_path):
    with ResultStore(tmp_path) as store:
        for width in ("64", "128"):
            store.add(make_row("lstm", 0.5, width=width, key=width))
    title = "Composing permutations of three things (S3), width"
    assert re.findall(r"<h2>(.*?)</h2>", make_report(tmp_path)) == [f"{title} 64", f"{title} 128"]


def test_a_decay_is_told_where_several_were_tried(make_row, tmp_path, monkeypatch):
    """On the page and in the tables of documents; where one was, nothing is said of it."""
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    rows = [make_row(name, 0.5, weight_decay=d, key=name + d) for name in ("lstm", "gla") for d in ("0.25", "0.125")]
    with ResultStore(tmp_path) as store:
        for row in rows[::2]:
            store.add(row)
        assert "weight decay</button>" not in make_report(tmp_path)
        assert "decay" not in documents.stored_table(".")
        for row in rows:
            store.add({**row, "validation_token_accuracy": row["weight_decay"]})
    page, table = make_report(tmp_path), documents.stored_table(".")
    assert "weight decay</button>" in page
    assert page.count('data-value="0.25">0.25</td>') == 2
    assert "| lr | decay | s |" in table
    assert table.count("| 0.003 | 0.25 | 10 |") == 2
    assert "at the rate and weight decay of those tried" in table


def test_newer_rows_of_the_same_runs_do_not_tear_an_older_comparison_apart(older_results, tmp_path):
    """An older file does not say what was made equal; another file that shares its runs does."""
    shutil.copy("benchmarks/results/compare-s3-block-sizes.csv", tmp_path)
    (older,) = [c for c in compare(list(read_folder(tmp_path).values())) if not c.matched]
    assert {key for line in older.lines for key in line.keys} == set(older_results)


def test_cells_are_shaded_from_guessing_to_all_right():
    assert [_shade(accuracy, 0.5) for accuracy in (0.2, 0.5, 0.75, 1.0)] == ["0.000", "0.000", "0.275", "0.550"]


def test_comparisons_are_told_apart_by_what_people_know_and_smaller_ones_say_so(make_row, tmp_path):
    with ResultStore(tmp_path) as store:
        for budget, names in (("params 9", ("lstm", "gla", "attn")), ("params 7", ("lstm", "gla"))):
            for name in names:
                store.add(make_row(name, 0.5, matched=budget, key=name + budget, commit="" if name == "gla" else "abc"))
    page = make_report(tmp_path)
    title = "Composing permutations of three things (S3)"  # not by budgets
    assert set(re.findall(r"<h2>(.*?)</h2>", page)) == {f"{title}, {n} mixers, 1 seed" for n in (2, 3)}
    assert page.count("<small>2 of 3 mixers</small>") == 2  # at each length
    assert "<b>device</b>: not recorded</p>" in page
    assert "<b>commit</b>: abc</p>" in page


def test_command_line(folder, tmp_path):
    result = CliRunner().invoke(app, [str(folder)])
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ([str(tmp_path / "empty")], "holds no results; expected one with a compare.csv"),
        ([str(folder), "--out", str(tmp_path / "no" / "page.html")], "cannot be written"),
    ):
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
        assert result.exit_code == 2
        assert words in " ".join(result.output.replace("│", " ").split())


@contextlib.contextmanager
def open_browser():
    """Headless Chromium: playwright's own, or the system's; skips where there is neither."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as p:
        path = p.chromium.executable_path if os.path.exists(p.chromium.executable_path) else system
        if path is None:
            pytest.skip("no Chromium: run `playwright install chromium`, or install the system's package")
        # a container's root user has no sandbox
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = p.chromium.launch(executable_path=path, args=flags)
        try:
            yield browser
        finally:
            browser.close()


def column(page, table, index):
    return page.eval_on_selector_all(
        f"#{table} tbody tr", f"rows => rows.map(r => r.cells[{index}].innerText.split('\\n')[0].trim())"
    )


def click(page, table, name):
    heads = page.eval_on_selector_all(
        f"#{table} thead th", "heads => heads.map(h => h.innerText.replace(/\\s+/g, ' ').trim())"
    )
    index = next(i for i, head in enumerate(heads) if head.startswith(name))
    button = page.locator(f"#{table} thead th").nth(index).locator("button")
    button.click()
    return column(page, table, index), index


def background(page):
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (390, "dark")])
def test_the_page_opens_in_a_browser(folder, width, scheme, tmp_path):
    (tmp_path / "page.html").write_text(make_report(folder), encoding="utf-8")
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        problems, requests = [], []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "page.html").as_uri())

        tables = page.eval_on_selector_all("table", "tables => tables.map(t => t.id)")
        assert tables == ["table-wins", "table-overview", "table-c1", "table-c2", "table-c3"]
        assert all(page.eval_on_selector_all("img", "images => images.map(i => i.complete && i.naturalWidth > 500)"))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)") >= 12
        for box in page.locator(".scroll").all():  # reached and named without a mouse
            assert box.get_attribute("tabindex") == "0"
            assert box.get_attribute("role") == "region"
            assert box.get_attribute("aria-label")
        assert page.locator("table > caption").count() == len(tables)
        for table in tables:  # wider than the page or not, it scrolls in its own box
            box = page.locator(f"#{table}").locator("xpath=..").bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
        if width == 1280:  # nothing to scroll for
            boxes = page.eval_on_selector_all(".scroll", "boxes => boxes.map(b => b.scrollWidth - b.clientWidth)")
            assert max(boxes) <= 0
        for table in tables:  # accuracy is in sight without scrolling
            cell = page.locator(f"#{table} td.shaded").first.bounding_box()
            assert cell["x"] + cell["width"] <= width
        assert background(page) > 200 if scheme == "light" else background(page) < 60

        best = [f"{sum(v) / 2:.3f}" for v in ACCURACIES.values()]
        found, index = click(page, "table-c1", "token accuracy @32")
        assert found == sorted(best, reverse=True)
        head = page.locator("#table-c1 thead th").nth(index)
        assert head.get_attribute("aria-sort") == "descending"
        assert click(page, "table-c1", "token accuracy @32")[0] == sorted(best)
        assert head.get_attribute("aria-sort") == "ascending"
        assert click(page, "table-c1", "mixer")[0] == sorted(ACCURACIES)
        assert head.get_attribute("aria-sort") is None
        for _ in range(2):  # softmax attention's state grows: last, whichever way
            assert click(page, "table-c1", "state")[0][-1] == "grows"

        page.screenshot(path=tmp_path / f"page-{width}.png", full_page=True)
        assert (tmp_path / f"page-{width}.png").stat().st_size > 20_000
        assert not problems
        assert {url.split(":")[0] for url in requests} <= {"file", "data"}
