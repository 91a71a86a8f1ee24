"""How connections are held."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import os
from fastapi import FastAPI
from vllm.utils.argparse_utils import FlexibleArgumentParser
from saeclamp_server.vllm_compat import import_cli_args
from saeclamp_server.http_server import _config
args = import_cli_args().make_arg_parser(FlexibleArgumentParser()).parse_args(["model"])
for asked in (None, "9"):
    if asked is not None:
        os.environ["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] = asked
    print(f"asked {asked}, held {_config(FastAPI(), args).timeout_keep_alive}")
"""


@pytest.fixture(scope="module")
def said() -> str:
    """By a process that has imported vLLM, which takes long; it looks into the environment each time."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", None)
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=True)
    return done.stdout


@pytest.mark.parametrize(("asked", "held"), [(None, 65), ("9", 9)])
def test_an_idle_connection_outlasts_what_clients_keep_unless_it_is_told_otherwise(
    said: str, asked: str | None, held: int
) -> None:
    assert f"asked {asked}, held {held}\n" in said
