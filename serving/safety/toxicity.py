"""Scores how toxic a text is with the embedded model, as written and without its disguises."""

from functools import lru_cache
from pathlib import Path

from core.contracts import Role
from core.text_scores import ScoreCard, TextScores, load_scores
from serving.safety.decisions import Context, Decision
from serving.safety.views import views

MODELS = Path(__file__).resolve().parent / "models"
CATEGORY = "toxicity"


@lru_cache(maxsize=2)
def model(folder: Path) -> tuple[TextScores, ScoreCard]:
    """Return a model, read once. Raises IntegrityError."""
    return load_scores(folder)


class ToxicityFilter:
    """Blocks texts that score `threshold` or more."""

    name = "toxicity"

    def __init__(self, threshold: float, folder: Path = MODELS) -> None:
        self._threshold = threshold
        self._scores, self.card = model(folder)

    def check(self, role: Role, text: str, context: Context) -> Decision:
        """Score the text; where letters were spelt out or masked, that form too."""
        score = max(self._scores.score(form) for form in _scored(text))
        if score < self._threshold:
            return Decision("allow", score=score)
        return Decision("block", CATEGORY, score, f"scored {score:.2f} by {self.card.name}")


def _scored(text: str) -> tuple[str, ...]:
    """The text, and its last form where disguises were found (the one with all of them undone)."""
    forms = views(text).forms
    return (text,) if len(forms) == 1 else (text, forms[-1])
