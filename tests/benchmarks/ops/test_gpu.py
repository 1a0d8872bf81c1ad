"""The GPU benchmark, rehearsed on a CPU: its shapes, its byte counts, that it goes on where it stopped, and its pictures."""

import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks.compare.models import count_parameters
from benchmarks.ops import gpu, plots
from benchmarks.ops.cases import Case, op_cases, peer_cases, rehearsal, scan_cases
from benchmarks.ops.layers import BUDGET, MIXERS, make_layer, matrix_products
from benchmarks.ops.peers import OURS, SCANS
from benchmarks.records.store import ResultStore


def app(module):
    program = typer.Typer()
    program.command()(module.main)
    return program


@pytest.mark.parametrize("case", [Case("bdlru", 4, 2, 3, 16), Case("hlru", 4, 2, 3, 8, "float32")])
def test_bytes_are_those_of_the_tensors(case):
    """Inputs and outputs, each once; the backward also reads the outputs and their gradient."""
    _, inputs = OURS["chunk"](case, "cpu")
    v, g = inputs
    size = 4 if case.dtype == "float32" else 2
    assert all(x.dtype == getattr(torch, case.dtype) for x in inputs)
    forward = v.numel() + g.numel() + v.numel()
    backward = v.numel() + g.numel() + 2 * v.numel() + v.numel() + g.numel()
    assert case.least_bytes("fwd") == size * forward
    assert case.least_bytes("fwd+bwd") == size * (forward + backward)


def test_the_table_covers_what_it_should():
    cases = op_cases()
    assert {(c.m, c.T) for c in cases if c.op == "bdlru"} >= {(m, T) for m in (1, 2, 4, 8, 16) for T in (512, 2048, 131_072)}
    assert {c.dtype for c in cases} == {"float32", "bfloat16", "float16"}
    assert {c.m for c in cases} >= {1, 2, 3, 4, 5, 6, 8, 16}
    assert {c.channels for c in cases} >= {1024, 2048}
    assert len(set(cases)) == len(cases)
    assert all(c.channels % c.m == 0 for c in cases + peer_cases() + scan_cases() if c.op == "bdlru")
    # what a GPU of 80 GB holds: inputs, outputs and gradients
    assert max(c.least_bytes("fwd+bwd") for c in cases) < 40 * 2**30


@pytest.mark.parametrize("op", ["bdlru", "hlru"])
def test_the_scan_computes_what_ours_does(op):
    case = rehearsal(Case(op, 2, 1, 24, 8))
    ours, inputs = OURS["chunk"](case, "cpu")
    scan, _ = SCANS["associative_scan"](case, "cpu")
    v, g = (x.detach() for x in inputs)
    public = (v.transpose(2, 3), g.permute(0, 1, 4, 2, 3)) if op == "bdlru" else (v, g.transpose(2, 3))
    torch.testing.assert_close(scan(*public), ours(v, g), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MIXERS)
def test_layers_are_of_one_size(name):
    with torch.device("meta"):
        layer = make_layer(name, 1024, BUDGET, "meta")
    assert abs(count_parameters(layer) / BUDGET - 1) < 0.04


def test_small_shapes_go_round_more_inputs_than_the_cache_holds(monkeypatch):
    properties = type("Properties", (), {"L2_cache_size": 50 * 2**20})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    for case in op_cases():
        assert gpu.sets(case, "cuda") * case.least_bytes("fwd") >= 100 * 2**20
        assert gpu.sets(case, "cpu") == 1
    assert gpu.sets(Case("bdlru", 4, 8, 2048, 1024), "cuda") == 1


def test_widths_are_aligned():
    for name in ("bdlru-m4", "hlru-m4", "lstm"):
        with torch.device("meta"):
            layer = make_layer(name, 1024, BUDGET, "meta")
        assert layer.v_proj.out_features % 16 == 0 if name != "lstm" else layer.lstm.hidden_size % 16 == 0


def test_matrix_products_are_the_layers_own():
    layer = make_layer("bdlru-m4", 64, 20_000, "cpu")
    function, pairs = matrix_products(layer, 2, 3, torch.float32)
    assert sum(w.numel() for w in pairs[1::2]) == sum(x.weight.numel() for x in layer.modules() if hasattr(x, "in_features"))
    assert [tuple(y.shape) for y in function(*pairs)] == [(2, 3, w.shape[0]) for w in pairs[1::2]]


@pytest.fixture
def few(monkeypatch):
    def broken(case, device):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu, "op_cases", lambda: [Case("bdlru", 2, 8, 2048, 1024), Case("hlru", 2, 8, 2048, 1024)])
    monkeypatch.setattr(gpu, "PEERS", {"broken": broken})
    monkeypatch.setattr(gpu, "SCANS", {})
    monkeypatch.setattr(gpu, "MIXERS", {"bdlru-m2": None})


