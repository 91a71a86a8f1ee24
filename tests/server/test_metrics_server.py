"""Metrics have a port of their own, which needs no key, where that is asked for."""

from __future__ import annotations

import socket

import httpx
import pytest
from tests.support.serving import free_port

from saeclamp_server.api import metrics  # noqa: F401 - whose counters are served
from saeclamp_server.cli.args import parse_args
from saeclamp_server.metrics_server import serve_metrics
from saeclamp_server.model_info import StartupError


def test_metrics_are_on_the_first_port_that_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1], free_port()]
        server = serve_metrics("--metrics-port", "127.0.0.1", ports)
        try:
            assert server.server_port == ports[1]
            own = f"http://127.0.0.1:{ports[1]}"
            assert "saeclamp_requests_waiting" in httpx.get(f"{own}/metrics").text
            # a probe of the wrong port must not find the server well
            for path in ("/ready", "/health", "/", "/metrics/x"):
                assert httpx.get(f"{own}{path}").status_code == 404
        finally:
            server.shutdown()
            server.server_close()


def test_an_address_of_the_sixth_version_is_listened_on() -> None:
    port = free_port()
    server = serve_metrics("--metrics-port", "::1", [port])
    try:
        assert httpx.get(f"http://[::1]:{port}/metrics").status_code == 200
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("host", "said"), [("127.0.0.1", "Address already in use"), ("192.0.2.1", "assign")])
def test_a_port_that_cannot_be_had_is_named_with_the_reason(host: str, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=rf"--metrics-port: {port} cannot be listened on: .*{said}"):
            serve_metrics("--metrics-port", host, [port])


@pytest.mark.parametrize("text", ["0", "65536", "-1", "x", "", "1.5"])
def test_what_is_no_port_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["serve", "m", "--sae", "none", "--vector-site", "all", f"--metrics-port={text}"])
    assert "is not a port, a whole number from 1 to 65535" in capsys.readouterr().err
