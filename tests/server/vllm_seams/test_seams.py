"""What is said of a package in which something has moved, and that nothing has in the vLLM that is installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from saeclamp_server import vllm_seams
from saeclamp_server.model_info import StartupError
from saeclamp_server.startup import preflight
from saeclamp_server.startup.preflight import check_vllm
from saeclamp_server.vllm_seams import SEAMS, find_moved_seams, vllm_folder
from saeclamp_server.vllm_seams.seam import Seam, find_moved
from saeclamp_server.vllm_seams.source import Package

ENGINE = """
from .base import Base, helper
from .base import OLD as NEW
if TYPE_CHECKING:
    from .base import Typed
class Engine(Base):
    limit: int = 3
    def __init__(self, config, *, block_size):
        self.requests: dict[str, int] = {}
        self.first, self.second = 1, 2
    def add(self, request, priority=0): ...
    def step(self, *args, **kwargs): ...
    async def run(self, prompt, *, rank=None, needed): ...
    @property
    def size(self): ...
class Row(NamedTuple):
    name: str
    value: int = 0
"""
BASE = """
OLD = 1
class Typed: ...
class Base:
    def close(self, when): self.closed = True
def helper(one, two=2): ...
"""


@pytest.fixture
def package(tmp_path: Path) -> Package:
    folder = tmp_path / "engines"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .engine import *\n")
    (folder / "engine.py").write_text(ENGINE)
    (folder / "base.py").write_text(BASE)
    return Package(folder)


@pytest.mark.parametrize(
    "seam",
    [
        Seam("engines", names="Engine Row base engine"),
        Seam(
            "engines.engine", names="NEW Typed helper", reads={"Engine": "limit requests second size add close closed"}
        ),
        Seam("engines.engine", calls=("helper(one)", "helper(one, two)", "helper(*, one)")),
        Seam("engines.engine", calls=("Engine.run(prompt, *, needed)", "Engine.step(anything, *, else_)")),
        Seam("engines.engine", calls=("Engine(config, *, block_size)", "Row(name, value)", "Row(*, value, name)")),
        Seam("engines.engine", overrides=("Engine.add(request, priority)", "Engine.add(request, *args)")),
        Seam("engines.engine", overrides=("Engine.close(when)", "Engine.run(*args, **kwargs)", "helper(*args)")),
        Seam(("engines.newer", "engines.engine"), types={"Engine.requests": ("list[int]", "dict[str, int]")}),
    ],
)
def test_of_what_is_there_nothing_is_said(package: Package, seam: Seam) -> None:
    assert [*find_moved([seam], package)] == []


@pytest.mark.parametrize(
    ("seam", "said"),
    [
        (Seam("engines.old"), "engines.old is gone"),
        (Seam(("engines.new", "engines.old")), "engines.new is gone"),
        (Seam("engines.engine", names="Motor"), "engines.engine has no Motor"),
        (Seam("engines.engine", reads={"Motor": "limit"}), "engines.engine has no Motor"),
        (Seam("engines.engine", reads={"Engine": "limits"}), "Engine has no limits"),
        (Seam("engines.engine", calls=("Engine.start()",)), "Engine has no start"),
        (Seam("engines.engine", calls=("Engine.add(request, *, rank)",)), "Engine.add has no parameter `rank`"),
        (
            Seam("engines.engine", calls=("Engine.add(priority)",)),
            "Engine.add has its parameter `priority` elsewhere",
        ),
        (Seam("engines.engine", calls=("Engine.run(prompt)",)), "Engine.run needs the parameter `needed`"),
        (Seam("engines.engine", calls=("Row(*, title)",)), "Row has no parameter `title`"),
        (Seam("engines.engine", overrides=("Engine.add(request)",)), "Engine.add has the new parameter `priority`"),
        (Seam("engines.engine", overrides=("Engine.add(it, priority)",)), "Engine.add has no parameter `it`"),
        (
            Seam("engines.engine", overrides=("Engine.run(prompt, *, needed)",)),
            "Engine.run has the new parameter `rank`",
        ),
        (Seam("engines.engine", types={"Engine.requests": ("set[int]",)}), "Engine.requests is dict[str, int]"),
    ],
)
def test_what_has_moved_is_named(package: Package, seam: Seam, said: str) -> None:
    assert said in [*find_moved([seam], package)]


@pytest.mark.parametrize("runner", SEAMS)
def test_the_installed_vllm_has_all_that_is_leaned_on(runner: str) -> None:
    assert find_moved_seams(runner) == []


@pytest.fixture
def moved_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A vLLM that was edited: links to the installed one, with a scheduler of its own."""
    folder = tmp_path / "vllm"
    own = ("v1", "v1/core", "v1/core/sched")
    for inner in ("", *own):
        (folder / inner).mkdir()
        for path in (vllm_folder() / inner).iterdir():
            if path.relative_to(vllm_folder()).as_posix() not in own:
                (folder / inner / path.name).symlink_to(path)
    scheduler = folder / "v1/core/sched/scheduler.py"
    text = scheduler.read_text()
    scheduler.unlink()
    assert "        model_runner_output: ModelRunnerOutput,\n" in text
    scheduler.write_text(text.replace("        model_runner_output: Model", "        runner_output: Model"))
    monkeypatch.setattr(vllm_seams, "vllm_folder", lambda: folder)
    preflight._moved.cache_clear()
    return folder


@pytest.mark.parametrize(
    ("version", "first"),
    [
        ("0.34.0", "vLLM 0.34.0 is installed; saeclamp works with 0.32 and 0.33."),
        ("0.33.7", "vLLM 0.33.7 is installed; saeclamp works with 0.32 and 0.33, but not with this build of it."),
    ],
)
@pytest.mark.usefixtures("moved_vllm")
def test_a_vllm_in_which_something_has_moved_is_refused_by_naming_it(
    monkeypatch: pytest.MonkeyPatch, version: str, first: str
) -> None:
    monkeypatch.setattr(preflight, "version", lambda distribution: version)
    with pytest.raises(StartupError) as refused:
        check_vllm()
    preflight._moved.cache_clear()
    lines = str(refused.value).splitlines()
    assert lines[0] == first
    assert f"  vLLM {version}: Scheduler.update_from_output has no parameter `model_runner_output`." in lines


def test_of_much_that_has_moved_a_part_is_named(moved_vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "version", lambda distribution: "0.40.0")
    (moved_vllm / "entrypoints").unlink()
    shutil.rmtree(moved_vllm / "v1" / "core")
    with pytest.raises(StartupError) as refused:
        check_vllm()
    preflight._moved.cache_clear()
    lines = str(refused.value).splitlines()
    assert len(lines) == 1 + preflight.NUM_NAMED + 1
    assert lines[1] == "  vLLM 0.40.0: vllm.entrypoints.common.cli_args is gone."
    assert lines[-1].startswith("  And ")
