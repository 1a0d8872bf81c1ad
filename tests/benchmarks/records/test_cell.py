"""A run's fields: from a row and back, and what is made of them."""

from dataclasses import fields, replace

from small_cell import CELL

from benchmarks.records.cell import DISTINCTIONS, SETTINGS, Cell
from benchmarks.records.store import COLUMNS, read_row, write_row


def test_a_row_says_its_run():
    other = replace(CELL, mixer_args={"block_size": 2, "num_blocks": 4}, bos=True, tokens=64, readout_noise=0.5, stop_at=0.9)
    for cell in (CELL, other):
        row = read_row(write_row(vars(cell)))
        assert Cell.from_row(row) == cell
        assert Cell.from_row(row).key == cell.key


def test_every_field_is_a_column_and_tells_comparisons_apart_or_runs_of_one():
    names = {f.name for f in fields(Cell)}
    assert names < set(COLUMNS)
    assert len(set(COLUMNS)) == len(COLUMNS)
    assert names - set(SETTINGS) == {"variant", "mixer", "mixer_args", "mlp_width", "lr", "seed"}
    letters = [letter for letter, _ in DISTINCTIONS.values()]
    assert len(set(letters)) == len(letters)
