"""`saeclamp fleets`: what is in the database, and what is forgotten of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect
from tests.support.databases import emptied

from saeclamp_server.__main__ import main
from saeclamp_server.database import Database
from saeclamp_server.fleet import confirm_fleet, join_fleet, list_fleets
from saeclamp_server.site_norms import QuickCheckResult, SiteNorms

OWN = {"saeclamp": "0.1.0", "the names that it is served under": '["tiny"]', "--dtype": "float32"}


@pytest.fixture
def url(postgres: str) -> str:
    emptied(postgres)
    database, measured = Database(postgres), {"low": QuickCheckResult(SiteNorms(10.0, [1.0]), None)}
    confirm_fleet(database, "prod-1", OWN, join_fleet(database, "prod-1", OWN, measured))
    database.close()
    return postgres


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    monkeypatch.setattr("sys.argv", ["saeclamp", "fleets", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_fleets_are_listed_and_shown(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "list", "--variants", url) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header == "fleet\tserved as\tsaeclamp\tfounded"
    assert re.fullmatch(r"prod-1\ttiny\t0\.1\.0\t\d{4}-\d\d-\d\d \d\d:\d\d UTC", row)
    assert run(monkeypatch, "show", "prod-1", "--variants", url) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}\t{OWN[name]}" for name in sorted(OWN)]


def test_one_is_forgotten_only_when_that_is_sure(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "forget", "prod-1", "--variants", url) == 1
    assert "say --yes" in capsys.readouterr().err
    assert run(monkeypatch, "forget", "prod", "--yes", "--variants", url) == 1
    assert "There is no fleet 'prod'. There are: prod-1." in capsys.readouterr().err
    assert list_fleets(Database(url))["prod-1"].fingerprint == OWN
    assert run(monkeypatch, "forget", "prod-1", "--yes", "--variants", url) == 0
    assert capsys.readouterr().out == "forgot prod-1\n"
    assert list_fleets(Database(url)) == {}


def test_the_database_is_only_looked_at(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    emptied(postgres)
    assert run(monkeypatch, "list", "--variants", postgres) == 1
    assert "has no tables of saeclamp" in capsys.readouterr().err
    assert inspect(create_engine(postgres)).get_table_names() == []
    file = tmp_path / "variants.sqlite3"
    assert run(monkeypatch, "list", "--variants", f"sqlite:///{file}") == 1
    assert "name a PostgreSQL database" in capsys.readouterr().err
    assert not file.exists()
