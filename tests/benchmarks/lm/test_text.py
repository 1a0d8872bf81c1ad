"""Text: what is in it, how it is split and tokenised, and what is said when it cannot be had."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.lm import text
from benchmarks.lm.settings import Data
from benchmarks.lm.text import Blocks, Windows, built_in_documents, prepare


def decode(tokens):
    return [part.decode() for part in tokens.astype(np.uint8).tobytes().split(b"\0")[:-1]]


@pytest.mark.parametrize("name, least", [("pydoc", 300_000), ("stdlib", 3_000_000)])
def test_built_in_texts_are_whole_and_in_a_fixed_order(name, least):
    documents = built_in_documents(name)
    assert sum(map(len, documents)) > least
    assert documents == built_in_documents(name)
    assert all("\0" not in document for document in documents)
    if name == "stdlib":
        assert Path(json.__file__).parent.with_name("argparse.py").read_text() in documents


def test_the_split_keeps_documents_whole_and_apart(tmp_path):
    corpus = prepare(Data("pydoc", validation_tokens=50_000), 10**9, tmp_path)
    documents = built_in_documents("pydoc")
    validation, train = decode(corpus.validation), decode(corpus.train)
    assert validation + train == documents
    assert len("".join(validation[:-1]).encode()) < 50_000 <= len(corpus.validation)
    assert corpus.documents == len(documents)
    assert corpus.vocab_size == 256
    assert corpus.validation_bytes == len(corpus.validation)
    assert corpus.bytes_per_token == 1


def test_training_tokens_are_limited_and_the_start_is_the_same(tmp_path):
    data = Data("pydoc", validation_tokens=50_000)
    few, many = prepare(data, 12_345, tmp_path), prepare(data, 23_456, tmp_path)
    assert (len(few.train), len(many.train)) == (12_345, 23_456)
    assert (few.train == many.train[:12_345]).all()
    assert (few.validation == many.validation).all()
    assert few.digest != many.digest


def test_a_prepared_text_is_not_prepared_again(tmp_path, monkeypatch):
    data = Data("pydoc", validation_tokens=50_000)
    first = prepare(data, 1000, tmp_path)
    monkeypatch.setattr(text, "_write", None)
    again = prepare(data, 1000, tmp_path)
    assert again.digest == first.digest
    assert (again.train == first.train).all()


def test_a_text_that_was_cut_short_is_prepared_again(tmp_path, monkeypatch):
    data = Data("pydoc", validation_tokens=50_000)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(text.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(data, 1000, tmp_path)
    assert len(prepare(data, 1000, tmp_path).train) == 1000


def test_too_short_a_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.validation_tokens=1,000,000,000 leaves nothing to train on: 'pydoc' has"):
        prepare(Data("pydoc", validation_tokens=10**9), 1000, tmp_path)


def test_blocks_tile_the_stream():
    tokens = np.arange(107, dtype=np.uint16)
    blocks = Blocks(tokens, 10, multiple=4)
    assert len(blocks) == 8
    assert torch.cat([blocks[i]["input_ids"] for i in range(8)]).tolist() == list(range(80))
    assert blocks[3]["labels"].tolist() == blocks[3]["input_ids"].tolist()
    with pytest.raises(ValueError, match=r"data\.length=10: the text has 107 tokens, too few for a batch of 11"):
        Blocks(tokens, 10, multiple=11)


@pytest.mark.parametrize("length", [1, 3, 12, 24])
def test_windows_score_the_same_targets_whatever_their_length(length):
    tokens = np.arange(100, 130, dtype=np.uint16)
    windows = Windows(tokens, length, 24)
    inputs, targets = (torch.cat(parts) for parts in zip(*(windows[i] for i in range(len(windows)))))
    assert inputs.tolist() == list(range(100, 124))
    assert targets.tolist() == list(range(101, 125))


@pytest.fixture
def tokenizer(tmp_path):
    """A small tokenizer of transformers on disk: words, with an end-of-text token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "<eos>", "one", "two", "three"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "tokenizer"
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def json_lines(tmp_path):
    path = tmp_path / "documents.jsonl"
    documents = ["one two", "two three three", "three", "one one one one"]
    path.write_text("\n".join(json.dumps({"text": document, "number": i}) for i, document in enumerate(documents)))
    return str(path)


