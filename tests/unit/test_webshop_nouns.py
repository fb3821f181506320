"""Nouns of product titles."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from envrl.envs.webshop.nouns import built_in_nouns, spacy_nouns
from envrl.errors import ConfigFault


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        (
            "Mens D.O.N. Issue 2 Gca Basketball Sneakers Shoes Casual - Off White",
            "d.o.n. issue gca basketball sneakers shoes casual off white",
        ),
        (
            "Saireed UL Listed 2 Prong Power Cord for JBL Bar 3.1 Bar 2.1 Channel 4K",
            "saireed ul prong power cord jbl bar bar channel k",
        ),
        ("Women's Coat, 2-in-1 (Navy/Red)", "women coat navy red"),
        ("a soft and washable mug for the family", "mug family"),
        ("Hand Knitted Bed with 12 Ultra-Light Tweed Covers", "hand bed ultra light tweed covers"),
        ("16oz bottle, 921ORB", "oz bottle"),
        ("Größe für Männer", "größe für männer"),
        ("12 - 3.1 & 7", ""),
        ("", ""),
    ],
)
def test_built_in_nouns(title: str, expected: str) -> None:
    assert built_in_nouns(title) == tuple(expected.split())


def test_a_title_is_analysed_once() -> None:
    built_in_nouns("Cached Walnut Bowl")
    before = built_in_nouns.cache_info()
    built_in_nouns("Cached Walnut Bowl")
    after = built_in_nouns.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (1, 0)


def test_missing_spacy_model_is_named() -> None:
    pytest.importorskip("spacy")
    with pytest.raises(ConfigFault, match="python -m spacy download en_no_such_model"):
        spacy_nouns("en_no_such_model")


def test_missing_spacy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ConfigFault, match=r"envrl\[spacy\]"):
        spacy_nouns()


def test_spacy_nouns_keeps_nouns_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    tags = {"Acme": "PROPN", "soft": "ADJ", "Mug": "NOUN", "2": "NUM"}

    def pipeline(title: str) -> list[SimpleNamespace]:
        calls.append(title)
        return [SimpleNamespace(text=word, pos_=tags[word]) for word in title.split()]

    fake = SimpleNamespace(load=lambda name, disable: pipeline)
    monkeypatch.setitem(sys.modules, "spacy", fake)
    nouns = spacy_nouns()
    assert nouns("Acme soft Mug 2") == ("acme", "mug")
    assert nouns("Acme soft Mug 2") == ("acme", "mug")
    assert calls == ["Acme soft Mug 2"]
