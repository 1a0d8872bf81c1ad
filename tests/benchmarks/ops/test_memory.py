"""What layers keep for the backward: counted in the code of a GPU, and what the stored rows say."""

import pandas as pd
import pytest
from triton.runtime.jit import JITFunction

from benchmarks.ops import memory
from benchmarks.report.documents import RESULTS


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for name, value in (("WIDTH", 256), ("BUDGET", 2**18), ("TOKENS", 64)):
        monkeypatch.setattr(memory, name, value)


def test_ours_is_counted_by_hand():
    launch, row = JITFunction.run, memory.measure("bdlru-m8", turns=1)
    assert JITFunction.run is launch
    # input, v, gates, o in bfloat16; one chunk has no carries
    assert row["kept"] == 2 * (256 + 11 * row["state"])
    assert row["recomputed"] == 2 * (256 + 2 * row["state"])


@pytest.mark.parametrize("name", memory.PEERS)
def test_peers_keep_their_input_and_more(name):
    row = memory.measure(name, turns=1)
    assert 4 * 2 * 256 < row["kept"] < 20 * 2 * 256
    assert "recomputed" not in row


def test_the_stored_rows_hold_what_is_claimed():
    rows = pd.read_csv(RESULTS / "memory" / "memory.csv", index_col="layer")
    assert {*memory.OURS, *memory.PEERS} == set(rows.index)
    assert rows.loc["bdlru-m8", "recomputed"] <= rows.loc["bdlru-m8", "kept"] / 2
    assert rows.loc["bdlru-m8", "price"] <= 1.3
