"""`saeclamp sae list | info | add | remove`, as a user runs them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file, save_file
from tests.saes.loaders.layouts import goodfire
from tests.support import forked_command
from tests.support.bundled import D_SAE, LAYER
from tests.support.checkpoints import make_sae
from tests.support.local_hub import COMMIT, LocalHub

MODULE = [sys.executable, "-m", "saeclamp_server"]


class Said(NamedTuple):
    status: int
    out: str
    err: str


Saeclamp = Callable[..., Said]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "SAECLAMP_HOME": str(tmp_path / "home"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TERM": "xterm",
        "COLUMNS": "160",
    }


@pytest.fixture
def saeclamp(environment: dict[str, str]) -> Saeclamp:
    def run(*arguments: str, **more: str) -> Said:
        done = forked_command.saeclamp("sae", *arguments, env=environment | more)
        assert "Traceback" not in done.stderr, done.stderr
        return Said(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = make_sae(tmp_path / "some" / "my-sae", layer=2, d_in=16, d_sae=24)
    (path / "features.yaml").write_text(json.dumps({"features": [{"index": 3, "name": "sea", "max_act": 2.5}]}))
    return path


def on_a_terminal(environment: dict[str, str], *arguments: str, types: str = "") -> tuple[int, str]:
    """Run with a terminal for input and output, as at a keyboard."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*MODULE, "sae", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    os.write(ours, types.encode())
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # what a closed terminal reads as
            break
        if not part:
            break
        said += part
    os.close(ours)
    return process.wait(), said.decode()


def test_an_sae_is_added_listed_shown_and_removed(saeclamp: Saeclamp, folder: Path, tmp_path: Path) -> None:
    added = saeclamp("add", str(folder), "--name", "mine", "--model", "some/model")
    assert (added.status, added.out) == (0, f"mine: 24 features at resid_post 2, kept in {tmp_path}/home/saes/mine\n")
    assert added.err == "saeclamp: serve it with --sae mine\n"
    header, *rows = [line.split("\t") for line in saeclamp("list").out.splitlines()]
    assert header == ["NAME", "KEPT", "MODEL", "READS", "WRITES", "FEATURES", "FORMAT"]
    site = f"resid_post {LAYER}"
    assert rows == [
        ["bundled", "bundled", "smollm2-135m-instruct", site, site, str(D_SAE), "saelens"],
        ["mine", "library", "some/model", "resid_post 2", "resid_post 2", "24", "saelens"],
    ]
    facts = dict(line.split("\t") for line in saeclamp("info", "mine").out.splitlines())
    assert facts["model"] == "some/model"
    assert facts["source"] == str(folder)
    assert facts["named features"] == "sea=3"
    assert facts["files"] == "unchanged since they were added"
    assert len(facts["sha256"]) == 64
    assert saeclamp("remove", "mine", "--yes") == (0, f"removed {tmp_path}/home/saes/mine\n", "")
    assert len(saeclamp("list").out.splitlines()) == 2


def test_listings_and_facts_come_as_json_too(saeclamp: Saeclamp, folder: Path) -> None:
    assert saeclamp("add", f"{folder}?site=resid_post.1", "--name", "mine").status == 0
    bundled, mine = json.loads(saeclamp("list", "--json").out)
    assert (bundled["name"], mine["name"], mine["reads"], mine["d_in"]) == ("bundled", "mine", ["resid_post 1"], 16)
    facts = json.loads(saeclamp("info", "mine", "--json").out)
    assert (facts["options"], facts["named features"], facts["unit"]) == (
        {"site": "resid_post.1"},
        {"sea": 3},
        "native",
    )
    assert [one["name"] for one in json.loads(saeclamp("list", "--json", "min").out)] == ["mine"]


