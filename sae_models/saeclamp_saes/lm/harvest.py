"""Activations of a model at some sites while it reads documents: only those of ordinary tokens, and each exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saeclamp_saes.errors import TrainingError
from saeclamp_saes.io.vector_files import StoreDtype
from saeclamp_saes.lm.architectures import apply_edits
from saeclamp_saes.lm.documents import Document, documents
from saeclamp_saes.lm.load import check_vocabulary
from saeclamp_saes.lm.text import SHORTEST, bos_id
from saeclamp_saes.lm.token_mask import SINK_MULTIPLE
from saeclamp_saes.progress import ProgressCallback, no_progress
from saeclamp_saes.sites import Site

MEDIAN_TOKENS = 4096
"""Tokens on which the median norms are measured, once for a run."""
GROUP_TOKENS = 1 << 14
"""Least number of tokens in a group of documents, which is sorted by length so that little is padding."""
LOOKED_AT = 1000
"""Documents between two reports of progress while all are checked."""
PREFIX_SHARE = 1 / 16
"""
Share of the conversations in which the template's own beginning (a default system prompt) counts: its vectors are the same
in every conversation.
"""


class _StopForward(Exception):
    """The forward has reached the last site; the layers behind it are not needed."""


class TokenSequence(NamedTuple):
    """A sequence that the model reads at once."""

    ids: Tensor
    """(length,) int64"""
    counts: Tensor
    """(length,) bool: not the first of the sequence, not a special token, and not said in every conversation."""

    @property
    def num_counting(self) -> int:
        """Number of tokens that count."""
        return int(self.counts.sum())


Read = Callable[[Sequence[TokenSequence]], None]
"""Takes the sequences of a model's forward when that is done."""


def no_read(parts: Sequence[TokenSequence]) -> None:
    """Report nothing of a forward."""


def report_forwards(
    report: ProgressCallback, doing: str, done: int, total: int, size: Callable[[TokenSequence], int]
) -> Read:
    """
    Return a callback that reports each forward, because a group of them takes minutes on a slow machine.

    done: amount before the first forward; what is read beyond `total`, or again, is not reported
    size: amount that a sequence adds, in the unit of `done` and `total`
    """
    so_far = done

    def read(parts: Sequence[TokenSequence]) -> None:
        nonlocal so_far
        so_far += sum(map(size, parts))
        report(doing, max(0, min(so_far, total)), total, {})

    return read


