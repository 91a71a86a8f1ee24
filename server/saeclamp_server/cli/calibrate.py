"""`saeclamp calibrate SAE --model MODEL --features ...`: the dose curve of features. Its parser is built without torch."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeclamp_saes.cli.output import print_json
from saeclamp_saes.io.sanitize import escape_control_chars
from saeclamp_server.calibration.errors import CalibrationError
from saeclamp_server.calibration.green_zone import Criteria, least_prompts
from saeclamp_server.calibration.settings import CalibrationSettings
from saeclamp_server.cli.calibrate_flags import add_judging, add_measuring, by_feature

if TYPE_CHECKING:
    from saeclamp_saes import SAEEntry
    from saeclamp_server.calibration.features import CalibrationTarget
    from saeclamp_server.calibration.records import CalibrationRecord
    from saeclamp_server.calibration.report import CurveProgress
    from saeclamp_server.calibration.run import CalibrationPlan

logger = logging.getLogger("saeclamp.server")

NAME = "calibrate"
FIRST_ANSWER_S = 10
"""Seconds in which a running server must say what it serves."""
MAX_RETRIES = 5
"""Retries of a request that the server was too busy for, or that never reached it."""
DESCRIPTION = """\
Clamp features to rising strengths on neutral prompts, through a server, and measure how often answers are about the feature
and what that costs in fluency. The whole curve is kept in calibration.json, and the strengths that work, the green zone, in
the feature book, features.yaml.

Without --url a server is started for the time of the run; what stands after `--` are flags of `saeclamp serve` for it, such
as --enforce-eager. Stopped, it goes on when it is started again with the same command."""


def register(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], resolve_model: Callable[[str], str] = str
) -> None:
    """
    Add the command to the command line.

    resolve_model: what the user calls a model -> the folder or hub id that it stands for
    """
    parser = commands.add_parser(
        NAME,
        help="find the strengths at which features steer",
        usage="saeclamp calibrate SAE --features FEATURE,... (--model MODEL | --url URL) [options] [-- flags of serve]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sae", metavar="SAE", help="as for `saeclamp serve --sae`: [NAME=]WHAT[?key=value&key=value]")
    parser.add_argument(
        "--model", help="a local folder, a hub name or the packaged model's name; with --url not needed"
    )
    parser.add_argument("--url", help="of a running server that serves SAE, instead of one for the time of the run")
    parser.add_argument(
        "--features",
        required=True,
        action="append",
        metavar="FEATURE,...",
        help="names or indices; INDEX=NAME names one. Repeat for a name with a comma",
    )
    add_measuring(parser)
    add_judging(parser)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the results; default: beside the SAE")
    parser.add_argument("--keep-answers", action="store_true", help="do not delete the answers at the end")
    parser.add_argument("--json", action="store_true", help="print the curves as JSON, and nothing else, on stdout")
    parser.set_defaults(run=run, resolve_model=resolve_model)


def split_engine_flags(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split off what stands after `--`: argparse would take it for more of this command's arguments."""
    if argv[:1] != [NAME] or "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def run(args: argparse.Namespace, *, first_answer_s: float = FIRST_ANSWER_S, max_retries: int = MAX_RETRIES) -> int:
    """Measure, print the curves, and return the exit code. Raises SAEError with a sentence."""
    from saeclamp_saes import find_sae, open_entry
    from saeclamp_server.calibration.report import print_curve
    from saeclamp_server.calibration.run import CalibrationPlan
    from saeclamp_server.calibration.storage import AnswerKey, locked

    _check_where(args)
    served = None if args.url is None else _served_model(args, first_answer_s)
    sae = open_entry(find_sae(args.sae))
    folder = args.out or (sae.path if sae.path.is_dir() else sae.path.parent)
    targets = _targets(args, sae, folder)
    settings = _settings(args, sae, served)
    least = least_prompts(len(settings.strengths))
    if len(settings.prompts.texts) < least:
        logger.warning(
            f"with {len(settings.strengths)} strengths, fewer than {least} prompts are too few to tell whether a feature "
            f"steers; there are {len(settings.prompts.texts)}. The curve is measured all the same."
        )
    with locked(folder):
        calibration = CalibrationPlan(settings, folder, _encoder(targets))
        if args.keep_answers:
            calibration.answers.keep()
        try:
            results = _calibrate(args, calibration, targets, max_retries)
        except KeyboardInterrupt:
            logger.info("stopped; the same command goes on with it.")
            return 130
        calibration.answers.release(
            {AnswerKey(result.target.index, point.act) for result in results for point in result.points}
        )
    records = [calibration.record(result) for result in results]
    if args.json:
        print_json({"path": str(folder), "features": records})
    else:
        for result, record in zip(results, records, strict=True):
            print_curve(result, record["sample"])
    nameless = [f"{result.target.index}=NAME" for result in results if result.target.name is None]
    files = f"curves are in {folder / 'calibration.json'}, green zones in {folder / 'features.yaml'}."
    logger.info(escape_control_chars(files))
    if nameless:
        logger.info(f"features without a name are not in the feature book; --features {','.join(nameless)} names them.")
    return 0


def _check_where(args: argparse.Namespace) -> None:
    if args.url is None and args.model is None:
        raise CalibrationError("Give --model MODEL to have it served, or the --url of a running server.")
    if args.url is not None and args.engine_argv:
        raise CalibrationError("Flags after -- are for a server that is started; with --url there is none to start.")


