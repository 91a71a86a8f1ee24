"""Interventions on vectors: units, names, contradictions, doses, receipts, and their way to a row of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.support.sae_entries import SERVER
from tests.support.vector_files import file

from saeclamp import Ablate, Add, AtMost, Clamp, FeatureCondition, Readout, Rule, Scale, Steering
from saeclamp.types import AllOf, Fired, LastTokens, Operation, TokenCounts, VectorCondition
from saeclamp_server.cli.args import parse_args
from saeclamp_server.engine.scheduler.prefix_cache import BlockEdits
from saeclamp_server.engine.worker.compiled_program import CompiledProgram, LoadedWeights, vector_key
from saeclamp_server.engine.worker.program_layout import FEATURE, NUMBER, WEIGHTS
from saeclamp_server.errors import RequestError
from saeclamp_server.site_norms import SiteNorms
from saeclamp_server.startup.options import ServeOptions
from saeclamp_server.steering import SteeringContext, build_receipt, resolve, vectors_used
from saeclamp_server.steering.program import ComparisonSpec, EditSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import ALL, GENERATED
from saeclamp_server.vectors import RegisteredVector, SteeringVector


def vector(name: str, layer: int, stream: float | None = 50.0, **said: str) -> RegisteredVector:
    direction = SteeringVector.parse(file(layer=str(layer), **said))
    return RegisteredVector(name, direction, SiteNorms(stream, [direction.norm]))


@pytest.fixture
def with_vectors(served: SteeringContext) -> SteeringContext:
    vectors = [vector("sleepy", 8), vector("honest", 3, None, sign="-1"), vector("late", 9, site="mlp_out")]
    return replace(served, vectors={each.name: each for each in vectors})


NORM = SteeringVector.parse(file()).norm


def steering(*interventions: Operation) -> Steering:
    return Steering(interventions=interventions)


def test_values_are_multiples_of_the_vector_or_of_the_streams_length(with_vectors: SteeringContext) -> None:
    program = resolve(
        steering(
            Add(vector="sleepy", value=2, unit="resid_norm", tokens="generated"),
            Clamp(vector="honest", value=-3, unit="act"),
            Scale(vector="late", factor=0.5),
            Clamp(feature="big/bridge", value=0.5),
        ),
        with_vectors,
    ).program
    assert program.edits == (
        EditSpec("vector:sleepy", 0, "add", 2 * 50 / float(f"{NORM:.4g}"), GENERATED),
        EditSpec("vector:honest", 0, "clamp", -3.0),
        EditSpec("vector:late", 0, "scale", 0.5),
        EditSpec("big", 4, "clamp", 100.0),
    )
    hashes = {f"vector:{name}": each.sha256 for name, each in with_vectors.vectors.items()}
    assert program.saes == tuple(sorted({**hashes, "big": "sha-of-big"}.items()))
    assert SteeringProgram.from_json(program.to_json()) == program


REFUSALS = [
    (
        Add(vector="sleepi", value=1, unit="act"),
        "vector",
        "unknown_vector",
        "mean 'sleepy'? Uploaded: honest, late, sl",
    ),
    (Ablate(vector="x"), "vector", "unknown_vector", "no vector named 'x'"),
    (Add(vector="sleepy", value=1), "unit", "invalid_steering", "'max_act', the default unit, has no meaning"),
    (Add(vector="honest", value=1, unit="resid_norm"), "unit", "invalid_steering", "could not be measured"),
    (Add(feature="vector:sleepy/0", value=1, unit="act"), "feature", "unknown_sae", "Loaded: big, small"),
]


@pytest.mark.parametrize(("intervention", "field", "code", "says"), REFUSALS)
def test_what_cannot_be_done_to_vectors_is_refused(
    with_vectors: SteeringContext, intervention: Operation, field: str, code: str, says: str
) -> None:
    with pytest.raises(RequestError) as raised:
        resolve(steering(Ablate(feature="big/1"), intervention), with_vectors)
    assert (raised.value.param, raised.value.code) == (f"steering.interventions[1].{field}", code)
    assert says in raised.value.message


def test_two_interventions_on_one_vector_contradict_where_they_meet(with_vectors: SteeringContext) -> None:
    first = Add(vector="sleepy", value=1, unit="act", tokens="prompt")
    assert resolve(steering(first, Ablate(vector="sleepy", tokens="generated"), Ablate(vector="late")), with_vectors)
    with pytest.raises(RequestError, match=r"interventions\[0\] already moves vector:sleepy at") as raised:
        resolve(steering(first, Ablate(vector="sleepy")), with_vectors)
    assert raised.value.param == "steering.interventions[1].vector"


def test_a_servers_bound_on_doses_counts_vectors_and_features_of_a_site(with_vectors: SteeringContext) -> None:
    bounded = replace(with_vectors, max_dose=2.0)
    both = (Add(vector="sleepy", value=1.5, unit="resid_norm"), Add(feature="big/1", value=0.6, unit="resid_norm"))
    for move in both:
        assert resolve(steering(move), bounded)
    with pytest.raises(RequestError, match=r"vector:sleepy 1\.5, big/1 0\.6") as raised:
        resolve(steering(*both), bounded)
    assert raised.value.code == "dose_too_large"
    assert resolve(steering(AtMost(vector="sleepy", value=0, unit="act")), bounded)
    with pytest.raises(RequestError, match="this server bounds doses"):
        resolve(steering(Ablate(vector="honest")), bounded)


def test_a_rule_moves_vectors_only_where_it_knows(with_vectors: SteeringContext) -> None:
    def asked(name: str) -> Steering:
        when = FeatureCondition(feature="big/1", above=1, unit="act")
        return Steering(rules=(Rule(name="r", when=when, then=(Ablate(vector=name),)),))

    for name in ("sleepy", "late"):
        assert resolve(asked(name), with_vectors).program.edits == (
            EditSpec(f"vector:{name}", 0, "clamp", 0.0, rule=0),
        )
    with pytest.raises(RequestError, match="vector:honest is moved at resid_post 3, before") as raised:
        resolve(asked("honest"), with_vectors)
    assert raised.value.param == "steering.rules[0].then[0].vector"


def test_scores_of_probes_are_read_as_projections(with_vectors: SteeringContext) -> None:
    probe = vector("probe", 4, bias="-2")
    context = replace(with_vectors, vectors={**with_vectors.vectors, "probe": probe})
    asked = Steering(
        rules=(
            Rule(name="a", when=VectorCondition(vector="probe", above=3), then="note"),
            Rule(name="b", when=VectorCondition(vector="probe", below=3, unit="act", over="max"), then="abort"),
            Rule(name="c", when=VectorCondition(vector="sleepy", above=3, over=LastTokens(last=5)), then="note"),
        ),
        readout=Readout(features=("big/1",), vectors=("probe",)),
    )
    resolved = resolve(asked, context)
    assert [rule.comparisons for rule in resolved.program.rules] == [
        (ComparisonSpec("vector:probe", 0, 5 / NORM**2, True),),
        (ComparisonSpec("vector:probe", 0, 3.0, False, "max"),),
        (ComparisonSpec("vector:sleepy", 0, 3 / NORM**2, True, "mean", 5),),
    ]
    assert resolved.program.readout is not None
    assert resolved.program.readout.features == (("big", 1), ("vector:probe", 0))
    assert set(resolved.vectors) == vectors_used(asked) == {"probe", "sleepy"}
    assert resolved.outcomes == {"a": "note", "b": "abort", "c": "note"}
    assert probe.score(probe.act_of(3.5)) == pytest.approx(3.5)
    assert SteeringProgram.from_json(resolved.program.to_json()) == resolved.program
    assert resolved.program.needs_all_computed


def test_the_receipt_shows_scores_of_probes_and_what_was_left_out(with_vectors: SteeringContext) -> None:
    context = replace(with_vectors, vectors={"probe": vector("probe", 4, bias="-2"), **with_vectors.vectors})
    when = AllOf(all=(VectorCondition(vector="probe", above=3), FeatureCondition(feature="big/1", above=1, unit="act")))
    asked = Steering(
        interventions=(Add(vector="sleepy", value=1, unit="act"),), rules=(Rule(name="r", when=when, then="note"),)
    )
    fired = {"position": 7, "acts": [1.5, 4.0], "num_tokens": 2}
    done = {**report(-1.5), "fired": [fired], "unjudged": [2]}
    done["tallies"] = [{**done["tallies"][0], "prompt_sinks": 1, "generated_sinks": 3}]
    written = build_receipt(resolve(asked, context), {0: done}, 1, replace(context, vectors={}), "tiny", SERVER)
    score = 1.5 * NORM**2 - 2
    assert written.fired == (
        Fired(rule="r", choice=0, token=7, value=score, acts={"probe": score, "big/1": 4.0}, num_tokens=2),
    )
    assert written.interventions[0].tokens == TokenCounts(prompt=2, generated=2, sinks=4)
    assert any("rules[0] was not looked at" in warning and "at 2 of them" in warning for warning in written.warnings)


def test_readouts_are_of_saes(with_vectors: SteeringContext) -> None:
    asked = Steering(readout=Readout(top_k=3), interventions=(Ablate(vector="sleepy"),))
    readout = resolve(asked, with_vectors).program.readout
    assert readout is not None
    assert readout.saes == ("big", "small")


def report(act_max: float) -> Mapping[str, Any]:
    tally = {"prompt": 2, "generated": 2, "act_sum": -8.0, "act_max": act_max, "dose_sum": 0.4, "dose_max": 0.3}
    tally |= {"prompt_sinks": 0, "generated_sinks": 0}
    return {"failure": None, "prompt": [3], "tallies": [tally], "fired": [], "unjudged": [], "num_positions": 9}


def test_the_receipt_is_of_the_vector_as_it_was_when_the_request_began(with_vectors: SteeringContext) -> None:
    resolved = resolve(steering(Add(vector="sleepy", value=1, unit="resid_norm")), with_vectors)
    written = build_receipt(resolved, {0: report(-1.5)}, 1, replace(with_vectors, vectors={}), "tiny", SERVER)
    (item,) = written.interventions
    assert (item.vector, item.feature, item.sae, item.index, item.name) == ("sleepy", None, None, None, None)
    assert (item.layer, item.site, item.op, item.unit, item.value) == (8, "resid_post 8", "add", "resid_norm", 1.0)
    assert item.value_act == pytest.approx(50 / float(f"{NORM:.4g}"))
    assert item.act_before is not None
    assert (item.act_before.mean, item.act_before.max) == (-2.0, -1.5)
    assert item.dose is not None
    assert item.dose.unit == "token_resid_norm"
    assert written.sae == {"vector:sleepy": f"sha256:{with_vectors.vectors['sleepy'].sha256}"}


HELD = {
    "big": LoadedWeights(100, "sha-of-big", 0, 1, (1,)),
    "vectors@resid_post 3": LoadedWeights(4, "", 1),
    vector_key("vector:a", "one"): LoadedWeights(1, "one", 1, row=("vectors@resid_post 3", 2)),
    vector_key("vector:b", "two"): LoadedWeights(1, "two", 1, row=("vectors@resid_post 3", 0)),
}


def test_the_engine_puts_rows_in_the_place_of_vectors() -> None:
    edits = (
        EditSpec("vector:a", 0, "add", 1.0),
        EditSpec("big", 7, "clamp", 2.0),
        EditSpec("vector:b", 0, "clamp", 3.0, GENERATED),
    )
    program = SteeringProgram(edits, (("big", "sha-of-big"), ("vector:a", "one"), ("vector:b", "two")))
    compiled = CompiledProgram.compile(program, HELD, 5)
    rows = compiled.edits
    assert rows.sites.tolist() == [0, 0, 1]
    assert rows.ints[:, [WEIGHTS, FEATURE, NUMBER]].tolist() == [[1, 2, 0], [1, 0, 2], [0, 7, 1]]


@pytest.mark.parametrize("saes", [(("vector:a", "two"),), (("vector:c", "one"),)])
def test_a_vector_that_is_not_as_it_was_fails_the_request(saes: tuple[tuple[str, str], ...]) -> None:
    program = SteeringProgram((EditSpec(saes[0][0], 0, "add", 1.0, ALL),), saes)
    with pytest.raises(ValueError, match="is not in the engine as it was when the request began"):
        CompiledProgram.compile(program, HELD, 5)


def test_blocks_are_shared_by_what_a_vector_is_and_not_by_its_name() -> None:
    def edits(name: str, sha256: str) -> str | None:
        program = SteeringProgram((EditSpec(name, 0, "add", 1.0),), ((name, sha256),))
        return BlockEdits(program, 32, b"").within(0, 16)

    assert edits("vector:a", "one") != edits("vector:a", "two")
    assert edits("vector:a", "one") == edits("vector:b", "one")


def options(*argv: str) -> ServeOptions:
    parsed = parse_args(["serve", *argv])
    assert isinstance(parsed, ServeOptions)
    return parsed


def test_a_server_may_have_vectors_and_no_sae(capsys: pytest.CaptureFixture[str]) -> None:
    assert options("m", "--vector-site", "all").saes == ()
    assert options("smollm2-135m-instruct", "--vector-site", "resid_post.3").saes == ("bundled",)
    alone = options(
        "smollm2-135m-instruct", "--sae", "none", "--vector-site", "resid_post.3", "--vector-site", "embed.0"
    )
    assert (alone.saes, alone.vector_sites, alone.max_vectors) == ((), ("resid_post.3", "embed.0"), 256)
    for wrong in (
        ["m", "--sae", "none"],
        ["m", "--vector-site", "all", "--max-vectors", "0"],
        ["m", "--sae", "none", "--sae", "x", "--vector-site", "all"],
        ["m", "--sae", "x", "--max-vectors", "-1"],
        ["m", "--sae", "x", "--max-vectors", "1e3"],
    ):
        with pytest.raises(SystemExit):
            parse_args(["serve", *wrong])
    assert "or a --vector-site for vectors of your own" in capsys.readouterr().err
