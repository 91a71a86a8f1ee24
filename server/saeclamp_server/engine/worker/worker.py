"""
Worker process: a mixin for vLLM's worker, which loads SAEs and vectors, hooks the layers that they read and write, and
answers calls from the API process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_pp_group

from saeclamp_saes import SAE, Options, Site, read_sae
from saeclamp_saes.evaluation.quick_check import quick_check
from saeclamp_saes.labelling.table import decoder_sha256
from saeclamp_saes.library.resolve import entry_hash
from saeclamp_saes.lm.token_mask import SINK_MULTIPLE, scored_token_mask
from saeclamp_server.engine.lifeline import tie_to_server
from saeclamp_server.engine.worker import decoder_queries
from saeclamp_server.engine.worker.compiled_program import LoadedWeights, vector_key
from saeclamp_server.engine.worker.executor import Executor
from saeclamp_server.engine.worker.feature_row_cache import FeatureRowCache
from saeclamp_server.engine.worker.hooks import WHOLE_STREAM, SiteHooks
from saeclamp_server.engine.worker.loaded_sae import LoadedSAE
from saeclamp_server.engine.worker.ops import HookState, register_site
from saeclamp_server.engine.worker.pipeline_parallel import StageBoundary
from saeclamp_server.engine.worker.program_tables import ProgramTables
from saeclamp_server.engine.worker.prompt_means import PromptMeanRecorder
from saeclamp_server.engine.worker.request_states import RequestStates
from saeclamp_server.engine.worker.steered_steps import SteeringTables
from saeclamp_server.engine.worker.step_tables import StepTables
from saeclamp_server.engine.worker.top_features import TopFeatureFinder
from saeclamp_server.engine.worker.torch_executor import TorchExecutor
from saeclamp_server.engine.worker.v1_model_runner import V1RunnerAdapter
from saeclamp_server.engine.worker.v2_model_runner import V2RunnerAdapter
from saeclamp_server.engine.worker.vector_bank import make_vector_bank, set_row
from saeclamp_server.engine.worker.vector_recorder import Recorded
from saeclamp_server.engine.worker_config import CONFIG_KEY


class SteeringWorker:
    """Mixin for the platform's worker. The API process calls its methods by `collective_rpc`."""

    vllm_config: Any
    model_runner: Any
    use_v2_model_runner: bool
    device: torch.device

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        tie_to_server()  # first of all: from here on a killed server leaves no worker behind, however long loading takes
        super().__init__(*args, **kwargs)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then the SAEs, and hook their layers: before vLLM compiles or captures anything."""
        if self.vllm_config.model_config.dtype is torch.float16:
            # a large edit overflows beyond 65504, and its NaN reaches other requests through recycled cache blocks
            raise RuntimeError("float16 is too narrow for steering: use --dtype bfloat16 or float32.")
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        config = self.vllm_config.additional_config[CONFIG_KEY]
        layout = SiteHooks(self.model_runner.get_model())
        saes = [self._load(sae, layout.layers) for sae in config["saes"]]
        vector_banks = [_vector_bank(place, self.device) for place in config["places"]]
        everything = [*saes, *vector_banks]
        # also those of other pipeline stages: a rule is judged at the last site that it reads, wherever that is
        sites = layout.sort_sites([site for loaded in everything for site in (*loaded.sae.reads, *loaded.sae.writes)])
        layout.attach(sites)
        # a bank has no hash: it is never named in a program, only its rows are, each with its vector's own hash
        hashes = [*(sae["sha256"] for sae in config["saes"]), *("" for _ in vector_banks)]
        weights_by_name = {
            loaded.name: LoadedWeights(
                loaded.whole.d_sae,
                sha256,
                number,
                reads_at=sites.index(layout.canonical_site(loaded.sae.reads[-1])),
                writes_at=tuple(sites.index(layout.canonical_site(site)) for site in loaded.sae.writes),
            )
            for number, (loaded, sha256) in enumerate(zip(everything, hashes, strict=True))
        }
        # tokenizers may know special tokens beyond the model's vocabulary
        is_special = torch.zeros(
            max([self.vllm_config.model_config.get_vocab_size(), *config["special_ids"]]) + 1, dtype=torch.bool
        )
        is_special[torch.tensor(config["special_ids"], dtype=torch.long)] = True
        self._saes, self._is_special, self._layout = saes, is_special, layout
        self._vector_banks, self._loaded = vector_banks, weights_by_name
        tables = self._make_tables(everything, len(sites), config["special_ids"])
        self._requests, self._prompt_means = tables.requests, tables.prompt_means
        self._sink_norms, self._sites = tables.programs.sink_norms, sites
        self._states = [_hook_state(number, site, everything, tables, layout) for number, site in enumerate(sites)]
        for number, state in enumerate(self._states):
            register_site(number, state)
        adapter: type[V1RunnerAdapter | V2RunnerAdapter] = (
            V2RunnerAdapter if self.use_v2_model_runner else V1RunnerAdapter
        )
        boundaries = _stage_boundaries(layout.layers, everything, tables)
        self._adapter = adapter(self.model_runner, tables, self._states, boundaries)

    def _make_tables(self, everything: Sequence[LoadedSAE], num_sites: int, special_ids: list[int]) -> SteeringTables:
        """
        Make what this worker steers by.

        everything: SAEs and vector banks, in the order of their numbers
        """
        scheduler, weights = self.vllm_config.scheduler_config, [*self._loaded.values()]
        programs = ProgramTables(scheduler.max_num_seqs, num_sites, weights, self.device)
        carries = any(one.is_carried for one in weights)
        step = StepTables(scheduler.max_num_batched_tokens, self._is_special.to(self.device), carries)
        row_caches = {n: loaded.row_cache for n, loaded in enumerate(everything) if loaded.row_cache is not None}
        return SteeringTables(
            programs,
            step,
            self._make_executor(programs, step, everything),
            RequestStates(self._loaded, special_ids, programs, row_caches),
            TopFeatureFinder(),
            PromptMeanRecorder(self._is_special, self.device),
        )

    def _make_executor(self, programs: ProgramTables, step: StepTables, everything: Sequence[LoadedSAE]) -> Executor:
        is_deferred = self.vllm_config.speculative_config is not None
        # the V2 runner itself runs on Triton. Activations of a TopK SAE depend on each other, which kernels do not do yet
        if self.use_v2_model_runner and all(one.whole.top_k is None for one in everything):
            from saeclamp_server.engine.worker.triton_executor import TritonExecutor

            return TritonExecutor(programs, step, everything, is_deferred)
        return TorchExecutor(programs, step, everything, is_deferred)

    def _load(self, sae: dict[str, Any], layers: range) -> LoadedSAE:
        """Read an SAE, and put it on the device if it acts on layers of this process: whole, or as a row cache."""
        whole = _read_checked(sae)
        # on GPUs: kernels widen the rows that they read. A TopK SAE's whole encoder would be widened in every step
        if self.use_v2_model_runner and whole.top_k is None:
            whole = whole.narrowed()
        if not any(site.layer in layers for site in (*whole.reads, *whole.writes)):
            return LoadedSAE(sae["name"], whole)
        # each activation of a TopK SAE depends on all rows of the encoder
        if sae["num_rows"] is None or whole.top_k is not None:
            return LoadedSAE(sae["name"], whole.to(self.device))
        return LoadedSAE(sae["name"], whole, FeatureRowCache(whole, sae["num_rows"], self.device))

    def strongest_features(self, name: str, count: int) -> list[int]:
        """Find the features with the longest decoder rows; a dead feature's row may be zero, and show no edit."""
        return decoder_queries.longest_rows(self._whole(name), count)

    def nearest_features(self, name: str, indices: list[int], count: int) -> list[list[tuple[int, float]]]:
        """Find the features whose decoder rows point the same way as each of some: index and cosine."""
        return decoder_queries.nearest_rows(self._whole(name), indices, count)

    def logit_alignment(self, name: str, indices: list[int], token_ids: list[int]) -> list[list[float]] | None:
        """Find what some decoder rows add to some logits by the direct path; None where this worker cannot tell."""
        return decoder_queries.logit_alignment(self.model_runner.get_model(), self._whole(name), indices, token_ids)

    def decoder_hash(self, name: str) -> str:
        """Hash an SAE's decoder, as label tables do to name the SAE that they belong to."""
        return decoder_sha256(self._whole(name))

    def _whole(self, name: str) -> SAE:
        (sae,) = [loaded.whole for loaded in self._saes if loaded.name == name]
        return sae

    def load_vector(self, place: str, row: int, name: str, sha256: str, direction: bytes) -> None:
        """
        Put a vector into a row of a bank that no request refers to any more.

        place:     name of the vector bank
        name:      as edits name the vector
        direction: (width,) fp32, as bytes
        """
        (sae,) = [loaded.sae for loaded in self._vector_banks if loaded.name == place]
        for key in [key for key, one in self._loaded.items() if one.row == (place, row)]:
            del self._loaded[key]
        # a copy, because torch takes no read-only bytes without a warning
        set_row(sae, row, torch.frombuffer(bytearray(direction), dtype=torch.float32))
        self._loaded[vector_key(name, sha256)] = self._loaded[place]._replace(d_sae=1, sha256=sha256, row=(place, row))

    def start_recording(self) -> None:
        """Record vectors and norms at every site, until `quick_check` takes them."""
        # vectors where SAEs are to be checked; where there is only a vector bank, norms are enough
        of_saes = {
            self._layout.canonical_site(site) for one in self._saes for site in (*one.sae.reads, *one.sae.writes)
        }
        for state in self._states:
            state.recorder.norms_only = state.site not in of_saes
            state.recorder.is_recording = True

    def quick_check(self, chunks: list[list[int]]) -> tuple[dict[str, dict[str, Any]], dict[str, float | None]]:
        """
        Measure every SAE and vector bank on the recorded vectors, by name, and stop recording; ({}, {}) where nothing was.

        Returns beside it the norm above which a vector of a site is that of a sink, by the site's name; None where no
        ordinary token tells.

        `fit`, of SAEs, has the fields of `evaluation.quick_check.QuickCheck`; `norms` those of `site_norms.SiteNorms`, for
        the first chunk.

        chunks: token ids of the prompts that were run since `start_recording`, in order
        """
        recorded = _gather_stages({state.site: state.recorder.take() for state in self._states})
        if not recorded:  # another data-parallel engine ran them
            return {}, {}
        ids = torch.tensor([token for chunk in chunks for token in chunk])
        position = torch.tensor([position for chunk in chunks for position in range(len(chunk))])
        # norms are of the same text at every start, however many chunks the check runs, so that doses stay what they were
        first = slice(len(chunks[0]))
        is_special = self._is_special[ids]
        # as training, verification and labels define a sink: by the median of ordinary tokens
        medians = {
            str(site): _median(of_site.norms[first], position[first], is_special[first])
            for site, of_site in recorded.items()
        }
        sink_norms = {site: None if median is None else SINK_MULTIPLE * median for site, median in medians.items()}
        measured: dict[str, dict[str, Any]] = {}
        for loaded in self._vector_banks:
            norms = recorded[self._layout.canonical_site(loaded.sae.site)].resid_norms
            median = _median(norms[first], position[first], is_special[first])
            of_resid = self._layout.has_resid(loaded.sae.site)
            measured[loaded.name] = {"norms": {"of_resid": of_resid, "median_resid_norm": median, "row_norms": []}}
        for loaded in self._saes:
            measured[loaded.name] = self._measure(loaded.whole, recorded, first, position, is_special)
        return measured, sink_norms

    def _measure(
        self, whole: SAE, recorded: dict[Site, Recorded], first: slice, position: Tensor, is_special: Tensor
    ) -> dict[str, Any]:
        """
        Measure an SAE as `quick_check` says.

        first:                tokens of the first chunk
        position, is_special: (num_tokens,)
        """
        # on the CPU, and widened there: beside a model on a GPU there may be no room for all activations, or for copies
        sae = whole.to(torch.device("cpu")).to(dtype=whole.dtype)
        x, target = (
            torch.cat([recorded[self._layout.canonical_site(site)].vectors for site in sites], dim=1)
            for sites in (sae.reads, sae.writes)
        )
        norms = recorded[self._layout.canonical_site(sae.site)].resid_norms
        return {
            "fit": vars(quick_check(sae, x, target, position, is_special)),
            "norms": {
                "of_resid": self._layout.has_resid(sae.site),
                **_site_norms(sae, x[first], norms[first], position[first], is_special[first]),
            },
        }

    def set_sink_norms(self, by_site: dict[str, float | None]) -> None:
        """Leave out tokens whose vectors are longer: what `quick_check` has measured, in whichever engine."""
        limits = [by_site.get(str(site)) for site in self._sites]
        # in place: the op finds it where it was when the model was compiled
        self._sink_norms.copy_(torch.tensor([torch.inf if limit is None else limit for limit in limits]))

    def recorded_prompt_means(self, keys: list[str]) -> dict[str, bytes]:
        """Fetch, and drop, mean vectors of requests' prompts as far as they were recorded here: (width,) fp64, as bytes."""
        return dict(self._prompt_means.fetch(keys))

    def steering_reports(self, keys: list[str], abandoned: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
        """
        Return, and drop, the reports of some API calls (`steering_report.SteeringReport`), by key and request id.

        abandoned: keys of calls whose reports nobody will fetch
        """
        self._requests.abandon(abandoned, self._adapter.is_running)
        return {
            key: {request_id: vars(report) for request_id, report in reports.items()}
            for key, reports in self._requests.collect(keys).items()
        }


def _stage_boundaries(
    layers: range, saes: Sequence[LoadedSAE], tables: SteeringTables
) -> tuple[StageBoundary | None, StageBoundary | None]:
    """Make the boundaries to the pipeline stages before and behind this one, which has `layers`."""
    group, shared = get_pp_group(), (saes, tables.programs, tables.step, tables.top_features)
    return (
        None if group.is_first_rank else StageBoundary(layers.start, *shared),
        None if group.is_last_rank else StageBoundary(layers.stop, *shared),
    )


def _gather_stages(recorded: dict[Site, Recorded | None]) -> dict[Site, Recorded]:
    """Join the pipeline stages' recordings; each stage has those of its own layers."""
    group = get_pp_group()
    # an SAE may read at one stage and write at another
    stages: list[Any] = [None] * group.world_size
    torch.distributed.all_gather_object(stages, recorded, group=group.cpu_group)
    return {site: found for stage in stages for site, found in stage.items() if found is not None}


def _vector_bank(place: dict[str, Any], device: torch.device) -> LoadedSAE:
    return make_vector_bank(place["name"], Site.parse(place["site"]), place["width"], place["capacity"], device)


def _read_checked(sae: dict[str, Any]) -> SAE:
    options = Options.parse(sae["options"])
    loaded = read_sae(Path(sae["path"]), options)
    # compared after reading, so that a file which is replaced meanwhile is noticed
    if entry_hash([Path(path) for path in sae["files"]], options) != sae["sha256"]:
        raise RuntimeError(f"The files of SAE {sae['name']!r} changed while the server was starting.")
    return loaded


def _site_norms(sae: SAE, x: Tensor, norms: Tensor, position: Tensor, is_special: Tensor) -> dict[str, Any]:
    """
    Compute `median_resid_norm` and `row_norms` of `site_norms.SiteNorms`.

    x:     (num_tokens, d_in), vectors that the SAE reads
    norms: (num_tokens,), norms where it writes first
    """
    rows = sae.W_dec[:, : sae.d_out // len(sae.writes)].norm(dim=1)
    counted = scored_token_mask(norms[:, None], position, is_special)
    if counted.any():
        # an SAE that normalises its input adds its rows times each token's own scale
        rows = rows * sae.input_norm.apply(x[counted])[1].median()
    return {"median_resid_norm": _median(norms, position, is_special), "row_norms": rows.tolist()}


def _median(norms: Tensor, position: Tensor, is_special: Tensor) -> float | None:
    """Compute the median norm of ordinary tokens; None where there are none. Each argument is (num_tokens,)."""
    counted = scored_token_mask(norms[:, None], position, is_special)
    return float(norms[counted].median()) if counted.any() else None


def _hook_state(
    number: int, site: Site, saes: Sequence[LoadedSAE], tables: SteeringTables, layout: SiteHooks
) -> HookState:
    return HookState(
        site=site,
        executor=tables.executor,
        top_features=tables.top_features,
        prompt_means=tables.prompt_means,
        reads=[loaded for loaded in saes if site in map(layout.canonical_site, loaded.sae.reads)],
        whole_stream=site.point in WHOLE_STREAM,
        sink_norm=tables.programs.sink_norms[number],
        norm_eps=layout.norm_eps(site),
    )
