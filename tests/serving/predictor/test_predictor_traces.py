"""A predictor's trace: the gateway's goes on through safety, queue, engine and out again."""

from collections.abc import Callable

from predictor_process import REVISION, PredictorProcess, ask, until

from tests.otlp_collector import Collector

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STAGES = {"tokenize", "safety input", "queue", "prefill", "decode", "safety output", "audit"}


def test_a_request_is_traced_from_its_checks_to_its_last_token(
    start: Callable[..., PredictorProcess], taken: Collector
) -> None:
    predictor = start(
        *("--revision", REVISION, "--threads", "1"), OTEL_EXPORTER_OTLP_ENDPOINT=taken.http_url
    ).wait_ready()
    client, chat = predictor.http(), "/openai/v1/chat/completions"

    def heard() -> bool:
        client.post(chat, json=ask(max_tokens=5), headers={"traceparent": PARENT})
        return bool(taken.named("chat assistant"))

    until(heard, 60)
    root = taken.named("chat assistant")[0]
    assert (root["trace"], root["parent"]) == (PARENT[3:35], PARENT[36:52])
    until(lambda: {*taken.children_of(root)} == STAGES, 30)
    said = root["attributes"]
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.request.max_tokens"] == said["gen_ai.usage.output_tokens"] == 5
    assert said["gen_ai.usage.input_tokens"] > 0
    assert said["gen_ai.response.model"] == "assistant:3"
    assert said["gen_ai.response.finish_reasons"] == ["length"]
    assert said["serin.revision"] == REVISION
    times = {span["name"]: span for span in taken.spans if span["parent"] == root["id"]}
    prefill, decode = times["prefill"], times["decode"]
    assert root["start"] < prefill["start"] < prefill["end"] <= decode["end"] < root["end"]
    assert predictor.metric("inter_token_seconds_count") == predictor.metric("queue_seconds_count")
    assert predictor.metric("batch_answers_count") > 0

    streamed = client.post(
        chat, json=ask(max_tokens=4, stream=True), headers={"traceparent": PARENT}
    )
    assert "[DONE]" in streamed.text
    refused = client.post(chat, json={"model": "assistant"}, headers={"traceparent": PARENT})
    assert refused.status_code == 400
    until(lambda: len(taken.named("generate assistant")) == 1, 30)
    assert taken.named("generate assistant")[0]["attributes"]["serin.outcome"] == "client_error"
    chats = taken.named("chat assistant")
    stream = next(span for span in chats if span["attributes"]["serin.stream"])
    until(lambda: {*taken.children_of(stream)} == STAGES, 30)
    assert stream["attributes"]["gen_ai.usage.output_tokens"] == 4
