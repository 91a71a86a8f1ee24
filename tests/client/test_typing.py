"""Programs that use the package pass `mypy --strict`: those of the README and the docs, and one of every kind of call."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from saeclamp import _options as options
from saeclamp.types import Attribute, Compare, Contrast, FeatureQuery, Inspect, NeighboursQuery, Suggest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

CALLS = """
from collections.abc import Sequence
from typing import assert_type

import saeclamp
from saeclamp import AsyncClient, Clamp, Client, Receipt, Steering


def a_receipt_is_there_where_steering_was_asked_for(client: Client, clamp: Clamp, maybe: Steering | None) -> None:
    said = [{"role": "user", "content": "hi"}]
    steered = client.chat.completions.create(messages=said, steering=clamp, temperature=0, max_tokens=5)
    assert_type(steered, saeclamp.SteeredChatCompletion)
    assert_type(steered.steering, Receipt)
    plain = client.chat.completions.create(messages=said, seed=1, stop=["a"], logprobs=True, top_logprobs=2)
    assert_type(plain.steering, Receipt | None)
    assert_type(client.chat.completions.create(messages=said, steering=maybe), saeclamp.ChatCompletion)
    text = client.completions.create(prompt="a", steering=[clamp], logprobs=2, echo=True)
    assert_type(text.steering.interventions[0].value_act, float | None)
    for token in text.choices[0].steering:
        assert_type(token.position, int)


def streams_too(client: Client, clamp: Clamp) -> None:
    with client.completions.create(prompt="a", steering=clamp, stream=True) as stream:
        for chunk in stream:
            assert_type(chunk.text, str)
    assert_type(stream.steering, Receipt)
    assert_type(client.completions.create(prompt="a", stream=True).steering, Receipt | None)


def whether_it_streams_may_be_a_variable(client: Client, stream: bool, maybe: Clamp | None) -> None:
    answer = client.completions.create(prompt="a", steering=maybe, stream=stream)
    assert_type(answer, saeclamp.Completion | saeclamp.Stream[saeclamp.Completion])


async def the_same_with_asyncio(client: AsyncClient, clamp: Clamp) -> None:
    answer = await client.chat.completions.create(messages=[], steering=clamp)
    assert_type(answer.steering, Receipt)
    stream = await client.chat.completions.create(messages=[], steering=clamp, stream=True)
    assert_type([chunk.text async for chunk in stream], list[str])
    assert_type(stream.steering, Receipt)


def results_have_rows(client: Client) -> None:
    hits = client.features.search("sea", limit=3, green_zone=True)
    assert_type([hit.clamp(1.0, tokens="generated") for hit in hits], list[Clamp])
    assert_type([one.max for one in client.features.inspect("a", aggregate="mean")], list[float])
    assert_type([one.p for one in client.features.contrast(["a"], ["b"], seed=1)], list[float])
    assert_type([one.id for one in client.models.list()], list[str])
    assert_type([one.site for one in client.vectors.list()], list[str])
    hits.to_dataframe()
"""

SET_UP = ["from saeclamp import Clamp, Client, FeatureHit", "client: Client", "hit: FeatureHit"]
MISTAKES = [
    ("client.completions.create(prompt='a', temperature='warm')", "temperature"),
    ("client.completions.create(prompt='a', temprature=0)", "temprature"),
    ("client.chat.completions.create(messages=[], steering='sea')", "steering"),
    ("client.features.search('a', limit='3')", "limit"),
    ("client.features.inspect('a', agregate='max')", "agregate"),
    ("Clamp(feature='a/1', value='x')", "value"),
    ("Clamp(feature='a/1', value=1, unti='act')", "unti"),
    ("hit.clamp(1, tokens='some')", "tokens"),
]

SETTINGS = """\
[mypy]
strict = true
follow_imports = silent
cache_dir = {cache}
# what no program sees, and transformers imports: more than half of all that would be read
[mypy-transformers.models.*,ray.*,wandb.*,mcp.*,mcp_types.*,aiohttp.*,coreweave_evaluations.*,matplotlib.*,PIL.*,rich.*]
follow_imports = skip
[mypy-transformers.models,transformers.models.auto.*]
follow_imports = silent
"""


def programs(path: Path) -> dict[str, str]:
    """Python blocks that import what they use, by name and line; those of one session are one program."""
    text = path.read_text(encoding="utf-8")
    if "Examples run in one session" in " ".join(text.split()):
        return {f"{path.stem}.py": "\n".join(block[1] for block in BLOCK.finditer(text))}
    return {
        f"{path.stem.lower().replace('-', '_')}_{text[: block.start()].count(chr(10)) + 2}.py": block[1]
        for block in BLOCK.finditer(text)
        if re.search(r"^(import|from) ", block[1], re.MULTILINE)
    }


def mypy(folder: Path) -> str:
    """What `mypy --strict` says of the programs in a folder, as of programs of people who have installed the package."""
    cache = ROOT / ".mypy_cache" / "programs"  # kept: reading openai's types anew takes longest
    (folder / "mypy.ini").write_text(SETTINGS.format(cache=cache))
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--no-error-summary", "."]
    env = {**os.environ, "MYPYPATH": str(ROOT / "client")}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Mypy's lines by program; all are checked at once, because reading openai's types takes longest."""
    folder = tmp_path_factory.mktemp("programs")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for name, program in programs(path).items():
            (folder / name).write_text(program)
    (folder / "calls.py").write_text(CALLS)
    (folder / "wrong.py").write_text("\n".join([*SET_UP, *(mistake for mistake, _ in MISTAKES)]))
    found: dict[str, list[str]] = {path.name: [] for path in folder.glob("*.py")}
    for line in mypy(folder).splitlines():
        found[line.partition(":")[0]].append(line)
    return found


def test_the_programs_of_the_readme_and_the_docs_pass_mypy_strict(said: dict[str, list[str]]) -> None:
    assert len(said) >= 14
    assert {name: lines for name, lines in said.items() if lines and name != "wrong.py"} == {}


@pytest.mark.parametrize(("mistake", "names"), MISTAKES)
def test_a_wrong_call_does_not_pass(said: dict[str, list[str]], mistake: str, names: str) -> None:
    place = f"wrong.py:{len(SET_UP) + 1 + [one for one, _ in MISTAKES].index(mistake)}: error"
    errors = [line for line in said["wrong.py"] if line.startswith(place)]
    assert any(names in error or "overload" in error for error in errors), said["wrong.py"]


@pytest.mark.parametrize(
    ("question", "kind", "arguments"),
    [
        (FeatureQuery, options.SearchOptions, {"query", "sae"}),
        (Inspect, options.InspectOptions, {"text", "messages"}),
        (Contrast, options.ContrastOptions, {"positive", "negative"}),
        (Attribute, options.AttributeOptions, {"text", "messages"}),
        (NeighboursQuery, options.NeighboursOptions, {"features"}),
        (Suggest, options.SuggestOptions, {"wish"}),
        (Compare, options.CompareOptions, {"text", "messages", "steering"}),
    ],
)
def test_options_are_the_fields_of_the_request(question: type, kind: type, arguments: set[str]) -> None:
    assert set(get_type_hints(kind)) | arguments == set(question.model_fields)  # type: ignore[attr-defined]