@dataclass(frozen=True)
class ActivationReader:
    """A model with its tokenizer, the sites to read, and how documents are cut and batched."""

    model: nn.Module
    """Causal model of transformers."""
    tokenizer: Any
    sites: tuple[Site, ...]
    """Sites to read, all of one width."""
    context: int = 512
    """Tokens of the longest sequence; a longer document is cut into several."""
    batch_tokens: int = 4096
    """Tokens of a forward, padding included."""
    group_tokens: int = GROUP_TOKENS
    median_tokens: int = MEDIAN_TOKENS

    @property
    def least_group(self) -> int:
        """Number of tokens at which a group of documents is full: enough for several forwards."""
        return max(self.group_tokens, 4 * self.batch_tokens)

    def parts(self, document: Document) -> list[TokenSequence]:
        """
        Tokenise a document, with BOS or the chat template as the model's own inputs have them, and cut it into sequences.

        Raises TrainingError for a conversation that the template does not take, VerificationError for a token that the model
        does not know.
        """
        skipped = 0
        if document.messages is not None:
            text, begin = self.conversation(document), []
            if not document.is_among(PREFIX_SHARE, "prefix"):
                skipped = self._prefix_length
        else:
            text, begin = str(document.text), bos_id(self.tokenizer)
        ids = self.tokenizer(_in_unicode(text), add_special_tokens=False, verbose=False).input_ids
        step = self.context - len(begin)
        parts = [
            self._part([*begin, *ids[first : first + step]], skipped - first)
            for first in range(0, len(ids), step)
            if len(ids) - first >= SHORTEST
        ]
        kept = [part for part in parts if part.counts.any()]
        if kept:
            check_vocabulary(self.model, [part.ids for part in kept])
        return kept

    def _part(self, ids: list[int], skipped: int) -> TokenSequence:
        tokens = torch.tensor(ids)
        return TokenSequence(tokens, (torch.arange(len(ids)) >= max(1, skipped)) & ~torch.isin(tokens, self._special))

    @cached_property
    def _special(self) -> Tensor:
        return torch.tensor(sorted(self.tokenizer.all_special_ids), dtype=torch.int64)

    @cached_property
    def _prefix_length(self) -> int:
        """Number of tokens that every conversation begins with: those of a template's own system prompt."""
        # two conversations that differ in their first word part where the template's own words end
        one, other = (
            self.tokenizer(self.conversation(said), add_special_tokens=False).input_ids
            for said in (Document(None, [{"role": "user", "content": text}]) for text in ("a", "b"))
        )
        return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)

    def conversation(self, document: Document) -> str:
        """Format a conversation by the model's template. Raises TrainingError, with the line, where that refuses it."""
        if not self.tokenizer.chat_template:
            raise TrainingError("The data hold conversations, and the model has no chat template to format them with.")
        try:
            return str(self.tokenizer.apply_chat_template(document.messages, tokenize=False))
        except Exception as exc:  # the template is the model's own program, and may raise anything
            which = f"the conversation of {document.where}" if document.where else "a conversation of the data"
            raise TrainingError(f"The model's chat template does not take {which}: {exc}.") from exc

    @torch.no_grad()
    def vectors(self, parts: Sequence[TokenSequence], read: Read = no_read) -> list[Tensor]:
        """
        Run the model up to the last site, over parts of like length at once.

        read:    called after each forward
        returns: for each part, (n, num_sites, width): the vectors of the tokens that count
        """
        found: list[Tensor] = [torch.empty(0)] * len(parts)
        device = next(self.model.parameters()).device
        for batch in _batches([len(part.ids) for part in parts], self.batch_tokens):
            # padding is on the right, where no token of a causal model sees it
            ids = nn.utils.rnn.pad_sequence([parts[index].ids for index in batch], batch_first=True)
            out = self._forward(ids.to(device))
            for row, index in enumerate(batch):
                counts = parts[index].counts
                found[index] = out[row, : len(counts)][counts.to(device)]
            read([parts[index] for index in batch])
        return found

    def _forward(self, ids: Tensor) -> Tensor:
        found: dict[Site, Tensor] = {}

        def keep(site: Site, x: Tensor) -> None:
            found[site] = x
            if len(found) == len(self.sites):
                raise _StopForward

        with apply_edits(self.model, {site: partial(keep, site) for site in self.sites}), suppress(_StopForward):
            self.model(input_ids=ids, use_cache=False)
        return torch.stack([found[site] for site in self.sites], dim=2)


