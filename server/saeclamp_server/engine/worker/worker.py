"""
Worker process: what saeclamp adds to a vLLM worker: SAEs and vectors, hooks where they read and write, and reports
on request.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_pp_group

from saeclamp_saes import SAE, Options, Site, read_sae
from saeclamp_saes.evaluation.quick_check import quick_fit
from saeclamp_saes.labelling.table import decoder_sha256
from saeclamp_saes.library.resolve import hash_of
from saeclamp_saes.lm.token_mask import ordinary
from saeclamp_server.engine.lifeline import tie_to_server
from saeclamp_server.engine.worker import decoder_queries
from saeclamp_server.engine.worker.compiled_program import Held, vector_key
from saeclamp_server.engine.worker.edit_stats import Ledger
from saeclamp_server.engine.worker.hooks import WHOLE_STREAM, Layout
from saeclamp_server.engine.worker.model_runner import SteeredRunner
from saeclamp_server.engine.worker.ops import LoadedSAE, SiteState, bind
from saeclamp_server.engine.worker.pipeline import Boundary
from saeclamp_server.engine.worker.prompt_means import Recorder
from saeclamp_server.engine.worker.recorder import Recorded
from saeclamp_server.engine.worker.request_states import LiveRequests
from saeclamp_server.engine.worker.row_cache import RowBank
from saeclamp_server.engine.worker.rule_state import Firings
from saeclamp_server.engine.worker.step_inputs import Filler
from saeclamp_server.engine.worker.step_outputs import Board
from saeclamp_server.engine.worker.vector_bank import dictionary, set_row
from saeclamp_server.engine.worker_config import CONFIG_KEY


class SteeringWorker:
    """Mixed into the platform's worker. vLLM reaches these methods by `collective_rpc`."""

    vllm_config: Any
    model_runner: Any
    use_v2_model_runner: bool
    device: torch.device

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        tie_to_server()
        super().__init__(*args, **kwargs)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then the SAEs, and hook their layers before anything is compiled."""
        if self.use_v2_model_runner:
            raise RuntimeError("saeclamp steers vLLM's V1 model runner: set VLLM_USE_V2_MODEL_RUNNER=0.")
        if self.vllm_config.model_config.dtype is torch.float16:
            # a large edit overflows, and its NaN reaches other requests through recycled cache blocks
            raise RuntimeError("float16 is too narrow for steering: use --dtype bfloat16 or float32.")
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        config = self.vllm_config.additional_config[CONFIG_KEY]
        layout = Layout(self.model_runner.get_model())
        saes = [self._load(sae, layout.layers) for sae in config["saes"]]
        dictionaries = [_dictionary(place, self.device) for place in config["places"]]
        everything = [*saes, *dictionaries]
        ledger, board = Ledger(self.device), Board(Firings(self.device))
        sites = layout.in_order([site for loaded in everything for site in (*loaded.sae.reads, *loaded.sae.writes)])
        layout.hook(sites)
        states = [_state(site, everything, ledger, board, layout) for site in sites]
        weights = [*(sae["sha256"] for sae in config["saes"]), *("" for _ in dictionaries)]
        held = {
            loaded.name: Held(loaded.whole.d_sae, sha256, sites.index(layout.place_of(loaded.sae.reads[-1])))
            for loaded, sha256 in zip(everything, weights, strict=True)
        }
        for number, state in enumerate(states):
            bind(number, state)
        # tokenizers may know special tokens beyond the model's vocabulary
        is_special = torch.zeros(
            max([self.vllm_config.model_config.get_vocab_size(), *config["special_ids"]]) + 1, dtype=torch.bool
        )
        is_special[torch.tensor(config["special_ids"], dtype=torch.long)] = True
        self._saes, self._states, self._is_special, self._layout = saes, states, is_special, layout
        self._dictionaries, self._held = dictionaries, held
        self._live = LiveRequests(held, config["special_ids"], ledger, board.firings)
        filler = Filler(everything, states, board, is_special.to(self.device))
        boundaries = _boundaries(layout.layers, everything, board)
        self._recorder = Recorder(is_special, self.device)
        for state in states:
            state.recorder = self._recorder
        self._steered_runner = SteeredRunner(self.model_runner, filler, states, self._live, self._recorder, boundaries)

    def _load(self, sae: dict[str, Any], layers: range) -> LoadedSAE:
        """Read an SAE, onto the device if it acts on layers that are here: whole, or some rows of it."""
        whole = _read_checked(sae)
        if not any(site.layer in layers for site in (*whole.reads, *whole.writes)):
            return LoadedSAE(sae["name"], whole)
        if sae["num_rows"] is None or whole.top_k is not None:
            return LoadedSAE(sae["name"], whole.to(self.device))
        bank = RowBank(whole, sae["num_rows"], self.device)
        return LoadedSAE(sae["name"], bank.sae, bank)

    def strongest_features(self, name: str, count: int) -> list[int]:
        """Find the features with the longest decoder rows; a dead feature's may be empty, and could not be seen to act."""
        return decoder_queries.strongest(self._whole(name), count)

    def nearest_features(self, name: str, indices: list[int], count: int) -> list[list[tuple[int, float]]]:
        """Find the features whose decoder rows point the same way as each of some: index and cosine."""
        return decoder_queries.nearest(self._whole(name), indices, count)

    def logit_alignment(self, name: str, indices: list[int], token_ids: list[int]) -> list[list[float]] | None:
        """Find what some decoder rows add to some logits by the direct path; None where it is not known here."""
        return decoder_queries.alignment(self.model_runner.get_model(), self._whole(name), indices, token_ids)

    def decoder_hash(self, name: str) -> str:
        """Hash an SAE's decoder, as labels do to say whose they are."""
        return decoder_sha256(self._whole(name))

    def _whole(self, name: str) -> SAE:
        (sae,) = [loaded.whole for loaded in self._saes if loaded.name == name]
        return sae

    def hold_vector(self, place: str, row: int, name: str, sha256: str, direction: bytes) -> None:
        """
        Hold a vector in a row that no request refers to any more.

        place:     name of the dictionary
        name:      as edits name it
        direction: (width,) fp32
        """
        (sae,) = [loaded.sae for loaded in self._dictionaries if loaded.name == place]
        for key in [key for key, held in self._held.items() if held.row == (place, row)]:
            del self._held[key]
        set_row(sae, row, torch.frombuffer(bytearray(direction), dtype=torch.float32))
        self._held[vector_key(name, sha256)] = Held(1, sha256, self._held[place].place, (place, row))

    def start_probes(self) -> None:
        """Record what `measure_fit` needs at every site, from now until then."""
        of_saes = {self._layout.place_of(site) for one in self._saes for site in (*one.sae.reads, *one.sae.writes)}
        for state in self._states:
            state.probe.lengths_only = state.site not in of_saes
            state.probe.is_recording = True

    def measure_fit(self, chunks: list[list[int]]) -> dict[str, dict[str, Any]]:
        """
        Measure every SAE and dictionary of vectors on what was recorded, by name, and stop recording; {} where nothing was.

        `fit`, of SAEs, is as in `evaluation.quick_check`. `lengths` is as in `site_norms`, of the first chunk,
        which is always run.

        chunks: the token ids of the prompts that were run since `start_probes`, in order
        """
        recorded = _gathered({state.site: state.probe.take() for state in self._states})
        if not recorded:  # another data-parallel engine ran them
            return {}
        ids = torch.tensor([token for chunk in chunks for token in chunk])
        position = torch.tensor([position for chunk in chunks for position in range(len(chunk))])
        first = slice(len(chunks[0]))
        measured: dict[str, dict[str, Any]] = {}
        for loaded in self._dictionaries:
            lengths = recorded[self._layout.place_of(loaded.sae.site)][1]
            stream = _median(lengths[first], position[first], self._is_special[ids[first]])
            of_stream = self._layout.has_stream(loaded.sae.site)
            measured[loaded.name] = {"lengths": {"of_stream": of_stream, "stream": stream, "rows": []}}
        for loaded in self._saes:
            # on the CPU: beside a model on a GPU there may be no room for the activations of all features
            sae = loaded.whole.to(torch.device("cpu"))
            x, target = (
                torch.cat([recorded[self._layout.place_of(site)][0] for site in sites], dim=1)
                for sites in (sae.reads, sae.writes)
            )
            lengths = recorded[self._layout.place_of(sae.site)][1]
            is_special = self._is_special[ids]
            measured[loaded.name] = {
                "fit": vars(quick_fit(sae, x, target, position, is_special)),
                "lengths": {
                    "of_stream": self._layout.has_stream(sae.site),
                    **_lengths(sae, x[first], lengths[first], position[first], is_special[first]),
                },
            }
        return measured

    def recorded_streams(self, keys: list[str]) -> dict[str, bytes]:
        """Fetch mean vectors of requests' prompts, (width,) fp64, as far as they were recorded here; forget them."""
        return dict(self._recorder.fetch(keys))

    def steering_reports(self, keys: list[str], abandoned: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
        """
        Report on the requests of some API calls (see `request_states.Report`), by key and request id, and forget them.

        abandoned: keys of calls that have ended without anybody asking
        """
        self._live.abandon(abandoned, self.model_runner.requests.__contains__)
        return {
            key: {request_id: vars(report) for request_id, report in reports.items()}
            for key, reports in self._live.collect(keys).items()
        }


def _boundaries(layers: range, saes: Sequence[LoadedSAE], board: Board) -> tuple[Boundary | None, Boundary | None]:
    """Make those to the pipeline stages before and behind this one, whose layers are given."""
    group = get_pp_group()
    return (
        None if group.is_first_rank else Boundary(layers.start, saes, board),
        None if group.is_last_rank else Boundary(layers.stop, saes, board),
    )


def _gathered(recorded: dict[Site, Recorded | None]) -> dict[Site, Recorded]:
    """Join what the pipeline stages have recorded; every stage has the sites of its own layers."""
    group = get_pp_group()
    stages: list[Any] = [None] * group.world_size
    torch.distributed.all_gather_object(stages, recorded, group=group.cpu_group)
    return {site: found for stage in stages for site, found in stage.items() if found is not None}


def _dictionary(place: dict[str, Any], device: torch.device) -> LoadedSAE:
    return dictionary(place["name"], Site.parse(place["site"]), place["width"], place["capacity"], device)


def _read_checked(sae: dict[str, Any]) -> SAE:
    options = Options.parse(sae["options"])
    loaded = read_sae(Path(sae["path"]), options)
    if hash_of([Path(path) for path in sae["files"]], options) != sae["sha256"]:
        raise RuntimeError(f"The files of SAE {sae['name']!r} changed while the server was starting.")
    return loaded


def _lengths(sae: SAE, x: Tensor, lengths: Tensor, position: Tensor, is_special: Tensor) -> dict[str, Any]:
    """
    Most fields of `site_norms.Lengths`.

    x:       (num_tokens, d_in), where the SAE reads
    lengths: (num_tokens,), where it writes first
    """
    rows = sae.W_dec[:, : sae.d_out // len(sae.writes)].norm(dim=1)
    counted = ordinary(lengths[:, None], position, is_special)
    if counted.any():
        rows = rows * sae.input_norm.apply(x[counted])[1].median()
    return {"stream": _median(lengths, position, is_special), "rows": rows.tolist()}


def _median(lengths: Tensor, position: Tensor, is_special: Tensor) -> float | None:
    """Median length of ordinary tokens; None where there are none. Each argument is (num_tokens,)."""
    counted = ordinary(lengths[:, None], position, is_special)
    return float(lengths[counted].median()) if counted.any() else None


def _state(site: Site, saes: list[LoadedSAE], ledger: Ledger, board: Board, layout: Layout) -> SiteState:
    return SiteState(
        site=site,
        ledger=ledger,
        board=board,
        reads=[loaded for loaded in saes if site in map(layout.place_of, loaded.sae.reads)],
        writes=[
            (loaded, number)
            for loaded in saes
            for number, written in enumerate(loaded.sae.writes)
            if layout.place_of(written) == site
        ],
        whole_stream=site.point in WHOLE_STREAM,
        norm_eps=layout.norm_eps(site),
    )
