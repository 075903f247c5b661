"""How a step gets answers from a model: over HTTP, from a predictor process.

The only place where the control plane reaches the data plane; it imports nothing of it.
"""

import asyncio
import contextlib
import functools
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from core.contracts import Answer, Message
from core.digests import digest_json
from core.errors import UnavailableError
from core.keys import bearer

READY_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 15.0
ANSWER_SECONDS_MAX = 120.0
CLIENTS = 16
MODEL_NAME = "candidate"
TOKEN_VARIABLE = "SERIN_PREDICTOR_TOKEN"
ROOT = Path(__file__).resolve().parent.parent
LOG_TAIL_CHARACTERS = 800


@contextlib.contextmanager
def model(bundle: Path, digest: str, engine: str, log: Path, max_tokens: int) -> Iterator[Answer]:
    """Run `python -m serving.predictor` on a bundle; yield its greedy answers; stop it at the end.

    Starting does not wait: several models come up side by side, the first question waits. A
    question raises UnavailableError with the end of the log when the process does not become
    ready, or when a request fails: an evaluation with holes is no evaluation.
    """
    with tempfile.TemporaryDirectory() as folder, log.open("ab") as output:
        port_file = Path(folder) / "port"
        command = [sys.executable, "-m", "serving.predictor", "--bundle", str(bundle)]
        command += ["--model-name", MODEL_NAME, "--model-version", "evaluation", "--http-port", "0"]
        command += ["--port-file", str(port_file), "--engine", engine, "--expected-digest", digest]
        token = secrets.token_hex(32)
        environment = {**os.environ, TOKEN_VARIABLE: token}
        process = subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True, cwd=ROOT, env=environment
        )
        url = functools.cache(lambda: _wait_until_ready(process, port_file, log))

        def answer(prompts: Sequence[tuple[Message, ...]]) -> Sequence[str]:
            return asyncio.run(_ask_all(url(), token, max_tokens, prompts))

        try:
            yield answer
        finally:
            _stop(process)


def remembering(answer: Answer, path: Path) -> Answer:
    """Keep the answers of an immutable bundle on disk, so that no prompt is asked twice."""

    def remembered(prompts: Sequence[tuple[Message, ...]]) -> Sequence[str]:
        known = msgspec.json.decode(path.read_bytes(), type=dict[str, str]) if path.exists() else {}
        keys = [digest_json(msgspec.to_builtins(prompt)) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True)}
        missing = {key: prompt for key, prompt in missing.items() if key not in known}
        if missing:
            known.update(zip(missing, answer(list(missing.values())), strict=True))
            _replace(path, msgspec.json.encode(known))
        return [known[key] for key in keys]

    return remembered


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(path)


def _wait_until_ready(process: "subprocess.Popen[bytes]", port_file: Path, log: Path) -> str:
    import httpx

    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline and process.poll() is None:
        if port_file.exists() and (port := port_file.read_text().strip()):
            url = f"http://127.0.0.1:{port}"
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/v2/health/ready", timeout=5.0).status_code == 200:
                    return url
        time.sleep(0.05)
    tail = log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]
    how = "did not become ready" if process.poll() is None else f"exited {process.returncode}"
    raise UnavailableError(f"the predictor {how}; its log {log} ends with: {tail}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _ask_all(
    url: str, token: str, max_tokens: int, prompts: Sequence[tuple[Message, ...]]
) -> list[str]:
    import httpx

    slots = asyncio.Semaphore(CLIENTS)
    headers = {"Authorization": bearer(token), "x-serin-key": "evaluation"}
    limit = ANSWER_SECONDS_MAX
    async with httpx.AsyncClient(base_url=url, timeout=limit, headers=headers) as client:

        async def ask(messages: tuple[Message, ...]) -> str:
            body = {
                "model": MODEL_NAME,
                "messages": msgspec.to_builtins(messages),
                "max_tokens": max_tokens,
                "temperature": 0,
            }
            async with slots:
                response = await client.post("/openai/v1/chat/completions", json=body)
            if response.status_code == 400:
                return ""
            response.raise_for_status()
            return str(response.json()["choices"][0]["message"]["content"])

        try:
            return list(await asyncio.gather(*(ask(messages) for messages in prompts)))
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"the model at {url} failed an evaluation prompt: {error}"
            ) from (error)
