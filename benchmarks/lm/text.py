"""Text that every Python has, one's own, or a Hugging Face dataset, as files of tokens that every process maps into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch.utils.data import Dataset

from benchmarks.lm.settings import Data

BYTES = "bytes"
SEPARATOR = 0  # ends a document of bytes; text has no NUL
BATCH = 256  # documents that are tokenised at a time


def _pydoc() -> dict[str, str]:
    from pydoc_data.topics import topics

    return topics


def _stdlib() -> dict[str, str]:
    folder = Path(sysconfig.get_path("stdlib"))
    files = [folder / f"{name}.py" for name in sys.stdlib_module_names]
    return {file.stem: file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()}


# `pydoc`: the topics of Python's help(); `stdlib`: the source of the standard library's modules that are one file
BUILT_IN: dict[str, Callable[[], dict[str, str]]] = {"pydoc": _pydoc, "stdlib": _stdlib}


def built_in_documents(name: str) -> list[str]:
    """Documents of a built-in text, in an order that their titles alone decide (by digest, so that kinds are mixed)."""
    texts = BUILT_IN[name]()
    return [texts[title] for title in sorted(texts, key=lambda title: hashlib.sha256(title.encode()).digest())]


def _hub_documents(data: Data) -> Iterator[str]:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"data.dataset={data.dataset!r} is not a built-in text ({', '.join(BUILT_IN)}), and other datasets need the "
            "package `datasets`: pip install datasets (it is the extra `lm`)."
        ) from None
    try:
        rows = datasets.load_dataset(data.dataset, data.name, data_files=data.files, split=data.split, streaming=True)
        first = next(iter(rows), None)
    except Exception as error:  # the package raises many kinds: no network, no such dataset, configuration, split or file
        raise ValueError(
            f"data.dataset={data.dataset!r} (name={data.name!r}, split={data.split!r}) cannot be read: "
            f"{type(error).__name__}: {error} Without a network, use a built-in text: {', '.join(BUILT_IN)}."
        ) from None
    if first is None or not isinstance(first.get(data.column), str):
        found = "no rows" if first is None else f"the columns {', '.join(first)}"
        raise ValueError(f"data.column={data.column!r} is no column of text in {data.dataset!r}, which has {found}.")
    return _checked(rows, data)


def _checked(rows: Iterable[dict], data: Data) -> Iterator[str]:
    for number, row in enumerate(rows, 1):
        text = row.get(data.column)
        if not isinstance(text, str):
            raise ValueError(f"data.column={data.column!r}: row {number:,} of {data.dataset!r} holds {text!r}; expected text.")
        yield text


def read_text(data: Data) -> tuple[str, str]:
    """One's own text as one stream: a file, or the files of a folder in the order of their paths, hidden ones aside.

    What comes first is to train on; from a line's start on the last tenth, no more than `validation_tokens` characters, is for
    validation. ValueError, if it is not there, is not UTF-8, or is empty.
    """
    path, texts = Path(data.text), []
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and not any(n[0] == "." for n in p.relative_to(path).parts)]
    for file in files if path.is_dir() else [path]:
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 ({error.reason} at byte {error.start:,})"
            expected = "expected a file of text or a folder of them"
            raise ValueError(f"text={str(file)!r} cannot be read: {why}; {expected}.") from None
    text = "\n".join(texts)
    if not text.strip():
        raise ValueError(f"text={str(path)!r} holds no text; expected a file of text or a folder of them.")
    cut = len(text) - min(data.validation_tokens, len(text) // 10)
    cut = text.find("\n", cut, len(text) - 1) + 1 or cut
    return text[:cut], text[cut:]


def _digest(path: str | None) -> str | None:
    # of the bytes of a local file, or of all in a folder; nothing for what lies elsewhere
    if path is None or not Path(path).exists():
        return None
    files = [file for file in sorted(Path(path).rglob("*")) if file.is_file()] or [Path(path)]
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


class ByteTokenizer:
    """UTF-8 bytes, each its own token; 0 ends a document."""

    vocab_size = 256

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode() + bytes([SEPARATOR]), dtype=np.uint8) for text in texts]


class HubTokenizer:
    """A tokenizer of transformers; its end-of-text token ends a document."""

    def __init__(self, name: str):
        from transformers import AutoTokenizer
        from transformers.utils import logging

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # as above
            raise ValueError(
                f"data.tokenizer={name!r} cannot be loaded: {type(error).__name__}: {error} "
                f"Without a network, use {BYTES!r} or a local folder."
            ) from None
        if self.tokenizer.eos_token_id is None:
            raise ValueError(f"data.tokenizer={name!r} has no end-of-text token, which separates documents.")
        self.vocab_size = len(self.tokenizer)
        logging.get_logger("transformers.tokenization_utils_base").setLevel(logging.ERROR)  # long documents are meant

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [np.array([*tokens, self.tokenizer.eos_token_id]) for tokens in encoded]


def get_tokenizer(name: str) -> ByteTokenizer | HubTokenizer:
    """The tokenizer called `name`; raises `ValueError` if it cannot be had."""
    return ByteTokenizer() if name == BYTES else HubTokenizer(name)


@dataclass(frozen=True)
class Corpus:
    """Tokens for training and validation."""

    train: np.ndarray  # streams of shape [N], uint16 or uint32, mapped from files
    validation: np.ndarray
    vocab_size: int
    validation_bytes: int  # UTF-8 bytes of the validation documents, for bits per byte
    documents: int  # that were read
    digest: str  # changes with any token of either stream

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of validation text per validation token; a byte tokenizer's document ends count as bytes."""
        return self.validation_bytes / len(self.validation)


