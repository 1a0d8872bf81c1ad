import csv

import pytest
from matplotlib.figure import Figure

from benchmarks.records.store import COLUMNS, LATER_COLUMNS, read_row, read_rows, write_row


@pytest.fixture
def make_row():
    """Rows of finished runs as they are read from a results file, without the runs."""

    def make(variant, accuracy, seed=0, lr="0.003", validation=None, **more):
        row = {
            "key": f"{variant}-{lr}-{seed}-{more.get('task', 's3')}",
            "task": "s3",
            "variant": variant,
            "mixer": variant.partition("-")[0],
            "mixer_args": "{}",
            "seed": str(seed),
            "lr": lr,
            "params": "5000",
            "mixer_params": "1234",
            "state_size": "64",
            "flops_per_token": "9000",
            "eval_lengths": "32 64",
            "token_accuracy_1x": str(accuracy),
            "token_accuracy_2x": str(accuracy / 2),
            "sequence_accuracy_1x": str(accuracy / 4),
            "sequence_accuracy_2x": "0.0",
            "validation_token_accuracy": str(accuracy if validation is None else validation),
            "seconds": "10",
            "finished": "2026-11-01",
            "diverged": "False",
            "steps": "1200",
            "batch_size": "64",
            "mlp_width": "128",
            "weight_decay": "0.01",
            "train_examples": "0",
            "eval_examples": "512",
            "width": "64",
            "layers": "1",
            "lengths": "16 32",
            "matched": "params 1234",
            **more,
        }
        return read_row(row)

    return make


@pytest.fixture
def older_results(tmp_path):
    """Writes the stored quick runs on S3 as a version with fewer columns did; its rows by key."""
    stored, _ = read_rows("benchmarks/results/quick/compare.csv")
    text = {key: {**write_row(row), **dict.fromkeys(LATER_COLUMNS, "")} for key, row in stored.items() if row["task"] == "s3"}
    columns = [name for name in COLUMNS if name not in LATER_COLUMNS]
    with open(tmp_path / "compare.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(text.values())
    return {key: read_row(row) for key, row in text.items()}


@pytest.fixture
def figures(monkeypatch):
    """The figures that a test has written."""
    written, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **more: (written.append(figure), save(figure, *args, **more)))
    return written
