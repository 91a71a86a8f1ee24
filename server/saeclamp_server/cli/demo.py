"""
The same questions to a running server, unsteered and steered, side by side.

    python -m saeclamp_server.cli.demo --url http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from itertools import zip_longest

from saeclamp import Clamp, Client, InvalidArgumentError, Receipt
from saeclamp.types import InterventionReceipt
from saeclamp.types.dose import dose_in_words
from saeclamp_server.cli.server_client import DEFAULT_URL, KEY_VARIABLE, CommandError, report_refusals

QUESTIONS = (
    "How can I sleep better?",
    "Why is the sky blue?",
    "Tell me about yourself.",
    "What should I cook for dinner tonight?",
    "Who are you?",
)

GUTTER = " | "
MIN_COLUMN = 20
"""Characters. A narrower terminal gets lines that are too long for it, rather than columns of single words."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        clamp = Clamp(feature=args.feature, value=args.value, unit=args.unit)
    except InvalidArgumentError as exc:
        return _fail(f"{args.feature!r} clamped to {args.value} is not a clamp: {exc}")
    try:
        with report_refusals(args, "`make serve`"), Client(args.url, api_key=args.api_key) as client:
            _answer(client, "Hi", clamp, max_tokens=1)  # so that what is wrong is said before the table begins
            _demonstrate(client, clamp, args.max_tokens)
    except CommandError as exc:
        return _fail(str(exc))
    return 0


def side_by_side(left: str, right: str, width: int) -> str:
    """Wrap two texts into two columns that together take `width` characters; their own line breaks stay."""
    column = max((width - len(GUTTER)) // 2, MIN_COLUMN)
    rows = zip_longest(_wrapped(left, column), _wrapped(right, column), fillvalue="")
    return "\n".join(f"{one:<{column}}{GUTTER}{other}".rstrip() for one, other in rows)


def format_measurement(receipt: Receipt | None) -> str:
    """Put a receipt's numbers into one line an intervention."""
    if receipt is None:
        return "(not steered)"
    return "\n".join(f"({_measured(intervention)})" for intervention in receipt.interventions)


def _measured(receipt: InterventionReceipt) -> str:
    parts = [f"steered {receipt.tokens.prompt} prompt and {receipt.tokens.generated} generated tokens"]
    if before := receipt.act_before:
        target = "" if receipt.value_act is None else f", clamped to {receipt.value_act:.4g}"
        parts.append(f"activation before: mean {before.mean:.3g}, max {before.max:.3g}{target}")
    if dose := receipt.dose:
        parts.append(f"dose: mean {dose_in_words(dose.mean)}, max {dose_in_words(dose.max)} of the residual norm")
    return "; ".join(parts)


def _wrapped(text: str, column: int) -> list[str]:
    lines = (textwrap.wrap(line, column) or [""] for line in text.strip().splitlines())
    return [piece for line in lines for piece in line]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m saeclamp_server.cli.demo",
        description=__doc__.strip().splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--url", default=DEFAULT_URL, help="where the server is: a URL, HOST:PORT or PORT")
    parser.add_argument("--api-key", metavar="KEY", help=f"if the server wants one; else ${KEY_VARIABLE}")
    parser.add_argument("--max-tokens", type=int, default=60, help="length of an answer")
    parser.add_argument("--feature", default="bundled/golden-gate", help="what to clamp, as <sae>/<name or index>")
    parser.add_argument("--value", type=float, default=0.75, help="target activation, in --unit")
    parser.add_argument(
        "--unit", choices=("max_act", "act"), default="max_act", help="multiples of the maximum, or raw"
    )
    return parser


def _demonstrate(client: Client, clamp: Clamp, max_tokens: int) -> None:
    width = shutil.get_terminal_size().columns
    print(side_by_side("UNSTEERED", f"{clamp.feature} CLAMPED TO {clamp.value:g} {clamp.unit}", width))
    for question in QUESTIONS:
        print(f"\n{'-' * width}\n> {question}\n", flush=True)
        plain, steered = (_answer(client, question, steering, max_tokens) for steering in (None, clamp))
        print(side_by_side(plain[0], steered[0], width))
        print(f"\n{side_by_side(format_measurement(plain[1]), format_measurement(steered[1]), width)}", flush=True)


def _answer(client: Client, question: str, clamp: Clamp | None, max_tokens: int) -> tuple[str, Receipt | None]:
    """Ask greedily; the penalty keeps so small a model from repeating itself."""
    completion = client.chat.completions.create(
        messages=[{"role": "user", "content": question}],
        steering=clamp,
        temperature=0,
        repetition_penalty=1.1,
        max_tokens=max_tokens,
    )
    return completion.text, completion.steering


def _fail(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
