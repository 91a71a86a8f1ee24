"""How connections are held."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
from fastapi import FastAPI
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from saeclamp_server.http_server import _config
args = make_arg_parser(FlexibleArgumentParser()).parse_args(["model"])
print("held", _config(FastAPI(), args).timeout_keep_alive)
"""


@pytest.mark.parametrize(("asked", "held"), [(None, 65), ("9", 9)])
def test_an_idle_connection_outlasts_what_clients_keep_unless_it_is_told_otherwise(
    asked: str | None, held: int
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {} if asked is None else {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": asked}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=True)
    assert f"held {held}\n" in done.stdout
