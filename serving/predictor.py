"""One predictor process: verifies a bundle, warms its engine, answers OpenAI-style requests.

Exit codes: 0 drained, 1 the engine died, 2 wrong options, 3 the bundle is not what it should be,
4 the engine did not start, or the audit cannot be written.
"""

import argparse
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from core.errors import ConfigurationError, IntegrityError, SerinError, UnavailableError
from core.keys import predictor_token, read_key
from core.manifests import BundleManifest, verify_bundle
from core.settings import Settings
from core.telemetry import TelemetrySettings
from observability.audit import Audit, AuditConfig
from observability.logs import configure
from observability.tracing import Tracing
from serving.admission import Admission
from serving.answering import Answering
from serving.api import PredictorApi
from serving.auditing import PredictorAudit
from serving.engines.engine import Engine
from serving.engines.faults import FaultyEngine, control_file
from serving.engines.openvino import OpenVinoEngine
from serving.engines.reference import ReferenceEngine
from serving.gpus import Gpus
from serving.lifecycle import Identity, Lifecycle
from serving.model_server import Site, bind, build_model, build_server
from serving.predictor_config import PredictorConfig, read_config
from serving.predictor_metrics import PredictorMetrics
from serving.safety.active import policy_folder
from serving.safety.gate import Gate
from serving.safety.policy_store import PolicyStore

log = logging.getLogger("serin.predictor")


def vllm_engine(bundle: Path, manifest: BundleManifest, config: PredictorConfig) -> Engine:
    """Import the engine only where it is asked for: its HTTP client costs the others' start."""
    from serving.engines.vllm import VllmEngine

    return VllmEngine(bundle, manifest, config)


ENGINES: dict[str, Callable[[Path, BundleManifest, PredictorConfig], Engine]] = {
    "openvino": OpenVinoEngine,
    "reference": ReferenceEngine,
    "vllm": vllm_engine,
}
EXIT_CODES: tuple[tuple[type[SerinError], int], ...] = (
    (ConfigurationError, 2),
    (IntegrityError, 3),
    (UnavailableError, 4),
)
ENGINE_DIED = 1
GC_OBJECTS = 10_000
"""New objects between two looks at the youngest: a few requests' worth."""


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m serving.predictor", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of the serving bundle")
    parser.add_argument("--model-name", required=True, help="name that requests ask for")
    parser.add_argument("--model-version", required=True, help="registered version of the model")
    parser.add_argument("--revision", help="revision's name; default NAME-0000VERSION")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--http-port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--port-file", type=Path, help="written when ready; holds the port")
    parser.add_argument("--engine", choices=sorted(ENGINES), help="default: SERIN_ENGINE, openvino")
    parser.add_argument("--expected-digest", help="refuse any other bundle")
    parser.add_argument("--threads", type=int, help="CPU threads of the engine; 0: its own choice")
    parser.add_argument("--config", type=Path, help="PredictorConfig as JSON or YAML")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one predictor until it is told to stop; return its exit code."""
    given = options(arguments)
    configure_log()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # asked to stop while still loading
    try:
        return run(given)
    except SerinError as error:
        log.error("%s", error)
        return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def run(given: argparse.Namespace) -> int:
    """Load, serve and drain. Raises ConfigurationError, IntegrityError or UnavailableError."""
    config = read_config(given.config, os.environ, given.threads)
    settings = Settings.read()
    token = predictor_token(settings.home, settings.predictor_token.get_secret_value())
    manifest = verify_bundle(given.bundle, given.expected_digest)
    identity = Identity(
        bundle_digest=manifest.digest,
        model_version=given.model_version,
        model_name=given.model_name,
        revision=given.revision or f"{given.model_name}-{given.model_version:0>5}",
        engine=given.engine or settings.engine,
        pid=os.getpid(),
    )
    store = PolicyStore(Path(config.policy_folder or policy_folder(settings.home)))
    engine = make_engine(identity, given.bundle, manifest, config, settings)
    listener = bind(given.host, given.http_port)  # listens only once the engine is warm
    engine.start()
    site = Site(
        identity=identity,
        lifecycle=Lifecycle(),
        engine=engine,
        listener=listener,
        port_file=given.port_file,
        drain_seconds=config.drain_seconds,
        token=token,
        metrics_open=config.metrics_open,
    )
    pushed = TelemetrySettings.read(mlflow_url=settings.mlflow_url)
    resource = {"service.version": identity.model_version, "serin.revision": identity.revision}
    tracing = Tracing(pushed, "serin-predictor", settings.service, trusting=True, resource=resource)
    metrics = PredictorMetrics(identity.model_version, identity.revision)
    admission = Admission(config.concurrency_for(manifest), config.queue_requests_max)
    metrics.watch(lambda: admission.waiting, lambda: admission.running, engine.load)
    metrics.watch_resources(Gpus(), settings.prices, tracing.counts)
    metrics.watch_policy(lambda: store.refusal is not None)
    gate = Gate(store)
    answering = Answering(engine, admission, metrics, gate)
    api = PredictorApi(identity, config, answering, metrics, site.lifecycle, gate, tracing)
    kept = open_audit(settings.home, config.audit)
    audit = PredictorAudit(kept, config.audit.required, identity, metrics)
    server = build_server(site, api, audit)
    store.start()
    tracing.start()
    push = tracing.pushing(lambda: metrics.exposition(None)[0].decode())
    push.start()
    spare_the_collector()
    server.start([build_model(identity.model_name, engine, site.lifecycle)])
    store.stop()
    engine.stop()
    push.close()
    tracing.close()
    audit.close()
    return ENGINE_DIED if site.failed else 0


def spare_the_collector() -> None:
    """Keep what was loaded out of garbage collection, which stops all answers while it looks."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 10, 10)


def open_audit(home: Path, config: AuditConfig) -> Audit | None:
    """Return the audit of this process; None where it cannot be kept and need not be.

    Raises UnavailableError.
    """
    key = read_key(home / "control" / "audit.key")
    try:
        return Audit(home / "audit", "predictor", key, config)
    except UnavailableError:
        if config.required:
            raise
        log.exception("answers are given without being recorded")
        return None


def make_engine(
    identity: Identity,
    bundle: Path,
    manifest: BundleManifest,
    config: PredictorConfig,
    settings: Settings,
) -> Engine:
    """Return the engine, behind the fault switch where faults are allowed."""
    if identity.engine not in ENGINES:
        raise ConfigurationError(f"engine {identity.engine}: choose {', '.join(sorted(ENGINES))}")
    engine = ENGINES[identity.engine](bundle, manifest, config)
    file = control_file(settings.home, identity.revision)
    if settings.allow_faults:
        return FaultyEngine(engine, file)
    if file.exists():
        log.warning("fault switch %s refused: SERIN_ALLOW_FAULTS is not 1", file)
    return engine


def configure_log() -> None:
    """Log to stderr, one line per event; silence libraries below a warning."""
    configure("predictor", logging.WARNING)
    logging.getLogger("serin").setLevel(logging.INFO)
    # A handler keeps kserve from adding its own; the level, from a stack trace per failed probe.
    logging.getLogger("kserve").addHandler(logging.NullHandler())
    logging.getLogger("kserve").setLevel(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(main())
