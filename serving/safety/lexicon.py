"""Finds listed words and phrases, also disguised ones, in one pass (Aho-Corasick).

Lists are `category<TAB>term` lines; `*` at an end of a term lets the word go on there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from core.contracts import Role
from core.errors import ConfigurationError
from core.plain_text import is_han, plain_text
from serving.safety.decisions import ALLOW, Action, Context, Decision
from serving.safety.views import RUNS, views

LEXICONS = Path(__file__).resolve().parent / "lexicons"
SINGLES_LENGTH_MIN = 6
"""Terms with a doubled letter are looked for without it from here on: `as` is no insult."""
VOWELS = "aeiou"
VOWELS_MASKED_LENGTH_MIN = 4


@dataclass(frozen=True, slots=True)
class Term:
    """A word or phrase in plain form, what it stands for, and at which ends it may go on."""

    text: str
    category: str
    open_start: bool = False
    open_end: bool = False


def read_terms(file: Path) -> list[Term]:
    """Read one list. Raises ConfigurationError naming the line that is wrong."""
    found = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the word list {file} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        category, separator, term = line.partition("\t")
        if not separator or not term.strip("* \t"):
            raise ConfigurationError(f"{file}:{number}: write category, a tab, and the term")
        found.append(make_term(term, category))
    return found


@cache
def shipped_terms() -> tuple[Term, ...]:
    """Return the terms of the lists that come with Serin."""
    return tuple(term for file in sorted(LEXICONS.glob("*.txt")) for term in read_terms(file))


def make_term(text: str, category: str) -> Term:
    """Return a term in the form in which texts are searched."""
    text = text.strip()
    core = " ".join(plain_text(text.strip("*")).split())
    return Term(core, category.strip(), text.startswith("*"), text.endswith("*"))


class Lexicon:
    """Looks for terms in every form of a text."""

    def __init__(self, terms: Iterable[Term]) -> None:
        from ahocorasick_rs import AhoCorasick

        whole: dict[str, Term] = {}
        singles: dict[str, Term] = {}
        for term in terms:
            known = whole.get(term.text, term)
            whole[term.text] = replace(
                known,
                open_start=known.open_start or term.open_start,
                open_end=known.open_end or term.open_end,
            )
            for masked in _masked(term):
                whole.setdefault(masked, term)
            single = RUNS.sub(r"\1", term.text)
            if single == term.text or len(single) >= SINGLES_LENGTH_MIN:
                singles.setdefault(single, term)
        self._tables: list[tuple[Any, list[str], list[Term]]] = []
        for table in (whole, singles):
            texts = list(table)
            self._tables.append((AhoCorasick(texts), texts, list(table.values())))

    def find(self, text: str) -> list[Term]:
        """Return the terms found, each once, in order."""
        seen = views(text)
        found: dict[Term, None] = {}
        for forms, (automaton, texts, terms) in zip(
            (seen.forms, seen.singles), self._tables, strict=True
        ):
            for form in forms:
                for index, start, end in automaton.find_matches_as_indexes(form, overlapping=True):
                    if _stands_alone(form, start, end, texts[index], terms[index]):
                        found[terms[index]] = None
        return list(found)


class LexiconFilter:
    """Blocks texts with terms of the categories that the policy blocks."""

    name = "lexicon"

    def __init__(self, terms: Iterable[Term], actions: Mapping[str, Action]) -> None:
        self._actions = {name: action for name, action in actions.items() if action != "allow"}
        self._lexicon = Lexicon(term for term in terms if term.category in self._actions)

    def check(self, role: Role, text: str, context: Context) -> Decision:
        """Block; the longest term names the category."""
        found = self._lexicon.find(text)
        if not found:
            return ALLOW
        term = max(found, key=lambda item: len(item.text))
        return Decision("block", term.category, 1.0, f"a listed term of {term.category}")


def _masked(term: Term) -> list[str]:
    """Return how a word is written with stars: f*ck, f**k. Only for single Latin words."""
    text = term.text
    if not text.isascii() or " " in text or len(text) < VOWELS_MASKED_LENGTH_MIN:
        return []
    vowels = [at for at, letter in enumerate(text) if letter in VOWELS]
    one = [f"{text[:at]}*{text[at + 1 :]}" for at in vowels[:1] if at > 0]
    inner = f"{text[0]}{'*' * (len(text) - 2)}{text[-1]}" if len(text) <= 5 and vowels else ""
    return [*one, inner] if inner else one


def _stands_alone(form: str, start: int, end: int, text: str, term: Term) -> bool:
    """A Latin term is a word of its own: nothing of a word before or after, save its repeats."""
    if not term.open_start and _goes_on(text[0]) and start and _goes_on(form[start - 1]):
        return False
    if term.open_end or not _goes_on(text[-1]):
        return True
    while end < len(form) and form[end] == text[-1]:
        end += 1
    return end == len(form) or not _goes_on(form[end])


def _goes_on(character: str) -> bool:
    return character.isalnum() and not is_han(character)
