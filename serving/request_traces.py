"""What the predictor's spans say, by OpenTelemetry's conventions for generative AI.

A request's text is never in them: prompts and answers belong to the audit's rules alone.
"""

import time
from collections.abc import Iterable, Mapping

from observability.tracing import Tracing, current
from serving.lifecycle import Identity
from serving.protocol import Job

PROVIDER = "serin"
OUTCOMES_WELL = ("ok", "client_error", "blocked", "cancelled")
"""What ends a request without a fault of the predictor."""


def begin(tracing: Tracing, headers: Mapping[str, str], identity: Identity, began: float) -> None:
    """Begin a request's trace where the gateway has begun one, or where it is to be recorded."""
    trace = tracing.begin(f"generate {identity.model_name}", headers.get("traceparent", ""), began)
    if trace is not None:
        trace.note(
            gen_ai__provider__name=PROVIDER,
            gen_ai__request__model=identity.model_name,
            gen_ai__response__model=identity.served_as,
            serin__revision=identity.revision,
            serin__engine=identity.engine,
            serin__request_id=headers.get("x-request-id", ""),
        )


def asked(job: Job) -> None:
    """Note what a checked request asks for."""
    trace = current()
    if trace is None:
        return
    sampling = job.sampling
    operation = "chat" if job.chat else "text_completion"
    trace.span.update_name(f"{operation} {trace.span.attributes['gen_ai.request.model']}")
    trace.note(
        gen_ai__operation__name=operation,
        gen_ai__output__type="text",
        gen_ai__request__choice__count=job.choices,
        gen_ai__request__max_tokens=sampling.max_tokens,
        gen_ai__request__temperature=sampling.temperature,
        gen_ai__request__top_p=sampling.top_p,
        gen_ai__request__stop_sequences=sampling.stop,
        serin__stream=job.stream,
    )
    if sampling.seed is not None:
        trace.note(gen_ai__request__seed=sampling.seed)


def answered(
    response_id: str, prompt_tokens: int, completion_tokens: int, reasons: Iterable[str]
) -> None:
    """Note what was answered."""
    trace = current()
    if trace is not None:
        trace.note(
            gen_ai__response__id=response_id,
            gen_ai__response__finish_reasons=tuple(reasons),
            gen_ai__usage__input_tokens=prompt_tokens,
            gen_ai__usage__output_tokens=completion_tokens,
        )


def stage(name: str, began: float, ended: float | None = None, **attributes: str | float) -> None:
    """Note a part of the request: until now, where no end is given."""
    trace = current()
    if trace is not None:
        trace.stage(name, began, time.perf_counter() if ended is None else ended, **attributes)


def end(outcome: str) -> None:
    """End the request's trace, if it has one."""
    trace = current()
    if trace is not None:
        trace.note(serin__outcome=outcome)
        trace.end("" if outcome in OUTCOMES_WELL else outcome)
