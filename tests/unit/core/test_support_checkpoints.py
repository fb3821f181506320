"""Checkpoints that tests share: one file's must not change under another's feet."""

from envrl.policy.reading import read_tokenizer
from support import COLOURS, word_checkpoint


def test_vocabularies_of_the_same_length_have_checkpoints_of_their_own() -> None:
    others = (*COLOURS[:4], *(f"{word}er" for word in COLOURS[4:]))
    folders = {words: word_checkpoint(words) for words in (COLOURS, others)}
    for words, folder in folders.items():
        assert read_tokenizer(str(folder)).convert_ids_to_tokens(list(range(len(words)))) == list(words)
    assert word_checkpoint(COLOURS) == folders[COLOURS]
