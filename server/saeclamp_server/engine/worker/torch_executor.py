"""
Worker process: what the tables say, done with torch: activations are read, rules judged, vectors edited, edits counted.

It runs on CPUs, and is what the kernels for GPUs are held against. Selecting pairs waits for the device, which on a CPU is
nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saeclamp.types import MAX_TESTS
from saeclamp_saes.clamping import EditRows, FeaturePairs, ReadActs, decoder_delta, read_acts
from saeclamp_saes.parts import parts_of
from saeclamp_server.engine.worker.conditions import aggregate, run_conditions
from saeclamp_server.engine.worker.loaded_sae import LoadedSAE
from saeclamp_server.engine.worker.program_layout import (
    CARRIED,
    COLUMN,
    COUNTED_TO,
    EDITS,
    FEATURE,
    FIRST,
    FLAGS,
    FOREVER,
    GENERATED_SINKS,
    LAST,
    LASTING,
    LEFT_OUT,
    MANY,
    MAX_NORM,
    NUM_EDITS,
    NUMBER,
    PROMPT_LEN,
    PROMPT_SINKS,
    RANGES,
    REACHED,
    RULE,
    RULES,
    SPECIAL,
    SUMS,
    WEIGHTS,
    WRITE,
)
from saeclamp_server.engine.worker.program_tables import EntryTable, ProgramTables
from saeclamp_server.engine.worker.site_vectors import SiteVectors
from saeclamp_server.engine.worker.step_tables import Batch, StepTables, map_tokens
from saeclamp_server.engine.worker.token_pairs import PAIR_BYTES, VECTOR_COPIES, TokenPairs, distinct_features

SEARCHES = RANGES.bit_length()
"""Halvings until one of a program's ranges is found."""


