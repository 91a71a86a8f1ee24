"""What is harvested is what the model has, of the right tokens, once."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny_models import ARCHITECTURES, make
from tests.support.tiny_training import (
    LAYER,
    SHARE,
    TEMPLATE,
    corpus,
    everything,
    harvest,
    reader,
    take_all,
    texts,
    tokenizer,
)
from torch import Tensor, nn

from saeclamp_saes.errors import TrainingError, VerificationError
from saeclamp_saes.io.vector_files import VectorFile, VectorTable
from saeclamp_saes.lm.documents import Document, data_files, documents
from saeclamp_saes.lm.harvest import ActivationReader, Cursor, d_in_of, norm_limits
from saeclamp_saes.sites import Site


@torch.no_grad()
def slow(reader: ActivationReader, data: Path, held_out: bool = False, limit: float = float("inf")) -> Tensor:
    """The obvious way: one sequence at a time through the whole model, one token at a time into a list."""
    rows = []
    special = reader.tokenizer.all_special_ids
    for document in documents(data_files([data])):
        if document.is_held_out(SHARE) is not held_out:
            continue
        # what every conversation begins with, here "<s>user:", counts in few of them
        said = 6 if document.messages and not document.is_among(1 / 16, "prefix") else 1
        for number, part in enumerate(reader.parts(document)):
            states = reader.model(input_ids=part.ids[None], output_hidden_states=True).hidden_states[LAYER + 1][0]
            for position, (token, vector) in enumerate(zip(part.ids.tolist(), states, strict=True)):
                if position >= (1 if number else said) and token not in special and vector.norm() <= limit:
                    rows.append(vector)
    return torch.stack(rows)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_vectors_are_those_of_the_whole_model(name: str, tmp_path: Path) -> None:
    reading, data = reader(make(name)), corpus(tmp_path, 12)
    got = everything(harvest(reading, data))
    torch.testing.assert_close(got.float(), slow(reading, data), rtol=2**-7, atol=1e-4)


def test_training_and_held_out_documents_are_all_documents(tmp_path: Path) -> None:
    reading, data = reader(), corpus(tmp_path)
    kept, held_out = everything(harvest(reading, data)), everything(harvest(reading, data, held_out=True))
    assert len(kept) == len(slow(reading, data)) > len(held_out) == len(slow(reading, data, held_out=True)) > 50
    torch.testing.assert_close(held_out.float(), slow(reading, data, held_out=True), rtol=2**-7, atol=1e-4)


def test_two_copies_of_a_document_are_on_the_same_side(tmp_path: Path) -> None:
    sides = [Document(text, None).is_held_out(0.5) for text in texts()]
    assert sides == [Document(text, None).is_held_out(0.5) for text in texts()]
    assert 15 < sum(sides) < 45
    said = [{"role": "user", "content": "hello"}]
    assert {Document(None, [dict(said[0])]).is_held_out(0.5) for _ in range(3)} == {
        Document(None, said).is_held_out(0.5)
    }


@pytest.mark.parametrize("most", [1, 7, 64, 333])
def test_portions_of_any_size_are_the_same_vectors(tmp_path: Path, most: int) -> None:
    reading, data = reader(), corpus(tmp_path, 20)
    assert torch.equal(everything(harvest(reading, data), most=most), everything(harvest(reading, data)))


def test_a_new_process_goes_on_from_any_cursor(tmp_path: Path) -> None:
    reading, data = reader(), corpus(tmp_path, 20)
    whole, first = everything(harvest(reading, data)), harvest(reading, data)
    cursor, done = Cursor(), 0
    while done < len(whole):
        vectors, cursor = first.take(cursor, 61)
        done += len(vectors)
        assert torch.equal(everything(harvest(reading, data), cursor), whole[done:]) if done < len(whole) else True


def test_sinks_are_left_out(tmp_path: Path) -> None:
    reading, data = reader(), corpus(tmp_path, 20)
    norms = slow(reading, data).norm(dim=1)
    limit = float(norms.median())
    assert (
        len(everything(harvest(reading, data, norm_limits=torch.tensor([limit]))))
        == len(slow(reading, data, limit=limit))
        == (len(norms) + 1) // 2
    )


def test_the_limit_is_ten_times_the_median_length(tmp_path: Path) -> None:
    reading, data = reader(median_tokens=10**6), corpus(tmp_path, 20)
    norms = torch.cat([slow(reading, data, held_out=side) for side in (False, True)]).norm(dim=1)
    assert norm_limits(reading, data_files([data])).tolist() == [pytest.approx(10 * float(norms.median()), rel=1e-4)]


def test_the_forward_stops_behind_the_layer(tmp_path: Path) -> None:
    model: Any = make("llama")
    ran: list[int] = []
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    model.lm_head.register_forward_hook(lambda *_: ran.append(99))
    assert d_in_of(reader(model)) == 16
    assert ran == [0, 1]


def test_a_conversation_is_formatted_by_the_models_template() -> None:
    said = [{"role": "user", "content": "what is the time?"}, {"role": "assistant", "content": "noon"}]
    ((sequence, _),) = reader().parts(Document(None, said))
    assert tokenizer().decode(sequence).replace(" ", "") == "<s>user:whatisthetime?<s>assistant:noon"
    assert sequence.tolist().count(0) == 2


def test_what_the_template_says_in_every_conversation_counts_in_few_of_them() -> None:
    template = "<s>you are kind" + TEMPLATE
    reading = replace(reader(), tokenizer=tokenizer(template))
    begun = len("you are kind") + 1
    firsts = []
    for text in texts(300):
        (part, *_) = reading.parts(Document(None, [{"role": "user", "content": text}]))
        assert not part.counts[0]
        assert not part.counts[part.ids == 0].any()
        firsts.append(int(part.counts.nonzero()[0]))
    # the role that follows is the same in these conversations too
    assert set(firsts) == {1, begun + len("<s>user:") - 2}
    assert 8 <= firsts.count(1) <= 32


def test_several_places_are_read_at_once_and_a_sink_at_any_is_left_out(tmp_path: Path) -> None:
    data, sites = corpus(tmp_path, 20), tuple(Site("resid_post", layer) for layer in (0, 2, 1))
    reading = replace(reader(), sites=sites)
    whole = torch.cat(take_all(harvest(reading, data, norm_limits=torch.full((3,), float("inf")))))
    for index, site in enumerate(sites):
        alone = everything(harvest(replace(reading, sites=(site,)), data))
        assert torch.equal(whole[:, index], alone)
    norms = whole.float().norm(dim=2)
    limits = norms.quantile(0.7, dim=0)
    kept = torch.cat(take_all(harvest(reading, data, norm_limits=limits)))
    assert 0.2 * len(whole) < len(kept) < 0.7 * len(whole)
    assert torch.equal(kept, whole[(norms <= limits).all(dim=1)])


def test_long_documents_are_cut_and_short_ends_dropped() -> None:
    assert [len(part.ids) for part in reader().parts(Document("a" * 100, None))] == [40, 40, 20]
    assert [len(part.ids) for part in reader().parts(Document("a" * 95, None))] == [40, 40]


def test_conversations_need_a_template_that_takes_them() -> None:
    document = Document(None, [{"role": "user", "content": "hello"}])
    with pytest.raises(TrainingError, match="no chat template"):
        replace(reader(), tokenizer=tokenizer(None)).parts(document)
    with pytest.raises(TrainingError, match="does not take a conversation of the data: no users"):
        replace(reader(), tokenizer=tokenizer("{{ raise_exception('no users') }}")).parts(document)


def test_values_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    model: Any = make("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e6)
    data = corpus(tmp_path, 10)
    with pytest.raises(TrainingError, match="keep them as bfloat16"):
        everything(harvest(reader(model), data, dtype="float16"))
    assert len(everything(harvest(reader(model), data))) > 100


def test_a_place_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(VerificationError, match="layers 0 to 2"):
        d_in_of(replace(reader(), sites=(Site("resid_post", 3),)))
    with pytest.raises(VerificationError, match="places of a Linear are"):
        d_in_of(replace(reader(), model=nn.Linear(2, 2)))


def test_documents_come_from_every_kind_of_file(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"text": "one"}\n\n{"messages": [{"role": "user", "content": "two"}], "more": 1}\n')
    (tmp_path / "b.txt").write_text("three\nlines\n")
    (tmp_path / "c.txt").write_text(("x" * 99 + "\n") * 450)
    (tmp_path / "notes.bin").write_bytes(b"\0")
    (tmp_path / "README.md").write_text("no data")
    found = list(documents(data_files([tmp_path, tmp_path / "b.txt"])))
    assert [document.text or document.messages for document in found[:3]] == [
        "one",
        [{"role": "user", "content": "two"}],
        "three\nlines\n",
    ]
    assert [len(str(document.text)) for document in found[3:]] == [20_000, 20_000, 5_000]
    for start in range(len(found) + 1):
        assert list(documents(data_files([tmp_path]), start)) == found[start:]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "fine"}\nnot json\n', r"a.jsonl, line 2 is not JSON\."),
        ("a.jsonl", b'{"txt": "x"}\n', r'line 1 is neither \{"text"'),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', "is neither"),
        ("a.jsonl", b'{"messages": []}\n', "is neither"),
        ("a.jsonl", b"[1]\n", "is neither"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "is not JSON"),
        ("a.txt", b"\xff\xfe\x00", "is not text in UTF-8"),
        ("a.jsonl.gz", b"no gzip file", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:40], "cannot be read"),
        ("a.bin", b"", "holds no data, which are files that end in"),
    ],
)
def test_what_is_no_data_is_refused_in_a_sentence(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainingError, match=said) as raised:
        list(documents(data_files([tmp_path])))
    assert str(raised.value).isprintable()


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="There is no file or folder"):
        data_files([tmp_path / "nothing"])


def test_data_without_a_whole_document_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "too short"}))
    with pytest.raises(TrainingError, match="no document of 16 tokens or more"):
        norm_limits(reader(), data_files([tmp_path]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rows_are_kept_on_disk_as_they_were(tmp_path: Path, dtype: Any) -> None:
    vectors = torch.randn(5, 4).to(getattr(torch, dtype))
    VectorFile(tmp_path / "rows", 9, 4, dtype, begun=False).write(torch.tensor([8, 0, 3, 4, 5]), vectors)
    assert (tmp_path / "rows").stat().st_size == 9 * 4 * 2
    again = VectorFile(tmp_path / "rows", 9, 4, dtype, begun=True)
    assert torch.equal(again.tensor[[8, 0, 3, 4, 5]], vectors)


def test_several_files_of_rows_are_read_as_one(tmp_path: Path) -> None:
    parts = [torch.randn(num, 4).bfloat16() for num in (3, 1, 5)]
    table, whole = VectorTable([*parts, parts[0]]), torch.cat([*parts, parts[0]]).float()
    index = torch.randperm(12)
    assert torch.equal(table.take(index), whole[index])
    assert len(table) == 12
    for num in (None, 0, 2, 4, 9, 12):
        assert torch.equal(torch.cat([torch.empty(0, 4), *table.chunks(num)]), whole[:num])


def test_more_than_the_disk_holds_is_refused_before_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"take 4000\.0 GB, and .* GB free: keep fewer"):
        VectorFile(tmp_path / "rows", 10**9, 2000, "bfloat16", begun=False)
    assert not (tmp_path / "rows").exists()