def test_a_hugging_face_dataset_and_tokenizer(tmp_path, tokenizer, json_lines):
    pytest.importorskip("datasets")
    data = Data("json", files=json_lines, tokenizer=tokenizer, validation_tokens=4)
    corpus = prepare(data, 100, tmp_path / "text")
    assert corpus.validation.tolist() == [2, 3, 1, 3, 4, 4, 1]  # two whole documents, each with its end
    assert corpus.train.tolist() == [4, 1, 2, 2, 2, 2, 1]
    assert corpus.vocab_size == 5
    assert corpus.bytes_per_token == len("one two" + "two three three") / 7


def test_a_wrong_column_is_named(tmp_path, json_lines):
    pytest.importorskip("datasets")
    for column in ("body", "number"):
        with pytest.raises(ValueError, match=rf"data\.column='{column}' is no column of text.*text, number"):
            prepare(Data("json", files=json_lines, column=column), 100, tmp_path / "text")


def test_a_dataset_that_cannot_be_had_is_refused_with_a_way_out(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(ValueError, match=r"data\.dataset='nobody/nothing'.*cannot be read.*built-in text: pydoc, stdlib"):
        prepare(Data("nobody/nothing"), 100, tmp_path)


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"'fineweb' is not a built-in text \(pydoc, stdlib\).*pip install datasets"):
        prepare(Data("fineweb"), 100, tmp_path)
    assert len(prepare(Data("pydoc", validation_tokens=1000), 100, tmp_path).train) == 100


def test_a_tokenizer_that_cannot_be_had_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)data\.tokenizer='nobody/nothing' cannot be loaded.*'bytes' or a local folder"):
        prepare(Data("pydoc", tokenizer="nobody/nothing"), 100, tmp_path)


def test_an_edited_file_is_prepared_anew(tmp_path, json_lines):
    pytest.importorskip("datasets")
    data = Data("json", files=json_lines, validation_tokens=4)
    first = prepare(data, 100, tmp_path / "text")
    Path(json_lines).write_text(Path(json_lines).read_text().replace("one one one one", "two two two two"))
    second = prepare(data, 100, tmp_path / "text")
    assert first.digest != second.digest
    assert decode(second.train)[-1] == "two two two two"


def test_a_row_without_text_is_named(tmp_path):
    pytest.importorskip("datasets")
    path = tmp_path / "documents.jsonl"
    path.write_text('{"text": "one"}\n{"text": null}\n{"text": "two"}\n')
    with pytest.raises(ValueError, match=r"data\.column='text': row 2 of 'json' holds None; expected text"):
        prepare(Data("json", files=str(path), validation_tokens=1), 100, tmp_path / "text")


@pytest.fixture
def own_text(tmp_path):
    """A folder of two files, and hidden ones."""
    folder = tmp_path / "own"
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt").write_text("".join(f"line {i}\n" for i in range(50)))
    (folder / "b" / "c.md").write_text("".join(f"zeile {i} äöü\n" for i in range(50)))
    (folder / ".git").write_bytes(b"\xff\xfe")
    return folder


def test_own_text_is_one_stream_whose_last_tenth_is_for_validation(tmp_path, own_text):
    whole = (own_text / "a.txt").read_text() + "\n" + (own_text / "b" / "c.md").read_text()
    corpus = prepare(Data(text=str(own_text)), 10**6, tmp_path / "text")
    (train,), (validation,) = decode(corpus.train), decode(corpus.validation)
    assert train + validation == whole
    assert validation.startswith("zeile")
    assert 0.8 < 10 * len(validation) / len(whole) <= 1
    assert corpus.bytes_per_token == 1
    short = prepare(Data(text=str(own_text), validation_tokens=20), 10**6, tmp_path / "text")
    assert 0 < len(short.validation) <= 21
    (own_text / "a.txt").write_text("another beginning\n" + (own_text / "a.txt").read_text())
    assert prepare(Data(text=str(own_text)), 10**6, tmp_path / "text").digest != corpus.digest


def test_own_text_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"text='.*none\.txt' cannot be read: No such file.*a folder of them"):
        text.read_text(Data(text=str(tmp_path / "none.txt")))
    (tmp_path / "image.png").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match=r"image\.png' cannot be read: it is not UTF-8 \(invalid start byte at byte 3\)"):
        text.read_text(Data(text=str(tmp_path)))
    (tmp_path / "image.png").write_text(" \n")
    with pytest.raises(ValueError, match=r"text='.*' holds no text"):
        text.read_text(Data(text=str(tmp_path)))
