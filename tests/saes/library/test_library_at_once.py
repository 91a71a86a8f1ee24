"""The library while others change it too: processes that are killed, that race for a name, that remove what is in use."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.library_fixture import kept

from saeclamp_saes import find_sae, open_entry
from saeclamp_saes.errors import SAELibraryError
from saeclamp_saes.library import resolve, user_library
from saeclamp_saes.library.add import add

pytestmark = pytest.mark.usefixtures("library")


KILLED = """
import sys, time
from saeclamp_saes.library import user_library
with user_library.new_folder("mine") as folder:
    (folder / "half").write_text("half")
    print("filling", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_one_leaves_nothing_that_lasts(folder: Path, library: Path, how: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "filling\n"
    assert len(kept(library)) == 1
    assert list(user_library.records()) == []
    add(str(folder), "meanwhile", None)  # does not sweep out what is still being filled
    assert len(kept(library)) == 2
    process.send_signal(how)
    process.wait()
    process.stdout.close()
    add(str(folder), "mine", None)  # sweeps out what was left
    assert kept(library) == ["meanwhile", "mine"]


def _add_slowly(path: str, home: str, results: Any) -> None:
    os.environ["SAECLAMP_HOME"] = home

    def wait(found: Any) -> Any:
        time.sleep(0.5)
        return found

    try:
        with user_library.new_folder("mine") as folder:
            wait(folder)
            (folder / "who").write_text(str(os.getpid()))
        results.put("added")
    except SAELibraryError as exc:
        results.put(str(exc))


def test_of_two_at_once_one_is_added_and_the_other_is_told(library: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_add_slowly, args=("", str(library.parent), results)) for _ in range(2)]
    for process in processes:
        process.start()
    said = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert said[1] == "added"
    assert said[0].startswith("The library has an SAE 'mine' already")
    assert kept(library) == ["mine"]


def test_one_that_is_removed_while_it_is_opened_is_missed_in_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(str(folder), "mine", None)
    address = find_sae("mine")
    monkeypatch.setattr(resolve, "read_feature_book", lambda *_: user_library.remove("mine"))
    with pytest.raises(SAELibraryError, match=r"SAE 'mine' cannot be read: .*No such file"):
        open_entry(address)


def test_one_that_is_removed_while_its_record_is_read_is_not_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(str(folder), "mine", None)
    user_library.remove("mine")
    monkeypatch.setattr(user_library, "exists", lambda name: True)  # as it was a moment ago
    assert user_library.record("mine") is None
    with pytest.raises(SAELibraryError, match="is no SAE that was added to the library; nothing was removed"):
        user_library.remove("mine")


def _add_and_remove(home: str, name: str, results: Any) -> None:
    os.environ["SAECLAMP_HOME"] = home
    wrong, end = [], time.monotonic() + 2
    while time.monotonic() < end:
        try:
            with user_library.new_folder(name) as folder:
                (folder / "source.json").write_text("{}")
                for number in range(30):
                    (folder / str(number)).touch()
            user_library.remove(name)
        except SAELibraryError:  # another one was faster
            pass
        except OSError as exc:
            wrong.append(repr(exc))
    results.put(wrong)


def test_many_at_once_meet_no_error_but_being_told(library: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = [(str(library.parent), name, results) for name in ("same", "same", "own", "other")]
    processes = [context.Process(target=_add_and_remove, args=some) for some in arguments]
    for process in processes:
        process.start()
    assert [wrong for _ in processes for wrong in results.get(timeout=60)] == []
    for process in processes:
        process.join()


def test_what_vanishes_while_others_are_swept_is_passed_over(folder: Path, library: Path) -> None:
    library.mkdir(parents=True)
    (library / ".unfinished-gone").symlink_to(library / "nowhere")  # listed, and not there when it is opened
    add(str(folder), "mine", None)
    assert kept(library) == [".unfinished-gone", "mine"]
