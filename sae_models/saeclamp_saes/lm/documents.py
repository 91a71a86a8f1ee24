"""
Documents, from text files and JSON lines. Free of torch.

A line of JSON is {"text": ...} or {"messages": [{"role", "content"}, ...]}; other keys are not looked at. A text file is a
document, and a long one is cut at line ends into several. Documents are read in the files' order, and a folder's files by
name, so shuffle what is sorted by subject: only a mixing buffer's worth of tokens is mixed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saeclamp_saes.errors import TrainingError

SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.gz", ".txt.gz")
"""Endings of data files, in small letters; capital ones are read too."""
LINES_OF_JSON = (".jsonl", ".jsonl.gz")
LONGEST_PART = 20_000
"""Characters of a text file that make one document; a longer file is several."""


class Document(NamedTuple):
    """A text, or a conversation."""

    text: str | None
    messages: list[dict[str, Any]] | None
    where: str = ""
    """Its file and line, for messages."""

    def is_held_out(self, share: float) -> bool:
        """Tell whether it belongs to the held-out share, which is measured on and not trained on."""
        return self.is_among(share)

    def is_among(self, share: float, what_for: str = "") -> bool:
        """Draw by content, so that two copies of a document are always on the same side. Each purpose draws anew."""
        content = self.text if self.messages is None else json.dumps(self.messages, sort_keys=True)
        # JSON can hold half of a surrogate pair, which UTF-8 proper cannot
        digest = hashlib.sha256(f"{what_for}{content}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < share * 2**64


def data_files(paths: Sequence[Path]) -> list[Path]:
    """List the files of the named files and folders, each once, however it is called. Raises TrainingError."""
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if _is_read(file))
            if not inside:
                raise TrainingError(
                    f"The folder {path} holds no data, which are files that end in {', '.join(SUFFIXES)} but are not "
                    "called README or LICENSE. Folders in it are not read."
                )
            for file in inside:
                found.setdefault(file.resolve(), file)
        elif path.is_file():
            if path.name.lower().endswith((".json", ".json.gz")):
                raise TrainingError(
                    f"{path} is called JSON, and JSON lines are read: one object a line, in a file that ends in .jsonl."
                )
            found.setdefault(path.resolve(), path)
        else:
            raise TrainingError(f"There is no file or folder {path}.")
    return list(found.values())


def list_skipped(paths: Sequence[Path]) -> list[Path]:
    """List what is in the named folders and is not read, but for hidden files."""
    folders = dict.fromkeys(path for path in paths if path.is_dir())
    inside = (one for folder in folders for one in sorted(folder.iterdir()))
    return [one for one in inside if not _is_read(one) and not one.name.startswith(".")]


def _is_read(path: Path) -> bool:
    """Tell whether an entry of a folder is data. A README or licence is not, unless it is JSON lines."""
    name = path.name.lower()
    is_description = name.startswith(("readme", "license")) and not name.endswith(LINES_OF_JSON)
    return name.endswith(SUFFIXES) and not is_description and path.is_file()


def documents(files: Sequence[Path], start: int = 0) -> Iterator[Document]:
    """Read every document from the `start`-th on, in order. Raises TrainingError, with the line, for a malformed one."""
    left = start
    for path in files:
        is_json = path.name.lower().endswith(LINES_OF_JSON)
        for number, line in enumerate(_lines(path) if is_json else _parts(_lines(path)), 1):
            if not line.strip():
                continue
            if left:
                left -= 1
                continue
            yield _parsed(line, f"{path}, line {number}") if is_json else Document(line, None, str(path))


def check_sides(files: Sequence[Path], share: float) -> None:
    """
    Raise TrainingError, before a model is opened, if no document would be held out, or all would be.

    share: the share of the documents that is held out
    """
    sides: Counter[bool] = Counter()
    for document in documents(files):
        sides[document.is_held_out(share)] += 1
        if len(sides) == 2:
            return
    if not sides:
        return  # that they hold nothing is said where lengths are measured
    num = "1 document" if sides.total() == 1 else f"{sides.total():,} documents"
    what, asked = ("all are", "a smaller") if sides[True] else ("none is", "a larger")
    raise TrainingError(
        f"The data are {num}, of which {what} held out to measure on: it should be {share:.3g} of them, chosen by their "
        f"content. A text file is one document (of more than {LONGEST_PART:,} characters several), and so is a line of a "
        f".jsonl file: give more of them, or {asked} --held-out."
    )


def _lines(path: Path) -> Iterator[str]:
    try:
        # some editors begin a file with a byte order mark, which is not of the text
        is_packed, how = path.suffix.lower() == ".gz", "utf-8-sig"
        with gzip.open(path, "rt", encoding=how) if is_packed else path.open(encoding=how) as file:
            yield from file
    except UnicodeDecodeError:
        raise TrainingError(f"{path} is not text in UTF-8.") from None
    except (EOFError, zlib.error, OSError) as exc:  # a damaged gzip file is any of them
        raise TrainingError(f"{path} cannot be read: {exc}.") from None


def _parts(lines: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    length = 0
    for line in lines:
        if held and length + len(line) > LONGEST_PART:
            yield "".join(held)
            held, length = [], 0
        held.append(line)
        length += len(line)
    yield "".join(held)


def _parsed(line: str, where: str) -> Document:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise TrainingError(f"{where} is not JSON.") from None
    if isinstance(record, dict):
        if isinstance(record.get("text"), str):
            return Document(record["text"], None, where)
        messages = record.get("messages")
        if isinstance(messages, list) and messages and all(map(_is_message, messages)):
            return Document(None, messages, where)
    raise TrainingError(
        f'{where} is neither {{"text": ...}} nor {{"messages": [{{"role": ..., "content": ...}}, ...]}}.'
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))