def prepare(data: Data, train_tokens: int, folder: str | Path) -> Corpus:
    """Tokenises a text once, into `folder`, and maps the result.

    The first documents, whole, are kept for validation until they hold `data.validation_tokens`; training has the rest, up to
    `train_tokens`. One's own text is cut by `read_text` instead. A local file that was edited is prepared anew. Processes that
    call this at the same time wait for the one that writes. ValueError, if the text or the tokenizer cannot be had, or the
    text is too short.
    """
    spec = {**asdict(data), "length": None, "train_tokens": train_tokens}
    documents, kept = None, data
    if data.text is not None:
        documents, kept = list(read_text(data)[::-1]), replace(data, validation_tokens=1)  # the first alone is for validation
        spec["dataset"] = None
    elif data.dataset in BUILT_IN:
        documents = built_in_documents(data.dataset)
    # an edited file is another text, and another Python has another text
    spec["files_digest"] = [_digest(path) for path in (data.dataset, data.files, data.tokenizer)]
    if documents is not None:
        spec["text"] = hashlib.sha256("\0".join(documents).encode()).hexdigest()
    folder = Path(folder) / hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "meta.json").exists():
            tokenizer = get_tokenizer(data.tokenizer)
            _write(folder, kept, iter(documents) if documents is not None else _hub_documents(data), tokenizer, train_tokens)
    meta = json.loads((folder / "meta.json").read_text())
    dtype = np.dtype(meta.pop("dtype"))
    train, validation = (np.memmap(folder / f"{part}.bin", dtype=dtype, mode="r") for part in ("train", "validation"))
    return Corpus(train, validation, **meta)


def _write(folder: Path, data: Data, documents: Iterator[str], tokenizer, train_tokens: int) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    digest, counts = hashlib.sha256(), {"train": 0, "validation": 0}
    validation_bytes = read = 0
    temporary = folder.with_suffix(".new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    with open(temporary / "train.bin", "wb") as train, open(temporary / "validation.bin", "wb") as validation:
        while counts["train"] < train_tokens and (texts := list(islice(documents, BATCH))):
            for text, tokens in zip(texts, tokenizer(texts)):
                read += 1
                if counts["validation"] < data.validation_tokens:
                    part, file = "validation", validation
                    validation_bytes += len(text.encode()) + (data.tokenizer == BYTES)
                else:
                    part, file = "train", train
                    tokens = tokens[: train_tokens - counts["train"]]
                raw = tokens.astype(dtype).tobytes()
                file.write(raw)
                digest.update(part.encode() + raw)
                counts[part] += len(tokens)
    if not counts["train"]:
        raise ValueError(
            f"data.validation_tokens={data.validation_tokens:,} leaves nothing to train on: {data.dataset!r} has "
            f"{counts['validation']:,} tokens in all."
        )
    meta = {
        "vocab_size": tokenizer.vocab_size,
        "validation_bytes": validation_bytes,
        "documents": read,
        "digest": digest.hexdigest()[:16],
        "dtype": np.dtype(dtype).name,
    }
    (temporary / "meta.json").write_text(json.dumps(meta))
    os.replace(temporary, folder)


class Blocks(Dataset):
    """A stream `[N]` cut into sequences of `length`; what does not fill the last, or a `multiple` (a batch), is dropped.

    ValueError, if the stream does not hold so many sequences.
    """

    def __init__(self, tokens: np.ndarray, length: int, multiple: int = 1):
        self.tokens, self.length = tokens, length
        self.number = len(tokens) // length // multiple * multiple
        if not self.number:
            raise ValueError(
                f"data.length={length:,}: the text has {len(tokens):,} tokens, too few for a batch of {multiple:,} sequences."
            )

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        block = self.tokens[i * self.length : (i + 1) * self.length].astype(np.int64)
        return {"input_ids": torch.from_numpy(block), "labels": torch.from_numpy(block)}


class Windows(Dataset):
    """The first tokens of a stream in windows of `length` inputs, and the token after each as its target.

    Windows share the token between them, so that the same `total` targets are scored whatever the length, which divides it.
    """

    def __init__(self, tokens: np.ndarray, length: int, total: int):
        assert total % length == 0, "windows must cover the same targets at every length"
        assert total < len(tokens), "the last target is missing"
        self.tokens, self.length, self.total = tokens, length, total

    def __len__(self) -> int:
        return self.total // self.length

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        window = torch.from_numpy(self.tokens[i * self.length : (i + 1) * self.length + 1].astype(np.int64))
        return window[:-1], window[1:]