class TorchExecutor:
    """Executor of the tables of one worker."""

    def __init__(
        self, programs: ProgramTables, step: StepTables, saes: Sequence[LoadedSAE], is_deferred: bool = False
    ) -> None:
        """
        saes:        all SAEs and banks, in the order of their numbers
        is_deferred: True if counts wait for `settle`, as some of the tokens may be drafts
        """
        self._programs, self._step, self._saes, self._is_deferred = programs, step, saes, is_deferred

    def map_tokens(self, batch: Batch) -> None:
        """Begin a step; as in `Executor`, and so are the others."""
        map_tokens(batch, self._programs, self._step)

    def clear(self) -> None:
        """Begin a step that reads and edits nothing."""
        self._step.num_tokens = 0

    def judge(self, site: int, vectors: SiteVectors) -> None:
        """Read and judge."""
        if not self._step.num_tokens:
            return
        if self._programs.reads.num_programs_at[site]:
            for tokens in self._parts(self._programs.reads, vectors):
                self._read(site, vectors, tokens)
        if self._programs.aggregates.num_programs_at[site]:
            # in order, as each token adds to those before
            for tokens in self._parts(self._programs.aggregates, vectors):
                pairs = self._pairs(self._programs.aggregates, site, tokens)
                aggregate(pairs.ints, pairs.token, self._programs, self._step)
        if self._programs.conditions.num_programs_at[site]:
            for tokens in self._parts(self._programs.conditions, vectors):
                self._judge(site, tokens)

    def edit(self, site: int, vectors: SiteVectors) -> None:
        """Edit and count."""
        if not self._step.num_tokens or not self._programs.edits.num_programs_at[site]:
            return
        for tokens in self._parts(self._programs.edits, vectors):
            self._edit(site, vectors, tokens)

    def _edit(self, site: int, vectors: SiteVectors, tokens: slice) -> None:
        step = self._step
        pairs = self._pairs(self._programs.edits, site, tokens)
        pairs = pairs.only(self._in_scope(pairs))
        pairs = pairs.only(self._is_allowed(pairs))
        if not len(pairs.token):
            return
        rows, place = torch.unique(pairs.token, return_inverse=True)
        x = vectors.gather(rows)
        is_long = x.norm(dim=1) > self._programs.sink_norms[site]
        is_left_out = self._is_left_out(pairs, is_long[place])
        if bool(is_left_out.any()):
            self._count_left_out(pairs.only(is_left_out))
            pairs, place = pairs.only(~is_left_out), place[~is_left_out]
            if not len(pairs.token):
                return
            kept, place = torch.unique(place, return_inverse=True)
            rows, x, is_long = rows[kept], x[kept], is_long[kept]
        norms = vectors.resid_norms(x, rows)
        delta = torch.zeros_like(x)
        for number in torch.unique(pairs.ints[:, WEIGHTS]).tolist():
            is_mine = pairs.ints[:, WEIGHTS] == number
            mine, at = pairs.only(is_mine), place[is_mine]
            write = int(mine.ints[0, WRITE])  # an SAE writes to a site once
            change, acts, pushes = self._change(number, write, mine, at, x)
            # summed in fp32 over all SAEs, and rounded once, below: to bf16 each small change alone could be lost
            delta += change
            # counted at the first site alone: an SAE that writes to several makes one edit, not several
            if write == 0:
                # tiny: a zero vector gives a large dose, not NaN
                self._count(mine, acts, pushes / norms[at].clamp_min(torch.finfo(torch.float32).tiny))
        is_sound = (x + delta).norm(dim=1) <= MAX_NORM  # which NaN is not
        step.is_lost[rows] |= ~is_sound
        # long from here on because of its edits; a sink that is edited on purpose stays one at later sites
        step.is_edited[rows] |= ~is_long
        # added to the summand, not to the vector: the model adds the residual itself
        hidden = vectors.hidden
        edited = torch.where(is_sound[:, None], hidden[rows].float() + delta, torch.nan)
        hidden.index_copy_(0, rows, edited.to(hidden.dtype))

    def find_lost(self, last_hidden: Tensor) -> None:
        """Mark what became infinite."""
        num = self._step.num_tokens
        program = self._step.program[:num]
        is_edited = (program >= 0) & (self._programs.headers[program, NUM_EDITS] > 0)
        # smallest and largest: NaN among them is both, and nothing of the size of all hidden states is made
        low, high = last_hidden[:num].aminmax(dim=1)
        self._step.is_lost[:num] |= is_edited & ~(low.isfinite() & high.isfinite())

    def settle(self, kept_to: Tensor) -> None:
        """Count what stays."""
        programs, step = self._programs, self._step
        program, position = step.program[: step.num_tokens], step.position[: step.num_tokens]
        has_program = program >= 0
        counted_to = programs.headers[program, COUNTED_TO]
        is_counted = has_program & (position < kept_to[program]) & (position >= counted_to)
        acts, doses = step.items[: step.num_tokens].unbind(dim=2)
        token, number = (is_counted[:, None] & ~acts.isnan()).nonzero(as_tuple=True)
        self._add(program[token], number, position[token], acts[token, number], doses[token, number])
        token, number = (is_counted[:, None] & acts.isnan() & (doses == LEFT_OUT)).nonzero(as_tuple=True)
        self._add_left_out(program[token], number, position[token])
        for bits, counts in ((step.verdicts, programs.num_held), (step.unjudged, programs.num_unjudged)):
            is_set = (bits[: step.num_tokens, None] >> torch.arange(RULES, device=programs.device)) & 1 != 0
            token, rule = (is_counted[:, None] & is_set).nonzero(as_tuple=True)
            counts.view(-1).index_add_(0, program[token] * RULES + rule, torch.ones_like(token).int())
        first = programs.first_held
        first.copy_(torch.where(first >= kept_to[:, None], FOREVER, first))
        reached = programs.headers[:, REACHED]
        reached.copy_(torch.minimum(reached, kept_to))
        last = (has_program & (position == kept_to[program] - 1)).nonzero()[:, 0]
        programs.totals[program[last]] = step.totals[last]
        # what is settled is not settled again
        step.items[: step.num_tokens] = torch.nan
        step.verdicts[: step.num_tokens] = 0
        step.unjudged[: step.num_tokens] = 0

    def _parts(self, table: EntryTable, vectors: SiteVectors) -> list[slice]:
        """Cut the step's tokens into runs whose vectors, and pairs with a table's rows, do not take too much memory."""
        token_bytes = VECTOR_COPIES * 4 * vectors.hidden.shape[1] + PAIR_BYTES * table.num_rows
        return parts_of(self._step.num_tokens, token_bytes)

    def _pairs(self, table: EntryTable, site: int, tokens: slice) -> TokenPairs:
        """Pair each token of a run with the rows that its program has at a site."""
        program = self._step.program[tokens]
        spans = table.spans[site].long()[program]
        num_rows = spans[:, 1] - spans[:, 0]
        token = torch.repeat_interleave(num_rows)
        begin = torch.cumsum(num_rows, 0) - num_rows
        row = torch.arange(len(token), device=token.device) + (spans[:, 0] - begin)[token]
        return TokenPairs(token + tokens.start, program[token], table.ints[row].long(), table.floats[row])

    def _in_scope(self, pairs: TokenPairs) -> Tensor:
        """Tell of each pair whether the token is in the row's scope; sinks only where special tokens are."""
        step, ints = self._step, pairs.ints
        position, flags = step.position[pairs.token], ints[:, FLAGS]
        inside = (position >= ints[:, FIRST]) & (position < ints[:, LAST])
        if self._programs.num_with_ranges:
            has_run = (flags & MANY != 0).nonzero()[:, 0]
            inside[has_run] = self._in_run(position[has_run], ints[has_run, FIRST], ints[has_run, LAST])
        in_scope: Tensor = inside & (~step.is_sink[pairs.token] | (flags & SPECIAL != 0))
        return in_scope

    def _in_run(self, position: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """Tell of each position whether it is in one of the ranges from `first` to `last`, which ascend."""
        ranges, low, high = self._programs.ranges, first, last
        for _ in range(SEARCHES):
            middle = (low + high) // 2
            begins_before = (low < high) & (ranges[middle.clamp(max=len(ranges) - 1), 0] <= position)
            low, high = torch.where(begins_before, middle + 1, low), torch.where(begins_before, high, middle)
        # the last range that begins at the position or before it, if there is one
        return (low > first) & (position < ranges[(low - 1).clamp(min=0), 1])

    def _read(self, site: int, vectors: SiteVectors, tokens: slice) -> None:
        step, pairs = self._step, self._pairs(self._programs.reads, site, tokens)
        pairs = pairs.only(self._in_scope(pairs))
        if not len(pairs.token):
            return
        rows, place = torch.unique(pairs.token, return_inverse=True)
        x = vectors.gather(rows)
        is_left_out = self._is_sink(pairs, (x.norm(dim=1) > self._programs.sink_norms[site])[place])
        for number in torch.unique(pairs.ints[:, WEIGHTS]).tolist():
            is_mine = pairs.ints[:, WEIGHTS] == number
            mine, at = pairs.only(is_mine), place[is_mine]
            feature = mine.ints[:, FEATURE]
            found = read_acts(x, self._saes[number].sae, FeaturePairs(at, feature, distinct_features(feature, at)))
            found = found._replace(acts=found.acts.masked_fill(is_left_out[is_mine], torch.nan))
            is_carried = mine.ints[:, FLAGS] & CARRIED != 0
            shown, carried = (~is_carried).nonzero()[:, 0], is_carried.nonzero()[:, 0]
            step.acts[mine.token[shown], mine.ints[shown, NUMBER]] = found.acts[shown]
            step.carried[mine.token[carried], mine.ints[carried, NUMBER]] = torch.stack(found, dim=1)[carried]

    def _judge(self, site: int, tokens: slice) -> None:
        programs, step = self._programs, self._step
        pairs = self._pairs(programs.conditions, site, tokens)
        pairs = pairs.only(self._in_scope(pairs))
        if not len(pairs.token):
            return
        rule, position = pairs.ints[:, NUMBER], step.position[pairs.token]
        is_met, is_judged = run_conditions(pairs.ints, pairs.token, step.acts, programs)
        # each bit is added once, as a rule is judged at one site
        step.verdicts.index_add_(0, pairs.token, (is_met.long() << rule).int())
        step.unjudged.index_add_(0, pairs.token, ((~is_judged).long() << rule).int())
        slot, first = pairs.program * RULES + rule, programs.first_held.view(-1)
        first.scatter_reduce_(0, slot, torch.where(is_met, position, FOREVER).int(), "amin")
        begins = (is_met & (position == first[slot])).nonzero()[:, 0]
        columns = pairs.ints[begins, COLUMN, None] + torch.arange(MAX_TESTS, device=programs.device)
        programs.first_acts.view(-1, MAX_TESTS)[slot[begins]] = step.acts[pairs.token[begins, None], columns]
        if not self._is_deferred:
            is_new = position >= programs.headers[pairs.program, COUNTED_TO]
            programs.num_held.view(-1).index_add_(0, slot, (is_met & is_new).int())
            programs.num_unjudged.view(-1).index_add_(0, slot, (~is_judged & is_new).int())

    def _is_sink(self, pairs: TokenPairs, is_long: Tensor) -> Tensor:
        """
        Tell of each pair whether it is left out because the token's vector is that of a sink.

        is_long: (num_pairs,), whether the vector is as long as a sink's
        returns: (num_pairs,) bool
        """
        is_sink: Tensor = is_long & ~self._step.is_edited[pairs.token] & (pairs.ints[:, FLAGS] & SPECIAL == 0)
        return is_sink

    def _is_left_out(self, pairs: TokenPairs, is_long: Tensor) -> Tensor:
        """Tell the same of edits: those that are carried are left out where their SAE has found a sink when it read."""
        is_left_out = self._is_sink(pairs, is_long)
        carried = (pairs.ints[:, FLAGS] & CARRIED != 0).nonzero()[:, 0]
        acts = self._step.carried[pairs.token[carried], pairs.ints[carried, NUMBER], 0]
        is_left_out[carried] = acts.isnan()
        return is_left_out

    def _is_allowed(self, pairs: TokenPairs) -> Tensor:
        """Tell of each pair whether its rule holds at the token, or there is none: (num_pairs,) bool."""
        rule = pairs.ints[:, RULE]
        if bool((rule < 0).all()):
            return rule < 0
        nth = rule.clamp(min=0)
        holds = (self._step.verdicts[pairs.token].long() >> nth) & 1 != 0
        since = self._step.position[pairs.token] >= self._programs.first_held[pairs.program, nth]
        is_allowed: Tensor = (rule < 0) | holds | ((pairs.ints[:, FLAGS] & LASTING != 0) & since)
        return is_allowed

    def _change(
        self, number: int, write: int, pairs: TokenPairs, at: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Compute what an SAE's edits add, with the activations before and the lengths of their shares.

        at:      (num_pairs,), row of each pair's token in `x`
        returns: (num_rows, width), (num_pairs,), (num_pairs,)
        """
        sae, feature = self._saes[number].sae, pairs.ints[:, FEATURE]
        distinct = distinct_features(feature, at)
        if bool(pairs.ints[0, FLAGS] & CARRIED):
            before = ReadActs(*self._step.carried[pairs.token, pairs.ints[:, NUMBER]].unbind(dim=1))
        else:
            before = read_acts(x, sae, FeaturePairs(at, feature, distinct))
        change, pushes = decoder_delta(sae, EditRows(at, feature, pairs.floats[:, :4], distinct), before, len(x), write)
        return change, before.acts, pushes

    def _count(self, pairs: TokenPairs, acts: Tensor, doses: Tensor) -> None:
        number, position = pairs.ints[:, NUMBER], self._step.position[pairs.token]
        self._step.items[pairs.token, number] = torch.stack((acts, doses), dim=1)
        if not self._is_deferred:
            new = (position >= self._programs.headers[pairs.program, COUNTED_TO]).nonzero()[:, 0]
            self._add(pairs.program[new], number[new], position[new], acts[new], doses[new])

    def _count_left_out(self, pairs: TokenPairs) -> None:
        pairs = pairs.only(pairs.ints[:, WRITE] == 0)
        number, position = pairs.ints[:, NUMBER], self._step.position[pairs.token]
        self._step.items[pairs.token, number, 1] = LEFT_OUT
        if not self._is_deferred:
            new = (position >= self._programs.headers[pairs.program, COUNTED_TO]).nonzero()[:, 0]
            self._add_left_out(pairs.program[new], number[new], position[new])

    def _add_left_out(self, program: Tensor, number: Tensor, position: Tensor) -> None:
        """Add edits that were left out to their counters. All arguments are (num_edits,)."""
        is_generated = position >= self._programs.headers[program, PROMPT_LEN]
        column = torch.where(is_generated, GENERATED_SINKS, PROMPT_SINKS)
        place = (program * EDITS + number) * SUMS + column
        self._programs.sums.view(-1).index_add_(0, place, torch.ones_like(place).double())

    def _add(self, program: Tensor, number: Tensor, position: Tensor, acts: Tensor, doses: Tensor) -> None:
        """Add edits that were made to their counters. All arguments are (num_edits_made,)."""
        programs, slot = self._programs, program * EDITS + number
        is_generated = position >= programs.headers[program, PROMPT_LEN]
        sums = torch.stack((~is_generated, is_generated, acts, doses), dim=1).double()
        # several edits of a step may have one slot, which an indexed assignment would count once
        programs.sums.view(-1, SUMS)[:, :4].index_add_(0, slot, sums)
        peaks = torch.stack((acts, doses), dim=1)
        programs.peaks.view(-1, 2).scatter_reduce_(0, slot[:, None].expand_as(peaks), peaks, "amax")