def _in_unicode(text: str) -> str:
    """Replace halves of a surrogate pair, which JSON can hold and a tokenizer cannot read."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Put sequences together by length, shortest first: at most `most` tokens a batch, padding included."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > most:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class Cursor(NamedTuple):
    """The place in the documents from which harvesting goes on."""

    document: int = 0
    """Index of the first document of the next group."""
    skip: int = 0
    """Vectors of that group that were already taken."""


class _Group(NamedTuple):
    start: int
    vectors: Tensor
    end: int


class ActivationStream:
    """
    The ordinary vectors of one side's documents (held out, or not), in order, from any cursor on.

    Documents are run in groups of some thousand tokens. A group depends on its first document alone, so an interrupted
    harvest that goes on from a cursor finds the very same vectors.
    """

    def __init__(
        self,
        reader: ActivationReader,
        files: Sequence[Path],
        *,
        held_out: bool,
        held_out_share: float,
        norm_limits: Tensor,
        dtype: StoreDtype,
    ) -> None:
        self._reader = reader
        self._files = files
        self._held_out = held_out
        self._share = held_out_share
        self._norm_limits = norm_limits
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._group: _Group | None = None
        self._documents: Iterator[Document] = iter(())
        self._at = -1
        """Index of the next document of `_documents`; -1 before the first read."""

    def take(self, cursor: Cursor, most: int, read: Read = no_read) -> tuple[Tensor, Cursor]:
        """
        Return the next vectors, at most `most`, and the cursor after them; none when the documents are at their end.

        read:    called after each forward
        returns: (n, num_sites, width), in the dtype to keep
        """
        while True:
            if self._group is None or self._group.start != cursor.document:
                self._group = self._read(cursor.document, read)
            group = self._group
            if group.end == group.start:
                return group.vectors, cursor
            left = group.vectors[cursor.skip :]
            if len(left) > most:
                return left[:most], cursor._replace(skip=cursor.skip + most)
            # the next group at once: a cursor at the end of this one would have it read again after a restart
            cursor = Cursor(group.end)
            if len(left):
                return left, cursor

    def _read(self, start: int, read: Read) -> _Group:
        if self._at != start:
            self._documents, self._at = documents(self._files, start), start
        parts: list[TokenSequence] = []
        num_tokens = 0
        while num_tokens < self._reader.least_group:
            document = next(self._documents, None)
            if document is None:
                break
            self._at += 1
            if document.is_held_out(self._share) is self._held_out:
                cut = self._reader.parts(document)
                parts += cut
                num_tokens += sum(len(part.ids) for part in cut)
        found = [self._ordinary(x) for x in self._reader.vectors(parts, read)]
        return _Group(start, torch.cat(found) if found else torch.empty(0, 0, 0), self._at)

    def _ordinary(self, x: Tensor) -> Tensor:
        """Leave out tokens that are a sink at any of the sites."""
        x = x.float()
        x = x[(x.norm(dim=2) <= self._norm_limits.to(x.device)).all(dim=1)]
        kept = x.to(self._dtype).cpu()
        if not torch.isfinite(kept).all():
            raise TrainingError("The model's vectors are too large for float16, or not finite: keep them as bfloat16.")
        return kept


def check_documents(reader: ActivationReader, files: Sequence[Path], report: ProgressCallback = no_progress) -> None:
    """
    Check all documents without running the model, so that a bad line is known before anything long begins.

    A template that refuses a conversation nearly always refuses its order of roles, so one of each order is formatted.
    Raises TrainingError, with the line.
    """
    formatted: set[tuple[str, ...]] = set()
    for number, document in enumerate(documents(files), 1):
        if number % LOOKED_AT == 0:  # how many there are is not known before the end
            report("looking at the data", number, number, {})
        roles = tuple(message["role"] for message in document.messages or ())
        if roles and roles not in formatted:
            formatted.add(roles)
            reader.conversation(document)


def norm_limits(reader: ActivationReader, files: Sequence[Path], report: ProgressCallback = no_progress) -> Tensor:
    """
    Measure the norm above which a vector is a sink, at each site: 10 times the median of the first few thousand tokens.

    returns: (num_sites,)
    Raises TrainingError when the data hold no token that counts.
    """
    norms: list[Tensor] = []
    read = report_forwards(report, "measuring lengths", 0, reader.median_tokens, lambda part: part.num_counting)
    for document in documents(files):
        norms += [x.float().norm(dim=2).cpu() for x in reader.vectors(reader.parts(document), read)]
        if sum(map(len, norms)) >= reader.median_tokens:
            break
    if not sum(map(len, norms)):
        raise TrainingError(f"The data hold no document of {SHORTEST} tokens or more.")
    # the median, because sinks would move a mean
    return SINK_MULTIPLE * torch.cat(norms).median(dim=0).values


def d_in_of(reader: ActivationReader) -> int:
    """Return the width of the vectors. Raises VerificationError where the model has no such site."""
    ids = torch.zeros(2, dtype=torch.int64)
    (x,) = reader.vectors([TokenSequence(ids, ids == 0)])
    return x.shape[2]