def test_a_run_is_kept_row_by_row_and_goes_on(few, tmp_path):
    call = ["--rehearse", "--out", str(tmp_path), "--commit", "abc"]
    first = CliRunner().invoke(app(gpu), [*call, "--only", "op"])
    assert first.exit_code == 0, first.output
    rows = pd.read_csv(tmp_path / "rehearsal/gpu.csv")
    times = rows[rows["note"].isna()]
    assert set(times["contender"]) == {"chunk", "fused_recurrent"}
    assert (times["ms"] > 0).all()
    assert (times["copy_fraction"] > 0).all()
    assert set(rows["commit"]) == {"abc"}
    broken = rows[rows["contender"] == "broken"]
    assert len(broken) == 2
    assert broken["note"].str.contains("RuntimeError: no such kernel").all()
    second = CliRunner().invoke(app(gpu), call)
    assert second.exit_code == 0, second.output
    both = pd.read_csv(tmp_path / "rehearsal/gpu.csv")
    assert both.iloc[: len(rows)]["finished"].tolist() == rows["finished"].tolist()
    assert both["table"].tolist()[len(rows) :] == ["layer", "layer"][: len(both) - len(rows)]


def test_one_length_is_compared_before_the_next(tmp_path, monkeypatch):
    """Ours and its peers side by side, every case once, and only those that are asked for."""
    seen = []
    monkeypatch.setattr(gpu, "rehearsal", lambda case: seen.append(case) or rehearsal(case))
    timer = gpu.Timer("cpu")
    rows = gpu.op_rows(timer, 1.0, True, lambda row: seen.append(row["contender"]) or True)
    assert not list(rows)
    plan = [(name, case) for case, name in zip(seen[::3], seen[1::3])]
    assert len(set(plan)) == len(plan)
    assert {case for name, case in plan if name == "chunk"} == set(op_cases())
    first = [name for name, case in plan if case.T == 2048 and case.beside(peer_cases()[0])]
    assert first[: first.index("chunk_hgrn")] == ["chunk"] * 9
    assert [case.T for name, case in plan if name == "chunk_hgrn"] == [case.T for case in peer_cases()]
    call = ["--rehearse", "--only", "op", "--contenders", "fused_recurrent", "--out", str(tmp_path)]
    monkeypatch.setattr(gpu, "op_cases", lambda: [Case("bdlru", 2, 8, 2048, 1024)])
    done = CliRunner().invoke(app(gpu), call)
    assert done.exit_code == 0, done.output
    assert set(pd.read_csv(tmp_path / "rehearsal/gpu.csv")["contender"]) == {"fused_recurrent"}


def test_it_stops_in_time(few, tmp_path, monkeypatch):
    clock = iter([0.0] + [1e9] * 100)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    done = CliRunner().invoke(app(gpu), ["--rehearse", "--out", str(tmp_path)])
    assert "0 rows measured" in done.output
    assert "the same command goes on" in done.output


def test_a_folder_in_use_and_a_file_of_another_kind_are_refused(few, tmp_path):
    call = ["--rehearse", "--out", str(tmp_path)]
    with ResultStore(tmp_path / "rehearsal", "gpu", gpu.COLUMNS):
        used = CliRunner().invoke(app(gpu), call, env={"COLUMNS": "400"})
    assert (used.exit_code, "is in use by another run" in used.output) == (2, True)
    (tmp_path / "rehearsal/gpu.csv").write_text("a,b\n1,2\n")
    other = CliRunner().invoke(app(gpu), call, env={"COLUMNS": "400"})
    assert (other.exit_code, "holds results with other columns" in other.output) == (2, True)


def test_without_a_gpu_it_says_what_to_do(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = CliRunner().invoke(app(gpu), ["--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "--rehearse" in done.output
    assert "expected op, layer or all" in CliRunner().invoke(app(gpu), ["--only", "x"]).output
    unknown = CliRunner().invoke(app(gpu), ["--contenders", "chunk,mamba9"])
    assert unknown.exit_code == 2
    assert "contenders='mamba9' is not known" in " ".join(unknown.output.replace("│", " ").split())


def test_pictures(tmp_path):
    """From invented rows, the columns that a run writes."""
    context = {"device": "GPU", "commit": "abc", "versions": "torch 2", "dtype": "bfloat16", "channels": 1024}
    rows = [
        {"table": "op", "contender": "chunk", "op": "bdlru", "m": m, "B": 16_384 // T, "T": T, "mode": mode, "ms": m,
         "copy_fraction": 0.5, **context}
        for m in (1, 2, 4) for T in (512, 2048) for mode in ("fwd", "fwd+bwd")
    ]  # fmt: skip
    rows.append({"table": "op", "contender": "chunk_hgrn", "B": 8, "T": 2048, "mode": "fwd+bwd", "ms": 3.0, **context})
    rows.append({"table": "layer", "contender": "lstm", "B": 8, "T": 2048, "mode": "fwd+bwd", "ms": 3.0,
                 "tokens_per_s": 5e6, **context})  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "gpu.csv", index=False)
    done = CliRunner().invoke(app(plots), [str(tmp_path / "gpu.csv"), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    for name in ("gpu-bandwidth", "gpu-peers", "gpu-layers"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    refused = CliRunner().invoke(app(plots), [str(tmp_path / "other.csv")])
    assert refused.exit_code == 2
    (tmp_path / "file").touch()
    refused = CliRunner().invoke(app(plots), [str(tmp_path / "gpu.csv"), "--out", str(tmp_path / "file" / "folder")])
    assert refused.exit_code == 2
    assert "cannot be written" in " ".join(refused.output.replace("│", " ").split())
