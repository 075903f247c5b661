"""Scores of answers by authenticated evaluators: each answer once, each to the arm that gave it.

Knows no sockets. Neither the token nor the source of a score is kept or logged.
"""

import msgspec

from serving.gateway.evaluators import Evaluators
from serving.gateway.reply import Header, Refusal
from serving.gateway.response_ids import Mark, ResponseIds
from serving.gateway.scores import VersionScores
from serving.gateway.settlement import Settlement

FEEDBACK_BYTES_MAX = 4096
CHALLENGE: Header = (b"www-authenticate", b"Bearer")


class Score(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request: an answer's id, 0 (bad) to 1 (good), and where the score is from."""

    id: str
    score: float
    source: str


class Counted(msgspec.Struct, frozen=True):
    """The answer: whether the score is evidence in a running comparison, and whom it was about."""

    counted: bool
    model_version: str
    revision: str


class Feedback:
    """Checks scores and counts them into the settlement's strata."""

    def __init__(
        self, ids: ResponseIds, settlement: Settlement, evaluators: Evaluators, scored_max: int
    ) -> None:
        self._ids = ids
        self._settlement = settlement
        self._evaluators = evaluators
        self._scored_max = scored_max
        self.scores = VersionScores()
        self._uncounted: dict[bytes, None] = {}
        self._decoder = msgspec.json.Decoder(Score)

    def authenticate(self, headers: dict[bytes, bytes]) -> None:
        """Raise Refusal (403, 401) unless the request is an evaluator's."""
        if not self._evaluators.any():
            text = (
                "feedback is off: write `NAME: HASH` lines into feedback.yaml in Serin's home, "
                "where HASH is the SHA-256 of an evaluator's token in hex"
            )
            raise Refusal(403, text, "feedback_off")
        if not self._evaluators.admits(headers.get(b"authorization", b"")):
            text = "send `Authorization: Bearer TOKEN` with an evaluator's token"
            raise Refusal(401, text, "not_an_evaluator", headers=(CHALLENGE,))

    def take(self, body: bytes) -> Counted:
        """Count one score. Raises Refusal: 400 malformed, 404 unknown, 409 scored, 503 full."""
        score = self._parse(body)
        mark = self._ids.read(score.id)
        if mark is None:
            raise Refusal(404, "no answer of this service has that id", "unknown_id")
        counted = self._count(mark, score.score)
        self.scores.add(mark.service, mark.model_version, score.score)
        return Counted(counted, mark.model_version, mark.revision)

    def _parse(self, body: bytes) -> Score:
        try:
            score = self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            text = f"the body is not {{id, score, source}}: {error}"
            raise Refusal(400, text, "invalid_body") from None
        if not 0 <= score.score <= 1:
            raise Refusal(400, "the score must be a number from 0 to 1", "invalid_score")
        if not 1 <= len(score.source) <= 128:
            raise Refusal(400, "the source must have 1 to 128 characters", "invalid_source")
        return score

    def _count(self, mark: Mark, score: float) -> bool:
        place = None
        # Scores of an earlier process's answers would join counts that began anew, and which of
        # them were scored already went with that process.
        if mark.observed and mark.process == self._settlement.process:
            key = (mark.service, mark.canary, mark.stable)
            place = self._settlement.scored(key, mark.share, mark.arm)
        twice = Refusal(409, "this answer has a score already; it counts once", "scored_already")
        if mark.nonce in self._uncounted:
            raise twice
        if place is None:
            # No evidence hangs on these: the oldest may be forgotten.
            if len(self._uncounted) >= self._scored_max:
                del self._uncounted[next(iter(self._uncounted))]
            self._uncounted[mark.nonce] = None
            return False
        scored, tally = place
        if mark.nonce in scored:
            raise twice
        if len(scored) >= self._scored_max:
            text = f"this comparison has {self._scored_max} scores, as many as are kept"
            raise Refusal(503, text, "feedback_full")
        scored.add(mark.nonce)
        bucket = round(100 * score)
        tally.scores[bucket] = tally.scores.get(bucket, 0) + 1
        return True
