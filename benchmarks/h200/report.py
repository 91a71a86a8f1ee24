"""A run's results as Markdown, in which a part that failed or was cut off says so and shows what it had."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.h200.parts import PARTS

Results = Mapping[str, Any]


def render(run: Results) -> str:
    """Render what `__main__` has written."""
    lines = [f"# The engine's kernels on one card, {run['date']}", "", f"`{run['command']}`"]
    if run["is_dry"]:
        lines += [
            "",
            "**Dry: on a CPU, in Triton's interpreter, at tiny sizes. It shows that each part runs and that results agree; "
            "times, memory and waits mean nothing.**",
        ]
    for name, part in PARTS.items():
        done = run["parts"].get(name)
        if done is None:
            continue
        lines += ["", f"## {part.title}", ""]
        if done["status"] != "ok":
            lines += [f"**{done['status']}** What follows was there by then.", ""]
        lines += RENDERED[name](done["results"])
        lines += ["", f"{done['seconds']:.0f} s."]
    return "\n".join(lines) + "\n"


def _rates(results: Results) -> list[str]:
    versions = results.get("versions", {})
    return [
        ", ".join(f"{name} {value}" for name, value in versions.items()) + ".",
        f"Copies {results.get('copy_tb_per_s')} TB/s, read and written; multiplies in bf16 "
        f"{results.get('bf16_tflop_per_s')} TFLOP/s.",
    ]


def _parity(results: Results) -> list[str]:
    return [
        "Random requests with edits, rules and readouts on SAEs of every kind, each case run three times: edited vectors "
        "and counts are the same each time, and those of a loop in fp64.",
        "",
        *_table(
            results.get("cases", ()),
            {
                "width": "width",
                "dtype": "dtype",
                "drafts": "drafts",
                "tokens": "tokens",
                "edits": "edits made",
                "rules_held": "rules held",
                "lost": "vectors lost",
                "largest_error": "largest error / length",
            },
        ),
    ]


def _capture(results: Results) -> list[str]:
    lines = [
        "One graph for each size of batch, replayed with other requests each time: bit for bit what launches do.",
        "",
        *_table(
            results.get("replayed", ()),
            {"size": "tokens", "contents": "contents", "sites": "sites", "edited_vectors": "edited vectors"},
        ),
    ]
    if "waits" in results:
        lines += ["", "Where the host waits for the device (`torch.cuda.set_sync_debug_mode`):", ""]
        for phase, places in results["waits"].items():
            found = ", ".join(f"{place} ({num})" for place, num in places.items())
            lines.append(f"- {phase}: {found or 'nowhere'}")
    if "runtime_calls" in results:
        calls = ", ".join(f"{name} {num}" for name, num in results["runtime_calls"].items())
        lines += ["", f"Calls of CUDA's runtime, by the profiler, which waits itself in the end: {calls or 'none'}."]
    return lines


def _decode(results: Results) -> list[str]:
    lines = [
        "A step of a model of Llama 3.1 8B's shape with random weights in bf16 and 1,024 tokens of cache a request, as one "
        "graph; in turn without op and with it.",
        "",
        *_table(
            results.get("steps", ()),
            {
                "batch": "batch",
                "sites": "sites hooked",
                "setting": "setting",
                "base_ms": "ms without op",
                "ms": "ms",
                "ratio": "ratio (least - most)",
            },
        ),
        "",
        "The op of one site alone, in a graph of its own:",
        "",
        *_table(results.get("op_us", ()), {"batch": "batch", "setting": "setting", "us": "microseconds"}),
    ]
    if "admission_us" in results:
        admissions = ", ".join(f"{name} {microseconds}" for name, microseconds in results["admission_us"])
        lines += ["", f"Compiling a program and writing it into the tables, microseconds each: {admissions}."]
    if "left_out" in results:
        lines += ["", f"Left out for want of time: {results['left_out']}."]
    return lines


def _prefill(results: Results) -> list[str]:
    lines = _table(
        results.get("prompts", ()),
        {
            "tokens": "tokens",
            "sites": "sites hooked",
            "setting": "setting",
            "base_ms": "ms without op",
            "ms": "ms",
            "ratio": "ratio (least - most)",
            "extra_mib": "peak memory beyond that without op, MiB",
        },
    )
    if "strongest_features" in results:
        of = results["strongest_features"]
        lines += [
            "",
            f"The strongest of {of['features']} features at each of {of['tokens']} tokens: {of['ms']} ms, "
            f"{of['peak_mib']} MiB at most.",
        ]
    return lines


def _queue_loop(results: Results) -> list[str]:
    return [
        f"The next step is launched while one runs; in between the host spins for {results.get('host_ms')} ms, as if it "
        "scheduled.",
        "",
        *_table(
            results.get("loops", ()),
            {
                "batch": "batch",
                "setting": "setting",
                "step_ms": "ms per step",
                "idle_share": "share of time between graphs",
                "gap_us": "between two graphs, microseconds",
            },
        ),
    ]


def _compiled(results: Results) -> list[str]:
    code, errors = results.get("code", {}), results.get("errors", {})
    return [
        f"How the compiled code calls the op: `{'`, `'.join(code.get('calls', ()))}`; copies beside it: "
        f"{len(code.get('copies', ()))}.",
        f"Relative differences from what is not compiled: {', '.join(f'{name} {error}' for name, error in errors.items())}.",
    ]


def _tools(results: Results) -> list[str]:
    lines = []
    for name, said in results.items():
        if isinstance(said, str):
            lines.append(f"{name}: {said}.")
        else:
            lines += [f"{name}: status {said['status']}", "", "```", *said.get("lines", ()), "```"]
    return lines


RENDERED: dict[str, Callable[[Results], list[str]]] = {
    "rates": _rates,
    "parity": _parity,
    "capture": _capture,
    "decode": _decode,
    "prefill": _prefill,
    "queue_loop": _queue_loop,
    "compiled": _compiled,
    "tools": _tools,
}


def _table(rows: Sequence[Results], columns: Mapping[str, str]) -> list[str]:
    """Make a table; columns with names are on the left, those of figures on the right."""
    if not rows:
        return ["Nothing."]
    is_text = [isinstance(rows[0][key], str) for key in columns]
    return [
        f"| {' | '.join(columns.values())} |",
        f"|{'|'.join('---' if text else '--:' for text in is_text)}|",
        *(f"| {' | '.join(_cell(row[key]) for key in columns)} |" for row in rows),
    ]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):  # a ratio
        middle, least, most = value
        return f"{middle:.3f} ({least:.3f} - {most:.3f})"
    return str(value)