def _targets(args: argparse.Namespace, sae: SAEEntry, folder: Path) -> list[CalibrationTarget]:
    from saeclamp_server.calibration.features import read_book, read_labels, resolve, split_features

    book = read_book(sae, folder)
    features = split_features(args.features, book)
    labels = read_labels(sae, args.examples)
    words, scales = by_feature(args.concept, "--concept"), by_feature(args.max_act, "--max-act")
    targets = resolve(features, sae, book, labels, words, scales, not args.no_similarity)
    for target in targets:
        target.check(args.strengths)
        if args.judge == "words" and not target.concept.words:
            raise CalibrationError(f"There are no words to judge feature {target.title} by: give some with --concept.")
        if args.judge == "similarity" and not target.concept.texts:
            raise CalibrationError(
                f"There are no texts to judge feature {target.title} by: give labels with --examples."
            )
    return targets


def _settings(args: argparse.Namespace, sae: SAEEntry, served: str | None) -> CalibrationSettings:
    from saeclamp_server.calibration.client import GREEDY, sampling_decoding
    from saeclamp_server.calibration.prompts import read_prompts

    return CalibrationSettings(
        sae=sae,
        prompts=read_prompts(args.prompts),
        decodings=(GREEDY, sampling_decoding(args.sampled)) if args.sampled else (GREEDY,),
        max_tokens=args.tokens,
        plain=args.plain,
        strengths=args.strengths,
        criteria=Criteria(args.judge, args.share_of_best, args.max_perplexity, args.min_distinct_2, args.min_gain),
        model=_model(args) if served is None else {"name": served, "sha256": None},
    )


def _model(args: argparse.Namespace) -> dict[str, Any]:
    """Name the model, and hash its weights where they are at hand."""
    from saeclamp_saes.lm.provenance import model_hashes

    folder = args.resolve_model(args.model)
    name = Path(args.model).name if Path(args.model).is_dir() else args.model
    return {"name": name, "sha256": model_hashes(folder) if Path(folder).is_dir() else None}


def _served_model(args: argparse.Namespace, first_answer_s: float) -> str:
    """Ask the running server for the model's name, and so find out whether there is a server."""
    import saeclamp
    from saeclamp_saes.io.sanitize import escape_to_one_line

    try:
        with saeclamp.Client(args.url, timeout=first_answer_s, max_retries=0) as client:
            served = client.models.list()
    except saeclamp.APITimeoutError as exc:
        raise CalibrationError(f"No server answers at {args.url} within {first_answer_s} seconds.") from exc
    except saeclamp.AuthenticationError as exc:
        raise CalibrationError(
            f"The server at {escape_to_one_line(args.url)} wants its API key: set SAECLAMP_API_KEY. "
            f"({escape_to_one_line(exc.message)})"
        ) from exc
    except saeclamp.InvalidArgumentError as exc:
        raise CalibrationError(f"--url: {escape_to_one_line(exc.message)}") from exc
    except saeclamp.APIConnectionError as exc:
        raise CalibrationError(
            f"No server answers at {escape_to_one_line(args.url)}: {escape_to_one_line(str(exc))}"
        ) from exc
    except saeclamp.SaeclampError as exc:
        raise CalibrationError(f"The server at {escape_to_one_line(args.url)}: {escape_to_one_line(str(exc))}") from exc
    names = [model.id for model in served.data if model.parent is None]
    if not names or args.model not in (None, *names):
        serves = escape_to_one_line(", ".join(names)) or "no model"
        raise CalibrationError(f"The server at {args.url} serves {serves}, not {args.model}.")
    return args.model or names[0]


def _encoder(targets: Sequence[CalibrationTarget]) -> Any:
    from saeclamp_server.sentence_encoder import SentenceEncoder, SentenceEncoderMissingError

    if not any(target.concept.texts for target in targets):
        return None
    try:
        return SentenceEncoder()
    except SentenceEncoderMissingError as exc:
        raise CalibrationError(f"{exc} It measures similarity; --no-similarity goes without.") from exc


def _calibrate(
    args: argparse.Namespace, calibration: CalibrationPlan, targets: Sequence[CalibrationTarget], max_retries: int
) -> list[CalibrationRecord]:
    from saeclamp_server.calibration.report import progress

    missing = [target for target in targets if calibration.missing(target)]
    measured: list[CalibrationRecord] = []
    if missing:
        total = 1 + sum(len(calibration.missing(target)) for target in missing)
        with _server(args) as url, progress(total) as report:
            measured = asyncio.run(_measure(args, url, calibration, missing, report, max_retries))
    by_index = {result.target.index: result for result in measured}
    return [by_index.get(target.index) or calibration.judge_again(target) for target in targets]


@contextmanager
def _server(args: argparse.Namespace) -> Iterator[str]:
    from saeclamp_server.calibration.managed_server import managed_server

    if args.url is not None:
        yield args.url
        return
    with managed_server(args.model, args.sae, args.engine_argv) as url:
        yield url


async def _measure(
    args: argparse.Namespace,
    url: str,
    calibration: CalibrationPlan,
    targets: Sequence[CalibrationTarget],
    report: CurveProgress,
    max_retries: int,
) -> list[CalibrationRecord]:
    from saeclamp import AsyncClient
    from saeclamp_server.calibration.client import AnswerClient, engine_version
    from saeclamp_server.calibration.run import CalibrationRun

    settings = calibration.settings
    async with AsyncClient(url, max_retries=max_retries) as client:
        asker = AnswerClient(client, settings.max_tokens, settings.plain, args.at_once, settings.sae.sha256)
        logger.info("waiting for the server's first token ...")
        server = {"vllm": await engine_version(url), "flags": list(args.engine_argv)}
        return await CalibrationRun(calibration, asker, server, report).measure(targets)
