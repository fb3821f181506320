"""Nouns of a product title: the words by which the reward tells whether two products are of one type.

The original asks a statistical tagger for the tokens it takes for nouns or proper names. Any function from a
title to its nouns will do; this module has a built-in one, which needs nothing, and one that asks spaCy.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from envrl.errors import ConfigFault

NounTagger = Callable[[str], tuple[str, ...]]
"""Title to its nouns, lower-case, in order, repetitions kept."""

_MOST_TITLES = 65_536
"""Titles whose nouns are remembered; a process buys far fewer different products."""

_UNITS = "km|cm|mm|dm|nm|m|in|ft|yd|kg|mg|g|t|lb|oz|mph|kb|mb|gb|tb|k|v|w"
_TOKEN = re.compile(
    rf"""
    \b(?:[^\W\d_]\.){{2,}}                      # letters with points, kept whole: D.O.N.
    | \d+(?:[.,]\d+)*(?=(?:{_UNITS})\b)         # a number glued to its unit: the 4 of 4K
    | \d+(?:[.,]\d+)+                           # 3.1
    | [^\W_]+                                   # words and model names: hyphens and slashes separate
    """,
    re.VERBOSE | re.IGNORECASE,
)
_POSSESSIVE = re.compile(r"['’]s\b", re.IGNORECASE)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# "Off" is missing on purpose: in titles it belongs to a colour (off white) or to a name.
_FUNCTION_WORDS = _words("""
    a about above across after against all along also am an and any are around as at be because been before
    being below beside between both but by can could did do does down during each either else every few for
    from had has have he her here him his how i if in inside into is it its just like many may me might mine
    more most much must my near neither no non nor not of on once one only onto or other our out over own per
    quite she should since so some such than that the their them then there these they this those through
    till to too toward towards under until up upon us very via was we were what when where which while who
    whom whose why will with within without would yet you your yours
    first second third two three four five six seven eight nine ten eleven twelve hundred thousand
    comes fits get gets give gives go goes include includes including keep keeps let lets made make makes
    making put
    mens womens ladies girls boys kids
    """)
# A capitalised adjective of a title passes for part of a name with statistical taggers; only in running,
# lower-case text is it taken for what it is.
_ADJECTIVES = _words("""
    best better big bright broad cheap chic clean clear cold cool cozy cute deep different double dry easy
    elegant extra fast fine firm fit flat free fresh full good great handy happy hard heavy high hot huge
    ideal large lasting light little long loose low luxury main mini modern natural new nice old open organic
    perfect plain plus premium pretty pure quick ready real rich right round safe sharp short single slim
    small smart smooth soft solid special stainless strong super sweet tall thick thin tight tiny tough
    traditional ultra unique useful vintage warm wet whole wide young
    """)
_ADJECTIVE_ENDINGS = ("able", "ible", "less", "ful", "ous", "proof", "ish", "ive")
_NOUNS_IN_ED = _words("bobsled bunkbed daybed flatbed infrared moped sunbed seabed waterbed")
_NOUNS_IN_LY = _words(
    "assembly belly butterfly dolly dragonfly family fly holly italy jelly july lily ply supply"
)


def _is_noun(token: str) -> bool:
    word = token.lower()
    if not word[0].isalpha() or word in _FUNCTION_WORDS:
        return False
    if word.endswith("ed") and not word.endswith("eed") and len(word) > 4 and word not in _NOUNS_IN_ED:
        return False
    if word.endswith("ly") and word not in _NOUNS_IN_LY:
        return False
    return token != word or not (word in _ADJECTIVES or (len(word) > 5 and word.endswith(_ADJECTIVE_ENDINGS)))


@lru_cache(maxsize=_MOST_TITLES)
def built_in_nouns(title: str) -> tuple[str, ...]:
    """Nouns of a title by rules: every word that is not known to be something else.

    Numbers and tokens that begin with a digit never count, nor do function words, adverbs, participles in
    -ed and, when written in lower case, adjectives. Tokens are cut as spaCy cuts them.

    Args:
        title: Product title.

    Returns:
        Lower-case nouns in order, repetitions kept.
    """
    bare = _POSSESSIVE.sub(" ", title)
    return tuple(token.lower() for token in _TOKEN.findall(bare) if _is_noun(token))


def spacy_nouns(model: str = "en_core_web_sm") -> NounTagger:
    """Tagger that asks an installed spaCy model, as the original does.

    Args:
        model: Name of an installed English pipeline with a tagger.

    Returns:
        A tagger; each title is analysed once.

    Raises:
        ConfigFault: spaCy or the model is not installed.
    """
    try:
        import spacy
    except ImportError as error:
        raise ConfigFault(
            f"the noun tagger {model!r} needs spaCy: install envrl[spacy], or use the built-in tagger"
        ) from error
    try:
        pipeline = spacy.load(model, disable=["parser", "ner", "lemmatizer"])
    except OSError as error:
        raise ConfigFault(
            f"the spaCy model {model!r} is not installed: run `python -m spacy download {model}`, "
            "or use the built-in tagger"
        ) from error

    @lru_cache(maxsize=_MOST_TITLES)
    def nouns(title: str) -> tuple[str, ...]:
        return tuple(token.text.lower() for token in pipeline(title) if token.pos_ in ("NOUN", "PROPN"))

    return nouns
