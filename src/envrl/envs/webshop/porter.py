"""Porter's suffix stripper with its author's later departures, as Lucene's English analysis applies it.

The algorithm is M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980. Its author's
reference program departs from the article in three places, and so does this module: words of one or
two letters are left alone, ``bli`` becomes ``ble`` (the article: ``abli`` -> ``able``), and ``logi``
becomes ``log``. Only a, e, i, o, u and some y are vowels; digits, punctuation inside a token and letters
with accents count as consonants.
"""

from __future__ import annotations

_Rules = tuple[tuple[str, str], ...]

_STEP_2: dict[str, _Rules] = {
    "a": (("ational", "ate"), ("tional", "tion")),
    "c": (("enci", "ence"), ("anci", "ance")),
    "e": (("izer", "ize"),),
    "l": (("bli", "ble"), ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous")),
    "o": (("ization", "ize"), ("ation", "ate"), ("ator", "ate")),
    "s": (("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous")),
    "t": (("aliti", "al"), ("iviti", "ive"), ("biliti", "ble")),
    "g": (("logi", "log"),),
}
"""Letter before the last -> suffixes and what replaces them; the first that fits is the only one tried."""

_STEP_3: dict[str, _Rules] = {
    "e": (("icate", "ic"), ("ative", ""), ("alize", "al")),
    "i": (("iciti", "ic"),),
    "l": (("ical", "ic"), ("ful", "")),
    "s": (("ness", ""),),
}
"""Last letter -> suffixes and what replaces them."""

_STEP_4 = {
    "a": ("al",),
    "c": ("ance", "ence"),
    "e": ("er",),
    "i": ("ic",),
    "l": ("able", "ible"),
    "n": ("ant", "ement", "ment", "ent"),
    "o": ("sion", "tion", "ou"),
    "s": ("ism",),
    "t": ("ate", "iti"),
    "u": ("ous",),
    "v": ("ive",),
    "z": ("ize",),
}
"""Letter before the last -> suffixes that go; of ``sion`` and ``tion`` the first letter stays."""


def stem(word: str) -> str:
    """Strips the suffixes of one lower-case word.

    Args:
        word: A token as the tokenizer cuts it, lower-case; anything but a-z is taken as a consonant.

    Returns:
        The stem; the word itself if it has at most two characters.
    """
    # Lucene counts in UTF-16, where a letter beyond U+FFFF has length two.
    if len(word) < 2 or (len(word) == 2 and max(word) <= "\uffff"):
        return word
    word = _past(_plural(word))
    if word.endswith("y") and "v" in _shape(word[:-1]):
        word = word[:-1] + "i"
    if len(word) > 1:
        word = _replace(word, _STEP_2.get(word[-2], ()))
    word = _replace(word, _STEP_3.get(word[-1], ()))
    if len(word) > 1:
        word = _drop(word)
    return _tidy(word)


def _shape(word: str) -> str:
    """The word with ``v`` for each vowel and ``c`` for each consonant; y is a vowel after a consonant."""
    shape = ""
    for letter in word:
        shape += "v" if letter in "aeiou" or (letter == "y" and shape.endswith("c")) else "c"
    return shape


def _measure(shape: str) -> int:
    """How often consonants follow vowels: Porter's m of [C](VC)^m[V]."""
    return shape.count("vc")


def _short(word: str, shape: str) -> bool:
    """Whether the word ends consonant, vowel, consonant, the last one not w, x or y."""
    return shape.endswith("cvc") and word[-1] not in "wxy"


def _plural(word: str) -> str:
    """Step 1a: the s of plurals."""
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word[-1] == "s" and word[-2] != "s" else word


def _past(word: str) -> str:
    """Step 1b: eed, ed and ing; what is left is made a word again."""
    if word.endswith("eed"):
        return word[:-1] if _measure(_shape(word[:-3])) > 0 else word
    if not word.endswith(("ed", "ing")):
        return word
    rest = word[:-2] if word.endswith("ed") else word[:-3]
    shape = _shape(rest)
    if "v" not in shape:
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if rest[-2:-1] == rest[-1] and shape[-1] == "c":
        return rest if rest[-1] in "lsz" else rest[:-1]
    return rest + "e" if _measure(shape) == 1 and _short(rest, shape) else rest


def _replace(word: str, rules: _Rules) -> str:
    """Steps 2 and 3: the first suffix that fits is replaced if what is before it has a measure."""
    for suffix, replacement in rules:
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            return rest + replacement if _measure(_shape(rest)) > 0 else word
    return word


def _drop(word: str) -> str:
    """Step 4: a last suffix goes if what is before it is long enough."""
    for suffix in _STEP_4.get(word[-2], ()):
        if word.endswith(suffix):
            rest = word[: len(word) - len(suffix) + suffix.endswith("ion")]
            return rest if _measure(_shape(rest)) > 1 else word
    return word


def _tidy(word: str) -> str:
    """Step 5: a last e, and one of two last l."""
    shape = _shape(word)
    measure = _measure(shape)
    if word[-1] == "e" and (measure > 1 or (measure == 1 and not _short(word[:-1], shape[:-1]))):
        word = word[:-1]
    return word[:-1] if word.endswith("ll") and measure > 1 else word
