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
    assert names - set(SETTINGS) == {"variant", "mixer", "mixer_args", "mlp_width", "lr", "weight_decay", "seed"}
    letters = [letter for letter, _ in DISTINCTIONS.values()]
    assert len(set(letters)) == len(letters)


def test_words_about_a_run():
    assert CELL.title == "s3 bdlru-m1 lr 0.003 seed 0"
    assert CELL.words == "2 steps of 8 sequences, width 16, 1 block"
    other = replace(CELL, steps=1200, tokens=2048, layers=2, curriculum="adaptive", bos=True, readout_noise=0.5)
    expected = "1,200 steps of 2,048 tokens, width 16, 2 blocks, adaptive curriculum, BOS, readout noise 0.5"
    assert other.words == expected
    assert replace(other, initializer_range=0.05).words == expected.replace("BOS,", "BOS, weights of 0.05,")
