"""Text to index terms as Lucene 8.11's default English analysis does it.

Words are cut where Unicode's word-break rules (UAX #29, in the reading of Lucene's standard tokenizer)
cut them; then a possessive 's goes, letters become lower-case, 33 stop words go, and the rest is stemmed.
A ranking equals Lucene's only if every document has the same terms *and the same number of them*, so
symbols that count as words there (emoji, ©) count here too.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from itertools import groupby

from envrl.envs.webshop.porter import stem
from envrl.envs.webshop.word_classes import characters

ANALYZER_VERSION = 1
"""Raised whenever some text is analyzed differently than before, so that stored indices are rebuilt."""

MAX_TOKEN_LENGTH = 255
"""Characters; a longer run is cut into pieces of at most this length."""

_STOP_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these "
    "they this to was will with"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())

_ASCII_TOKEN = re.compile(
    # Underscores may lead, but a letter or digit must follow; inside, a point, colon or quote between
    # letters and a point, comma, semicolon or quote between digits hold the token together. A run of
    # underscores is tried from its start only, which keeps the time linear.
    r"(?<!_)_*+[A-Za-z0-9]\w*(?:(?:(?<=[A-Za-z])[:.'](?=[A-Za-z])|(?<=[0-9])[,;.'](?=[0-9]))\w+)*",
    re.ASCII,
)


@cache  # made when first needed: it takes a third of a second
def _unicode_token() -> re.Pattern[str]:
    """The same rules for every script; possessive throughout, so that scanning takes linear time."""
    marks = rf"[{characters('mark')}\uFE0E\uFE0F\u200D]*+"
    letter = f"[{characters('letter', 'hebrew')}]"
    hebrew = f"[{characters('hebrew')}]{marks}"
    digit = f"[{characters('digit')}]"
    mid_letter = f"[{characters('mid_letter', 'mid_both')}]{marks}"
    mid_digit = f"[{characters('mid_digit', 'mid_both')}]{marks}"
    joiner = f"(?:[{characters('joiner')}]{marks})"
    item = (
        f"""(?>{hebrew}"{marks}{hebrew}|{hebrew}'{marks}"""
        f"|{letter}{marks}(?:{mid_letter}{letter}{marks})*+|{digit}{marks}(?:{mid_digit}{digit}{marks})*+)"
    )
    katakana = f"[{characters('katakana')}]{marks}"
    run = f"(?>{item}(?:{joiner}*+{item})*+|{katakana}(?:{joiner}*+{katakana})*+)"
    word = f"(?:(?<![{characters('joiner')}]){joiner}++)?+{run}(?:{joiner}++{run})*+{joiner}*+"

    picture, tone = characters("picture"), characters("tone")
    # A zero-width joiner before another emoji belongs to the sequence, any other one to the emoji before.
    last = rf"\u200D++(?![{picture}{tone}])|\u200D+(?=\u200D[{tone}])"
    tail = rf"(?:[{characters('mark')}]|{last})*+"
    pictured = rf"(?>[{characters('toned')}]{tail}[{tone}]{tail}|[{picture}]{tail}\uFE0F?+)"
    toned = f"[{tone}]{tail}"
    emoji = rf"(?:(?:(?<!\u200D)\u200D++)?+{pictured}|{toned})"
    follower = rf"\u200D(?:\u200D*+{pictured}|{toned})"
    tags = r"[\U000E0020-\U000E007E]++\U000E007F"
    pictures = rf"{emoji}(?:{tags}|(?:{follower})*+)"
    key_cap = rf"[0-9#*][{characters('mark')}\u200D]*\uFE0F?\u20E3[{characters('mark')}\u200D]*+"
    flag = f"(?:[{characters('flag')}]{marks}){{2}}"
    south_east = f"(?:[{characters('south_east')}]{marks})++"
    single = f"[{characters('single')}]{marks}"
    return re.compile("|".join((word, pictures, key_cap, flag, south_east, single)))


@cache
def _joiners() -> re.Pattern[str]:
    return re.compile(rf"(?:[{characters('joiner')}][{characters('mark')}\uFE0E\uFE0F\u200D]*+)++")


def tokens(text: str) -> list[str]:
    """Cuts a text into words, in the order of the text and as they stand in it.

    Args:
        text: Any text; white space and whatever is no word is skipped.

    Returns:
        Words of at most :data:`MAX_TOKEN_LENGTH` characters.
    """
    if text.isascii():
        found = _ASCII_TOKEN.findall(text)
    else:
        # No word holds a space, so each stretch of ASCII pieces can take the faster pattern.
        found = []
        for plain, pieces in groupby(text.split(" "), str.isascii):
            pattern = _ASCII_TOKEN if plain else _unicode_token()
            found += pattern.findall(" ".join(pieces))
    if found and len(max(found, key=len)) > MAX_TOKEN_LENGTH:
        return [piece for token in found for piece in _pieces(token)]
    return found


def _pieces(token: str) -> list[str]:
    """A token as it is, or what a scanner that sees 255 characters at a time makes of it."""
    pieces: list[str] = []
    start = 0
    while start < len(token):
        found = _unicode_token().match(token[start : start + MAX_TOKEN_LENGTH])
        if found:
            pieces.append(found[0])
            start += found.end()
        else:
            # Joiners without end: the next piece is the first that reaches what they lead to.
            lead = _joiners().match(token, start)
            start = max(start + 1, lead.end() - MAX_TOKEN_LENGTH + 1 if lead else 0)
    return pieces


def term(token: str) -> str | None:
    """The index term of one word.

    Returns:
        The stem; ``None`` for a stop word.
    """
    if token[-1:] in ("s", "S") and token[-2:-1] in ("'", "\u2019", "\uff07"):
        token = token[:-2]
    # One letter at a time: no letter becomes two, and no sigma looks at its neighbours.
    lower = token.lower() if token.isascii() else "".join(c.lower()[:1] for c in token)
    return None if lower in STOP_WORDS else stem(lower)


_cached_term = lru_cache(maxsize=1 << 16)(term)


def analyze(text: str) -> list[str]:
    """Index terms of a text, in order, repetitions included.

    Args:
        text: A query or a document.

    Returns:
        Stemmed words without stop words; empty if the text has no word.
    """
    found = map(_cached_term, tokens(text))
    return [word for word in found if word is not None]
