"""A vLLM server: started as a child that ends with its parent, and talked to in token ids.

Run as a module it becomes a server that several predictors share, for the options it is given.
"""

import argparse
import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from core.digests import model_digest
from core.errors import ConfigurationError, UnavailableError
from serving.engines.vllm_config import MODULE, server_environment
from serving.predictor_config import read_config

UNIX = "unix:"
POLL_SECONDS = 0.1
STOP_SECONDS_MAX = 15.0
CALL_SECONDS_MAX = 120.0
"""Longest time for anything but an answer; a large adapter is read from disk meanwhile."""
EVENT_BYTES_MAX = 1 << 20
PR_SET_PDEATHSIG = 1
DATA = b"data: "
DONE = b"[DONE]"


class TokenChoice(msgspec.Struct):
    """New token ids of an answer, and why it ended if it did."""

    token_ids: list[int] = []
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[TokenChoice] = []
    error: dict[str, Any] | None = None


class ServerGone(UnavailableError):
    """The server is not there, or no longer knows what it was asked for."""


class VllmServer:
    """Where a server listens; `start` makes it ours. Each call uses a connection of its own."""

    def __init__(self, address: str = "") -> None:
        """`address` is http://HOST:PORT or unix:/SOCKET of a server that is somebody else's."""
        self._address = address
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    def start(self, python: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
        """Start the child on a socket that only this user can reach."""
        self._folder = Path(tempfile.mkdtemp(prefix="serin-vllm-"))
        socket = self._folder / "socket"
        self._address = f"{UNIX}{socket}"
        try:
            self._process = subprocess.Popen(
                [python or sys.executable, "-m", MODULE, f"--uds={socket}", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                process_group=0,
                preexec_fn=_end_with_parent,
            )
        except OSError as error:
            raise ConfigurationError(f"vllm.python {python} cannot be run: {error}") from error

    @property
    def running(self) -> bool:
        """Whether our child runs; always true for somebody else's server."""
        return self._process is None or self._process.poll() is None

    async def wait_ready(self, seconds: float) -> list[str]:
        """Wait until the server answers; return the names of the models it serves.

        Raises UnavailableError when the child ends or the time is over.
        """
        ends_at = asyncio.get_running_loop().time() + seconds
        while True:
            try:
                body = await self._call("GET", "/v1/models")
                return [model["id"] for model in msgspec.json.decode(body)["data"]]
            except ServerGone as error:
                if self._process is not None and self._process.poll() is not None:
                    raise UnavailableError(
                        f"vLLM ended with code {self._process.returncode}; its log is above"
                    ) from error
                if asyncio.get_running_loop().time() > ends_at:
                    raise UnavailableError(
                        f"vLLM was not ready within {seconds:g} s; raise vllm.start_seconds_max"
                    ) from error
            await asyncio.sleep(POLL_SECONDS)

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter under a name that is new. Raises UnavailableError when vLLM refuses."""
        body = {"lora_name": name, "lora_path": str(folder)}
        await self._call("POST", "/v1/load_lora_adapter", body)

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; its answers in work are finished."""
        await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    async def metric(self, name: str) -> float:
        """Return the first sample of one of the server's Prometheus metrics; 0 when absent."""
        text = (await self._call("GET", "/metrics")).decode()
        lines = (line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
        return next((float(line.split()[-1]) for line in lines), 0.0)

    async def answer(
        self, model: str, prompt_ids: Sequence[int], sampling: dict[str, Any]
    ) -> AsyncGenerator[TokenChoice, None]:
        """Yield an answer's tokens as they come; closing it early makes the server stop.

        Raises ServerGone when the server or the model is gone, UnavailableError when it failed.
        """
        body = {
            "model": model,
            "token_ids": list(prompt_ids),
            "stream": True,
            "sampling_params": {**sampling, "detokenize": False},
        }
        timeout = aiohttp.ClientTimeout(total=None)
        try:
            async with (
                self._session(timeout) as session,
                session.post("/inference/v1/generate", json=body) as response,
            ):
                if response.status != 200:
                    raise _refusal(response.status, await response.read())
                async for line in response.content:
                    content = line.removeprefix(DATA).strip()
                    if content and content != DONE:
                        yield _choice(content)
        except aiohttp.ClientConnectorError as error:
            raise ServerGone(f"vLLM at {self._address} is gone: {error}") from error
        except (aiohttp.ClientError, OSError) as error:  # if it is gone, the next request tells
            raise UnavailableError(f"vLLM broke an answer off: {error}") from error

    def stop(self) -> None:
        """End the child and what it started; leave somebody else's server alone."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.terminate()
                self._process.wait(STOP_SECONDS_MAX)
            with suppress(ProcessLookupError):  # its workers outlive it when it was killed
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        timeout = aiohttp.ClientTimeout(total=CALL_SECONDS_MAX)
        try:
            async with (
                self._session(timeout) as session,
                session.request(method, path, json=body) as response,
            ):
                content = await response.read()
        except (aiohttp.ClientError, OSError) as error:  # a time-out is an OSError
            raise ServerGone(f"vLLM at {self._address} does not answer: {error}") from error
        if response.status != 200:
            raise _refusal(response.status, content)
        return content

    def _session(self, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
        """A session for one call: nothing outlives it, whichever way it ends."""
        connector: aiohttp.BaseConnector
        if self._address.startswith(UNIX):
            connector = aiohttp.UnixConnector(self._address.removeprefix(UNIX))
            url = "http://localhost"
        else:
            connector, url = aiohttp.TCPConnector(), self._address
        return aiohttp.ClientSession(
            url, connector=connector, timeout=timeout, read_bufsize=EVENT_BYTES_MAX
        )


def _choice(content: bytes) -> TokenChoice:
    try:
        event = msgspec.json.decode(content, type=_Event)
    except msgspec.MsgspecError as error:
        raise UnavailableError(f"vLLM sent an event that is not its protocol: {error}") from error
    if event.error is not None or not event.choices:
        message = (event.error or {}).get("message", "no tokens")
        raise UnavailableError(f"vLLM failed: {message}")
    return event.choices[0]


def _refusal(status: int, body: bytes) -> UnavailableError:
    try:
        message = str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        message = body[:200].decode(errors="replace")
    kind = ServerGone if status == 404 else UnavailableError
    return kind(f"vLLM refused with {status}: {message}")


def _end_with_parent() -> None:
    """In the child: get SIGTERM when the parent dies, however it dies (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> None:
    """Become a server of one base for several predictors; further options are vLLM's own."""
    parser = argparse.ArgumentParser(prog="python -m serving.engines.vllm_server")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--config", type=Path, help="PredictorConfig as JSON or YAML")
    given, further = parser.parse_known_args(arguments)
    config = read_config(given.config, os.environ)
    vllm = config.vllm.model_copy(update={"base": str(given.base)})
    options = vllm.arguments(
        given.base,
        model_digest(given.base),
        sequences_max=config.concurrency,
        batched_tokens_max=config.batched_tokens_max,
    )
    python = vllm.python or sys.executable
    environment = server_environment(os.environ, config.cache_gigabytes, config.threads)
    os.execve(python, [python, "-m", MODULE, *options, *further], environment)


if __name__ == "__main__":
    main()
