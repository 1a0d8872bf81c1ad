"""lm-evaluation-harness on a saved model, through its command line, offline: a local task file, a tiny model and tokenizer."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from fla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from usage import greedy, lively

from fla_bdlru.models import HLRUConfig, HLRUForCausalLM

ROOT = Path(__file__).parents[2]
WORDS = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 40)}}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 40, "intermediate_size": 48}
MODELS = {
    "mixer": lambda: GatedDeltaNetForCausalLM(GatedDeltaNetConfig(**SIZES, num_heads=2, head_dim=8, mixer="bdlru")),
    "native": lambda: HLRUForCausalLM(HLRUConfig(**SIZES)),
}
TASKS = {
    "choose": """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - metric: acc
""",
    "write": """
output_type: generate_until
doc_to_target: "w3"
generation_kwargs: {max_gen_toks: 4, until: ["</s>"], do_sample: false}
metric_list:
  - metric: exact_match
""",
}
COMMON = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: "{{{{text}}}}"
"""
needs_lm_eval = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm_eval is not installed: `pip install 'lm_eval[hf]'`"
)


def command(*arguments):
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-W", "ignore", "-m", "fla_bdlru.integrations.lm_eval", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=environ, timeout=280)


@pytest.fixture
def documents(tmp_path):
    """Rows whose text and choices are words, written beside the task files."""
    draw = lambda n: " ".join(f"w{i}" for i in torch.randint(3, 40, (n,)).tolist())  # noqa: E731
    rows = [{"text": draw(3 + i % 4), "choices": [draw(2), draw(1), draw(3)], "answer": i % 3} for i in range(9)]
    data = tmp_path / "documents.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(COMMON.format(name=name, file=data) + task)
    return rows


def save(name, folder):
    model = lively(MODELS[name]()).eval()
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    ).save_pretrained(folder)
    return model


def ids(text):
    return torch.tensor([[WORDS[word] for word in text.split()]])


@needs_lm_eval
@pytest.mark.parametrize("name", MODELS)
def test_a_local_task_on_a_saved_model(name, documents, tmp_path):
    """Accuracy, log-likelihoods and generated text are those of single forwards."""
    model = save(name, tmp_path / "model")
    done = command(
        "run", "--model", "hf", "--model_args", f"pretrained={tmp_path / 'model'},dtype=float32", "--tasks", "choose,write",
        "--include_path", tmp_path / "tasks", "--device", "cpu", "--batch_size", "4", "--output_path", tmp_path / "out",
        "--log_samples",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())["results"]
    samples = {
        task: [json.loads(line) for line in next((tmp_path / "out").rglob(f"samples_{task}_*")).read_text().splitlines()]
        for task in TASKS
    }

    hits = 0
    for sample in samples["choose"]:
        row = documents[sample["doc_id"]]
        scores = []
        for choice in row["choices"]:
            prompt, answer = ids(row["text"]), ids(choice)
            with torch.no_grad():
                logp = model(torch.cat([prompt, answer], 1)).logits.log_softmax(-1)[0, prompt.shape[1] - 1 : -1]
            scores.append(logp.gather(-1, answer[0][:, None]).sum().item())
        found = [float(response[0][0]) for response in sample["resps"]]
        assert found == pytest.approx(scores, abs=1e-3)
        hits += max(range(3), key=scores.__getitem__) == row["answer"]
    assert len(samples["choose"]) == 9
    assert results["choose"]["acc,none"] == pytest.approx(hits / 9)

    for sample in samples["write"]:
        x = ids(documents[sample["doc_id"]]["text"])
        generated = greedy(model, x, 4)[0, x.shape[1] :].tolist()
        words = [word for i in generated for word, number in WORDS.items() if number == i]
        expected = words[: words.index("</s>")] if "</s>" in words else words
        assert sample["resps"][0][0].split() == [word for word in expected if not word.startswith("<")]


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_without_lm_eval_it_says_what_to_install():
    done = command("run", "--help")
    assert done.returncode == 1
    assert "lm-evaluation-harness needs 'lm_eval', which is missing: `pip install 'lm_eval[hf]'`." in done.stderr
