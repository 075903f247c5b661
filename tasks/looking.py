"""Looks at a running canary once: scrape, keep, judge. What was judged can be derived again."""

import dataclasses
import functools
from dataclasses import dataclass

import msgspec

from core.contracts import CanaryDecision, CounterSample, DecisionInputs, ReleaseState
from core.digests import chain_digest
from core.errors import UnavailableError
from core.settings import Settings
from observability.metrics import scrape
from rollout.ledger import Ledger
from rollout.release import Release
from tasks.stages import LOG
from validation.canary import CanaryConfig, CanaryJudge

RELEASES_REMEMBERED = 4


@dataclass(slots=True)
class Watched:
    """The judge of one release, and which of its kept scrapes it has seen."""

    judging: CanaryJudge
    last_id: int = 0
    samples: int = 0
    digest: str = ""


def look(ledger: Ledger, release: Release, canary: CanaryConfig) -> CanaryDecision | None:
    """Take a sample of the live counters, keep it in the ledger, and judge all of them so far.

    None without a running canary or without a gateway that answers: unknown decides nothing.
    """
    settings = Settings.read()
    if release.state is not ReleaseState.CANARY or release.share is None or release.kind == "first":
        return None
    try:
        sample = scrape(settings.gateway_url, release.service)
    except UnavailableError as error:
        LOG.warning("%s  no live metrics: %s", release.release_id, error)
        return None
    ledger.add_sample(release.release_id, sample)
    decision = judge_kept(ledger, release.release_id, canary)
    ledger.keep_decision(release, decision, sample.time_seconds)
    return decision


def judge_kept(ledger: Ledger, release_id: str, canary: CanaryConfig) -> CanaryDecision:
    """Judge the release's kept scrapes, with what the decision was derived from.

    A process that asks again continues where it was: only new scrapes are read.
    """
    watched = _watched(ledger, release_id, canary.model_dump_json())
    for sample_id, text in ledger.sample_texts(release_id, watched.last_id):
        watched.judging.add(msgspec.json.decode(text, type=CounterSample))
        watched.digest = chain_digest(watched.digest, text)
        watched.last_id = sample_id
        watched.samples += 1
    inputs = DecisionInputs(watched.samples, watched.digest, canary.model_dump(mode="json"))
    return dataclasses.replace(watched.judging.decide(), inputs=inputs)


@functools.lru_cache(maxsize=RELEASES_REMEMBERED)
def _watched(ledger: Ledger, release_id: str, config: str) -> Watched:
    return Watched(CanaryJudge(CanaryConfig.model_validate_json(config)))