def test_the_catalogue_is_listed_by_release_then_by_sae(saeclamp: Saeclamp) -> None:
    lines = saeclamp("list", "--catalogue", "--model", "llama-3.1-8b").out.splitlines()
    assert lines[0].split("\t") == ["RELEASE", "MODEL", "READS", "WRITES", "LAYERS", "WIDTH", "SAES", "NOTES"]
    row = next(line for line in lines if line.startswith("llama_scope_lxr_8x\t")).split("\t")
    assert row[1:7] == ["meta-llama/Llama-3.1-8B", "resid_post", "resid_post", "0-31", "32k", "32"]
    assert all("llama-3.1-8b" in line.lower() for line in lines[1:])
    saes = json.loads(saeclamp("list", "--catalogue", "goodfire-llama-3.1-8b-instruct", "--json").out)
    assert [(sae["id"], sae["pickled"]) for sae in saes] == [("goodfire-llama-3.1-8b-instruct/layer_19", True)]


def test_an_id_of_the_catalogue_is_explained_before_it_is_here(saeclamp: Saeclamp) -> None:
    said = saeclamp("info", "gemma-scope-2b-pt-res/layer_20/width_16k/l0_71")
    facts = dict(line.split("\t") for line in said.out.splitlines())
    assert facts["reads"] == "resid_post 20"
    assert facts["repository"] == "google/gemma-scope-2b-pt-res"
    assert "`saeclamp sae add gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71` downloads it" in facts["kept"]


PROBLEMS = {
    "no such SAE": (["info", "nobody"], "No SAE 'nobody'"),
    "no network": (["add", "gemma-scope-2b-pt-res/layer_20/width_16k/l0_71"], "HF_HUB_OFFLINE forbids the network"),
    "not in the library": (
        ["remove", "nobody", "--yes"],
        "is no SAE that was added to the library; nothing was removed",
    ),
    "a name that leads elsewhere": (["remove", "../../x", "--yes"], "cannot be a name in the library"),
    "a bad option": (["info", "bundled?colour=red"], "There is no option 'colour'"),
    "a release": (["add", "llama_scope_lxr_8x"], "is a release of 32 SAEs"),
}


