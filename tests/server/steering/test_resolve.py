"""Names become features, units become activations, and contradictions are refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.blank_label import blank_label
from tests.support.sae_entries import SERVER, entry, report, served_saes

from saeclamp import (
    Ablate,
    Add,
    After,
    AtLeast,
    AtMost,
    Clamp,
    FeatureIndex,
    First,
    GeneratedWindow,
    Last,
    Positions,
    Roles,
    Scale,
    Steering,
)
from saeclamp.types import Operation, Tokens
from saeclamp_saes.labelling.label_file import LabelFile
from saeclamp_saes.labelling.table import LabelsInfo, LabelTable
from saeclamp_server.errors import NotAppliedError, RequestError
from saeclamp_server.site_norms import SiteNorms, rounded, rounded_other_way
from saeclamp_server.steering import SteeringContext, build_receipt, resolve, roles_used
from saeclamp_server.steering import dose as doses
from saeclamp_server.steering.chat_spans import ChatSpans
from saeclamp_server.steering.program import EditOp, EditSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import ALL, GENERATED, PROMPT, PROMPT_END, TokenRanges


def steering(*interventions: Operation) -> Steering:
    return Steering(interventions=interventions)


def test_names_indices_and_units_are_resolved_in_order(served: SteeringContext) -> None:
    program = resolve(
        steering(
            Clamp(feature="big/bridge", value=0.5),
            Add(feature="big/5", value=-3, unit="act", tokens="prompt"),
            Ablate(feature=FeatureIndex(sae="small", index=9), tokens="generated"),
            AtLeast(feature="small/1", value=2, unit="act"),
            AtMost(feature="big/7", value=-1, unit="act", tokens="generated"),
            Scale(feature="small/3", factor=-0.0),
        ),
        served,
    ).program
    assert program.edits == (
        EditSpec("big", 4, "clamp", 100.0),
        EditSpec("big", 5, "add", -3.0, PROMPT),
        EditSpec("small", 9, "clamp", 0.0, GENERATED),
        EditSpec("small", 1, "at_least", 2.0),
        EditSpec("big", 7, "at_most", -1.0, GENERATED),
        EditSpec("small", 3, "scale", 0.0),
    )
    assert program.saes == (("big", "sha-of-big"), ("small", "sha-of-small"))


REFUSALS = [
    pytest.param(Clamp(feature="nobody/1", value=1), "feature", "unknown_sae", "Loaded: big, small", id="sae"),
    pytest.param(Clamp(feature="big/brigde", value=1), "feature", "unknown_feature", "bridge, food", id="feature"),
    pytest.param(Clamp(feature="big/100", value=1), "feature", "feature_out_of_range", "0 to 99", id="index"),
    pytest.param(Clamp(feature="big/-1", value=1), "feature", "unknown_feature", "0 to 99", id="sign"),
    pytest.param(Clamp(feature="big/1e1", value=1), "feature", "unknown_feature", "0 to 99", id="exponent"),
    pytest.param(Clamp(feature="big/food", value=1), "unit", "invalid_steering", "unit 'act'", id="no maximum"),
    pytest.param(Add(feature="small/1", value=1), "unit", "invalid_steering", "unit 'act'", id="no book"),
]


@pytest.mark.parametrize(("intervention", "field", "code", "says"), REFUSALS)
def test_what_does_not_exist_is_refused_with_what_does(
    served: SteeringContext, intervention: Clamp | Add, field: str, code: str, says: str
) -> None:
    with pytest.raises(RequestError) as raised:
        resolve(steering(Clamp(feature="big/1", value=1, unit="act"), intervention), served)
    assert raised.value.param == f"steering.interventions[1].{field}"
    assert raised.value.code == code
    assert says in raised.value.message


@pytest.mark.parametrize(
    ("first", "second", "contradict"),
    [
        ("all", "all", True),
        ("all", "prompt", True),
        ("generated", "all", True),
        ("prompt", "prompt", True),
        ("prompt", "generated", False),
        (First(first=3), After(after=3), False),
        (First(first=4), After(after=3), True),
        (First(first=3), "generated", True),
        (Positions(positions=(2, 4)), Positions(positions=(3,)), False),
        (Positions(positions=(2, 4)), Positions(positions=(4,)), True),
        (Positions(positions=(5,)), "prompt", True),
        (Last(last=3), "generated", False),
        (Last(last=3), Positions(positions=(-3,)), True),
        (Last(last=3), Positions(positions=(-4,)), False),
        (Last(last=1), First(first=5), True),
        (GeneratedWindow(generated=(0, 4)), GeneratedWindow(generated=(4, 8)), False),
        (GeneratedWindow(generated=(0, 5)), GeneratedWindow(generated=(4, None)), True),
    ],
)
def test_two_targets_for_one_feature_at_one_token_contradict(
    served: SteeringContext, first: Any, second: Any, contradict: bool
) -> None:
    asked = steering(
        Clamp(feature="big/bridge", value=1, tokens=first),
        Ablate(feature="big/4", tokens=second),
        Ablate(feature="small/4"),
    )
    if not contradict:
        assert len(resolve(asked, served).program.edits) == 3
        return
    with pytest.raises(RequestError) as raised:
        resolve(asked, served)
    assert raised.value.param == "steering.interventions[1].feature"


def test_tokens_become_ranges_of_positions(served: SteeringContext) -> None:
    said = ChatSpans(30, [("system", 3, 7), ("user", 9, 14), ("assistant", 16, 20), ("user", 22, 27)])
    asked: dict[Tokens, TokenRanges] = {
        "all": ALL,
        "prompt": PROMPT,
        "generated": GENERATED,
        First(first=5): ((0, 5),),
        After(after=5): ((5, None),),
        Positions(positions=(4, 1, 2)): ((1, 3), (4, 5)),
        Positions(positions=(-1, 4)): ((4, 5), ("prompt_end-1", "prompt_end")),
        Last(last=2): (("prompt_end-2", "prompt_end"),),
        GeneratedWindow(generated=(0, 5)): (("prompt_end", "prompt_end+5"),),
        GeneratedWindow(generated=(3, None)): (("prompt_end+3", None),),
        Roles(roles=("user",)): ((9, 14), (22, 27)),
        Roles(roles=("assistant", "system")): ((3, 7), (16, 20), (PROMPT_END, None)),
        Roles(roles=("tool",)): (),
    }
    moves = [Add(feature=f"big/{n}", value=1, unit="act", tokens=tokens) for n, tokens in enumerate(asked)]
    program = resolve(steering(*moves), served, said).program
    assert {edit.index: edit.tokens for edit in program.edits} == dict(enumerate(asked.values()))
    assert roles_used(steering(*moves)) == {"user", "assistant", "system", "tool"}


def test_roles_are_compared_where_they_are_and_need_a_chat(served: SteeringContext) -> None:
    said = ChatSpans(9, [("user", 2, 5), ("assistant", 6, 8)])

    def asked(first: Tokens, second: Tokens) -> Steering:
        return steering(Ablate(feature="big/4", tokens=first), Clamp(feature="big/4", value=1, tokens=second))

    assert resolve(asked(Roles(roles=("user",)), "generated"), served, said)
    assert resolve(asked(Roles(roles=("user",)), Roles(roles=("assistant",))), served, said)
    with pytest.raises(RequestError, match="already moves big/4 at some of these tokens"):
        resolve(asked(Roles(roles=("assistant",)), "generated"), served, said)
    with pytest.raises(RequestError) as raised:
        resolve(asked("all", Roles(roles=("user",))), served, None)
    assert raised.value.param == "steering.interventions[1].tokens.roles"


EDITS = st.builds(
    EditSpec,
    sae=st.sampled_from(["big", "small"]),
    index=st.integers(0, 9),
    op=st.sampled_from(get_args(EditOp)),
    value=st.floats(-1e6, 1e6),
    tokens=st.sampled_from([ALL, PROMPT, GENERATED, ((0, 3), (5, "prompt_end")), ((1, 2), ("prompt_end", None))]),
    special=st.booleans(),
)


@given(st.lists(EDITS, min_size=1, max_size=4).map(tuple))
def test_a_program_survives_its_way_to_the_worker(edits: tuple[EditSpec, ...]) -> None:
    program = SteeringProgram(edits, (("big", "x"), ("small", "y")))
    assert SteeringProgram.from_json(program.to_json()) == program
    specs = {SteeringProgram(tuple(order), program.saes).spec for order in permutations(edits)}
    assert specs == {program.spec}


def test_the_spec_tells_programs_apart() -> None:
    base = EditSpec("big", 1, "clamp", 1.0)
    variants = [
        SteeringProgram((base,), (("big", "x"),)),
        SteeringProgram((base,), (("big", "other weights"),)),
        SteeringProgram((EditSpec("big", 1, "clamp", 1.0000001),), (("big", "x"),)),
        SteeringProgram((EditSpec("big", 1, "add", 1.0),), (("big", "x"),)),
        SteeringProgram((EditSpec("big", 1, "clamp", 1.0, PROMPT),), (("big", "x"),)),
        SteeringProgram((EditSpec("big", 2, "clamp", 1.0),), (("big", "x"),)),
    ]
    assert len({program.spec for program in variants}) == len(variants)


def test_residual_norms_are_turned_into_activations_by_the_decoder_rows_length(served: SteeringContext) -> None:
    asked = steering(
        Clamp(feature="big/1", value=0.5, unit="resid_norm"), Add(feature="big/2", value=-2, unit="resid_norm")
    )
    assert [edit.value for edit in resolve(asked, served).program.edits] == [0.5 * 50 / 2, -2 * 50 / 2]
    for feature, says in (("big/99", "empty"), ("small/1", "could not be measured")):
        with pytest.raises(RequestError, match=says) as raised:
            resolve(steering(Add(feature=feature, value=1, unit="resid_norm")), served)
        assert raised.value.param == "steering.interventions[0].unit"


@pytest.mark.parametrize("noise", [2**-52, -(2**-52), 1e-6, -1e-6])
def test_what_is_measured_a_little_differently_after_a_restart_is_the_same_program(noise: float) -> None:
    asked = steering(Add(feature="big/1", value=0.3, unit="resid_norm"))
    before, after = (
        resolve(
            asked,
            SteeringContext(
                served_saes((entry("big", 8, 10), SiteNorms(137.258 * (1 + by), [0.981234 * (1 - by)] * 10)))
            ),
        ).program
        for by in (0.0, noise)
    )
    assert before.edits[0].value == after.edits[0].value == 0.3 * 137.3 / 0.9812
    assert before.spec == after.spec


@pytest.mark.parametrize(
    ("length", "one", "other"),
    [
        (137.258, 137.3, 137.3),
        (137.2500001, 137.3, 137.2),
        (137.2499999, 137.2, 137.3),
        (0.00123449999999, 0.001234, 0.001235),
        (9999.5, 10000.0, 9999.0),
    ],
)
def test_a_length_near_two_roundings_has_both(length: float, one: float, other: float) -> None:
    assert (rounded(length), rounded_other_way(length)) == (one, other)


def test_doses_are_measured_by_what_is_shown() -> None:
    edit = EditSpec("big", 1, "add", 3.0, ALL)
    measured = SiteNorms(137.258, [2.0] * 10)
    assert doses.dose(edit, measured, None, "resid_post 8") == 6.0 / 137.3
    assert measured.rounded_resid_norm == 137.3
    assert SiteNorms(None, []).rounded_resid_norm is None


BRIDGE = {"feature": "big/bridge"}  # 200 at most
OTHER = {"feature": "big/7"}
DOSES: dict[str, tuple[tuple[Operation, ...], float]] = {
    "add": ((Add(**BRIDGE, value=-100, unit="act"),), 4.0),
    "clamp": ((Clamp(**BRIDGE, value=225, unit="act"),), 9.0),
    "clamp below what may be there": ((Clamp(**BRIDGE, value=-25, unit="act"),), 9.0),
    "clamp, of an unknown maximum": ((Clamp(**OTHER, value=-25, unit="act"),), 1.0),
    "ablate": ((Ablate(**BRIDGE),), 8.0),
    "at least": ((AtLeast(**BRIDGE, value=50, unit="act"),), 2.0),
    "at most": ((AtMost(**BRIDGE, value=50, unit="act"),), 6.0),
    "scale": ((Scale(**BRIDGE, factor=1.5),), 4.0),
    "several": ((Add(**BRIDGE, value=25, unit="act"), Add(**OTHER, value=50, unit="act")), 3.0),
    "several that do not meet": (
        (Add(**BRIDGE, value=25, unit="act", tokens="prompt"), Add(**OTHER, value=50, unit="act", tokens="generated")),
        2.0,
    ),
}
"""Interventions, and the multiple of 50 by which rows of length 2 can move a token."""


@pytest.mark.parametrize(("interventions", "dose"), DOSES.values(), ids=DOSES.keys())
def test_a_dose_above_the_servers_bound_is_refused_with_its_numbers(
    served: SteeringContext, interventions: tuple[Operation, ...], dose: float
) -> None:
    asked = steering(*interventions)
    assert resolve(asked, replace(served, max_dose=dose)) == resolve(asked, served)
    with pytest.raises(RequestError) as raised:
        resolve(asked, replace(served, max_dose=0.99 * dose))
    assert raised.value.code == "dose_too_large"
    assert f"by {dose:g} times" in raised.value.message
    assert f"allows {0.99 * dose:g}" in raised.value.message
    assert raised.value.param == f"steering.interventions[{len(interventions) - 1}]"


def test_a_dose_a_little_above_the_bound_is_not_rounded_to_it(served: SteeringContext) -> None:
    asked = steering(Add(**BRIDGE, value=100, unit="act"))
    with pytest.raises(RequestError, match=r"by 4 times .* allows 3\.9999\."):
        resolve(asked, replace(served, max_dose=3.9999))
    asked = steering(Add(**BRIDGE, value=100.01, unit="act"))
    with pytest.raises(RequestError, match=r"by 4\.0004 times .* allows 4\."):
        resolve(asked, replace(served, max_dose=4.0))


def test_what_cannot_be_measured_is_refused_where_doses_are_bounded(served: SteeringContext) -> None:
    with pytest.raises(RequestError, match="this server bounds doses"):
        resolve(steering(Ablate(feature="small/1")), replace(served, max_dose=9.0))


def test_what_cannot_be_measured_passes_where_nobody_asked_for_a_bound(served: SteeringContext) -> None:
    asked = steering(Ablate(feature="small/1"))
    assert resolve(asked, replace(served, max_dose=9.0, needs_measure=False)) == resolve(asked, served)


def test_a_feature_whose_maximum_is_not_known_may_be_as_long_as_the_stream_where_it_is_multiplied(
    served: SteeringContext,
) -> None:
    for factor, dose in ((1e6, 1e6 - 1), (-1.5, 2.5)):
        asked = steering(Scale(feature="big/9", factor=factor))
        assert resolve(asked, replace(served, max_dose=dose)) == resolve(asked, served)
        with pytest.raises(RequestError, match="this server allows"):
            resolve(asked, replace(served, max_dose=0.99 * dose))
    assert resolve(steering(Scale(feature="big/9", factor=1.9)), replace(served, max_dose=0.01))


def test_a_feature_that_is_not_in_the_book_has_the_maximum_of_its_label(
    served: SteeringContext, tmp_path: Path
) -> None:
    info, saes = LabelsInfo("s", "0" * 64, "tiny", {}, {}, 1000, {}, (), {}, "2026-01-01"), {}
    for name, max_acts in {"small": [None, 40.0, *[None] * 8], "big": [7.0] * 100}.items():
        rows = [
            blank_label(index=index, max_act=max_act, num_active=9, top_act=max_act)
            for index, max_act in enumerate(max_acts)
        ]
        LabelTable.of(info, rows).write(tmp_path / name)
        saes[name] = replace(served.saes[name], labels=LabelFile(tmp_path / name))
    labelled = replace(served, saes=saes)
    asked = steering(
        Clamp(feature="small/1", value=0.5), Clamp(feature="big/bridge", value=0.5), Clamp(feature="big/food", value=2)
    )
    assert [edit.value for edit in resolve(asked, labelled).program.edits] == [20.0, 100.0, 14.0]
    with pytest.raises(RequestError, match="no stored maximum"):
        resolve(steering(Clamp(feature="small/2", value=0.5)), labelled)


def test_minus_zero_is_zero(served: SteeringContext) -> None:
    specs = {resolve(steering(Clamp(feature="big/1", value=v, unit="act")), served).program.spec for v in (0.0, -0.0)}
    assert len(specs) == 1


def test_a_receipt_sums_over_the_sequences_of_its_answer(served: SteeringContext) -> None:
    resolved = resolve(steering(Clamp(feature="big/bridge", value=0.5)), served)
    written = build_receipt(resolved, {0: report(3, 5, 8.0, 4.0), 1: report(1, 1, 2.0, 1.5)}, 2, served, "tiny", SERVER)
    (item,) = written.interventions
    assert (item.tokens.prompt, item.tokens.generated) == (8, 6)
    assert item.act_before is not None
    assert (item.act_before.mean, item.act_before.max) == (1.0, 4.0)
    assert (item.name, item.layer, item.value, item.unit, item.value_act) == ("bridge", 8, 0.5, "max_act", 100.0)
    assert written.sae == {"big": "sha256:sha-of-big"}
    assert written.warnings == ()


def test_a_receipt_does_not_invent_measurements(served: SteeringContext) -> None:
    resolved = resolve(steering(Ablate(feature="big/bridge")), served)
    cached = {**report(0, 0, 0.0, 0.0), "prompt": [7]}
    (item,) = build_receipt(resolved, {0: cached}, 1, served, "tiny", SERVER).interventions
    assert item.tokens.prompt == 7
    assert (item.act_before, item.dose, item.value, item.value_act) == (None, None, None, 0.0)


@pytest.mark.parametrize("reports", [[], [report(1, 1, 1.0, 1.0)], [report(1, 1, 1.0, 1.0)] * 3])
def test_an_answer_whose_sequences_are_not_all_accounted_for_does_not_leave(
    served: SteeringContext, reports: list[dict[str, Any]]
) -> None:
    resolved = resolve(steering(Ablate(feature="big/bridge")), served)
    with pytest.raises(NotAppliedError, match=f"{len(reports)} of 2"):
        build_receipt(resolved, dict(enumerate(reports)), 2, served, "tiny", SERVER)


def test_one_failed_sequence_fails_the_answer(served: SteeringContext) -> None:
    resolved = resolve(steering(Ablate(feature="big/bridge")), served)
    failed = {"failure": "RuntimeError: lost", "prompt": [], "tallies": [], "fired": [], "num_positions": 0}
    with pytest.raises(NotAppliedError, match="lost"):
        build_receipt(resolved, {0: report(1, 1, 1.0, 1.0), 1: failed}, 2, served, "tiny", SERVER)
