"""Metrics of steering in `/metrics`, beside vLLM's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from time import perf_counter

from prometheus_client import Counter, Gauge, Histogram

from saeclamp.types import Receipt, ServerIdentity
from saeclamp_server.steering.admission import Admission

REQUESTS = Counter("saeclamp_requests", "Steered requests that were answered.")
FAILURES = Counter("saeclamp_failures", "Steered requests that the engine could not steer, and that were not answered.")
REFUSALS = Counter("saeclamp_refusals", "Requests refused for what they asked of steering.", ["code"])
TOKENS = Counter("saeclamp_tokens", "Tokens edited, counted once for each intervention.", ["side"])
FIRINGS = Counter("saeclamp_rule_firings", "Answers in which a rule held.", ["then"])
IN_USE = Gauge("saeclamp_features_in_use", "Distinct features that requests in flight use.")
DATABASE = Gauge("saeclamp_database_up", "1 while the database of variants and vectors answers, else 0.")
WAITING = Gauge("saeclamp_requests_waiting", "Requests that wait for features.")
WAIT = Histogram("saeclamp_wait_seconds", "Time that steered requests waited for features.")
ADMISSION = Histogram(
    "saeclamp_admission_seconds",
    "Time from a checked request to its program: names, units, contradictions, doses.",
    buckets=(0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
)
BUILD = Gauge(
    "saeclamp_build_info",
    "What receipts call this server, and its versions; always 1.",
    ["version", "vllm", "torch", "fleet", "replica"],
)
STARTED = Gauge("saeclamp_start_time_seconds", "Unix time at which this server began to answer.")


def observe_start(server: ServerIdentity) -> None:
    """Show what runs, and since when."""
    BUILD.labels(server.version, server.vllm, version("torch"), server.fleet or "", server.replica).set(1)
    STARTED.set_to_current_time()


def observe_queue(admission: Admission) -> None:
    """Show what is in use, and who waits."""
    IN_USE.set_function(lambda: admission.num_in_use)
    WAITING.set_function(lambda: admission.num_waiting)


@contextmanager
def time_resolution() -> Iterator[None]:
    """Time how long a request's steering takes to resolve."""
    started = perf_counter()
    yield
    ADMISSION.observe(perf_counter() - started)


def count(receipt: Receipt, outcomes: Mapping[str, str]) -> None:
    """Count an answered request; `outcomes` is what each of its rules does, by its name."""
    REQUESTS.inc()
    for item in receipt.interventions:
        TOKENS.labels("prompt").inc(item.tokens.prompt)
        TOKENS.labels("generated").inc(item.tokens.generated)
    for fired in receipt.fired:
        FIRINGS.labels(outcomes[fired.rule]).inc()