@pytest.mark.parametrize(("arguments", "says"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_what_is_wrong_is_said_in_one_line(saeclamp: Saeclamp, arguments: list[str], says: str) -> None:
    said = saeclamp(*arguments)
    assert (said.status, said.out, len(said.err.splitlines())) == (1, "", 1)
    assert said.err.startswith("saeclamp: ")
    assert says in said.err


def test_a_release_is_added_from_the_hub_by_its_id(saeclamp: Saeclamp, tmp_path: Path) -> None:
    root = tmp_path / "hub"
    make_sae(root / "chanind" / "gemma-2-9b-batch-topk-matryoshka-saes-w-32k-l0-60" / "blocks.3.hook_resid_post", 3, 16)
    with LocalHub(root).running() as hub:
        said = saeclamp(
            "add", "gemma-2-9b-res-matryoshka-dc/blocks.3.hook_resid_post", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0"
        )
    assert said.status == 0, said.err
    name = "gemma-2-9b-res-matryoshka-dc--blocks.3.hook_resid_post"
    facts = json.loads(saeclamp("info", name, "--json").out)
    assert facts["catalogue"] == "gemma-2-9b-res-matryoshka-dc/blocks.3.hook_resid_post"
    assert facts["model"] == "google/gemma-2-9b"
    assert f"@{COMMIT}/blocks.3.hook_resid_post" in facts["source"]
    assert json.loads(saeclamp("info", facts["catalogue"], "--json").out) == facts


def test_a_pickle_from_the_hub_is_converted_on_its_way(saeclamp: Saeclamp, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "Goodfire" / "Llama-3.1-8B-Instruct-SAE-l19"
    goodfire.write(repository, layer=19)
    with LocalHub(tmp_path / "hub").running() as hub:
        said = saeclamp(
            "add", "goodfire-llama-3.1-8b-instruct/layer_19", "--name", "gf", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0"
        )
    assert said.status == 0, said.err
    assert "converting Llama-3.1-8B-Instruct-SAE-l19.pth in a sandbox" in said.err
    facts = json.loads(saeclamp("info", "gf", "--json").out)
    assert (facts["format"], facts["reads"]) == ("saeclamp", ["resid_post 19"])
    assert list(facts["converted_from"]) == ["Llama-3.1-8B-Instruct-SAE-l19.pth"]
    assert not list((tmp_path / "home").rglob("*.pth"))
    assert saeclamp("info", "goodfire-llama-3.1-8b-instruct/layer_19", "--json").status == 0


def test_a_terminal_gets_a_table(environment: dict[str, str]) -> None:
    status, said = on_a_terminal(environment, "list")
    assert status == 0
    assert "\t" not in said
    assert "─" in said
    assert f"resid_post {LAYER}" in said


@pytest.mark.parametrize(("answer", "removed"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_removing_is_asked_first(
    saeclamp: Saeclamp, environment: dict[str, str], folder: Path, tmp_path: Path, answer: str, removed: bool
) -> None:
    saeclamp("add", str(folder), "--name", "mine")
    status, said = on_a_terminal(environment, "remove", "mine", types=answer)
    assert f"Delete {tmp_path}/home/saes/mine? [y/N]" in said
    assert (status == 0, (tmp_path / "home" / "saes" / "mine").exists()) == (removed, not removed)


def test_without_a_terminal_nothing_is_removed_unasked(saeclamp: Saeclamp, folder: Path, tmp_path: Path) -> None:
    saeclamp("add", str(folder), "--name", "mine")
    said = saeclamp("remove", "mine")
    assert (said.status, said.err) == (
        1,
        "saeclamp: Nothing was removed; say --yes to remove it without being asked.\n",
    )
    assert (tmp_path / "home" / "saes" / "mine" / "source.json").is_file()


def test_a_reader_that_stops_early_is_no_error(environment: dict[str, str]) -> None:
    command = (
        f"set -o pipefail; {sys.executable} -m saeclamp_server sae list --catalogue gemma-scope-9b-pt-res | head -1"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)
    assert (done.stdout.split("\t")[0], done.stderr) == ("ID", "")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["sae", "--help"], ["serve", "--help"], *(["sae", c, "--help"] for c in ("list", "add", "convert"))],
)
def test_help_needs_neither_torch_nor_vllm(arguments: list[str]) -> None:
    code = (
        "import sys; sys.argv[1:] = {!r}\nfrom saeclamp_server.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'vllm', 'transformers', 'rich', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code.format(arguments)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: saeclamp")
    assert done.stdout.endswith("[]\n")


def test_every_command_is_there(saeclamp: Saeclamp) -> None:
    lines = saeclamp("--help").out.splitlines()
    shown: list[Any] = [line.split()[0] for line in lines if line.startswith("    ") and line[4] != " "]
    assert shown == ["list", "info", "add", "remove", "convert", "verify"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_info_says_that_an_sae_is_damaged(saeclamp: Saeclamp, tmp_path: Path, number: float) -> None:
    weights = make_sae(tmp_path / "sae", layer=1, d_in=32) / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["W_dec"][3, 4] = number
    save_file(tensors, weights)
    said = saeclamp("info", str(tmp_path / "sae"))
    assert (said.status, said.err) == (1, "")
    facts = dict(line.split("\t", 1) for line in said.out.splitlines())
    assert facts["damage"] == f"{weights}: W_dec holds NaN or infinity. It cannot be served."
    as_json = saeclamp("info", str(tmp_path / "sae"), "--json")
    assert as_json.status == 1
    assert json.loads(as_json.out)["damage"] == facts["damage"]


def test_info_of_a_sound_sae_speaks_of_no_damage(saeclamp: Saeclamp) -> None:
    assert "damage\t" not in saeclamp("info", "bundled").out


@pytest.mark.parametrize("empty", ["", " ", "name=", "?layer=1", "name=?layer=1"])
@pytest.mark.parametrize("command", ["info", "add"])
def test_no_name_is_not_the_current_folder(saeclamp: Saeclamp, command: str, empty: str) -> None:
    said = saeclamp(command, empty)
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith(f"saeclamp: SAE {empty!r} names nothing: give a bundled SAE"), said.err
