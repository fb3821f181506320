"""Pages as text: the modes ``text`` and ``text_rich``."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from envrl.envs.webshop.pages import Node, NodeKind

SEPARATOR = " [SEP] "
_BLANKS = " \t\n\f\r"


def _shown(text: str) -> str | None:
    """The text as a reader of the page finds it; None where nothing is left of it.

    Blanks alone count as one line break, which is dropped, or as one blank, which is kept.
    """
    if text.strip(_BLANKS):
        return text
    return None if not text or "\n" in text else " "


def segments(nodes: Iterable[Node]) -> tuple[str, ...]:
    """The texts of mode ``text``, without blanks around them; some may be empty."""
    return tuple([shown.strip() for node in nodes if (shown := _shown(node.text)) is not None])


def text(nodes: Iterable[Node]) -> str:
    """Mode ``text``: everything on one line; it doesn't tell which options are chosen."""
    return SEPARATOR.join(segments(nodes))


def text_rich(nodes: Iterable[Node], url: str, visited: Collection[str]) -> str:
    """Mode ``text_rich``: one text a line, with buttons, chosen options and visited products marked.

    Args:
        nodes: Texts of the page.
        url: Its address. An option counts as chosen if the address has it in double quotes, as the
            original decides it: values with quotes, backslashes or letters beyond ASCII, which JSON
            escapes, never show as chosen.
        visited: Products opened since the last start page.
    """
    front, lines = "", []
    for node in nodes:
        shown = _shown(node.text)
        if shown is None:
            continue
        clicked = ""
        if node.kind is NodeKind.OPTION:
            if f'"{shown}"' in url:
                clicked = "clicked "
                front = f"You have clicked {shown}.\n{front}"
            lines.append(f"  [{clicked}button] {shown} [{clicked}button_]\n")
        elif node.kind is NodeKind.LINK:
            clicked = "clicked " if shown in visited else ""
            lines.append(f"\n[{clicked}button] {shown} [{clicked}button_]\n")
        elif node.kind is NodeKind.BUTTON:
            lines.append(f"[button] {shown} [button_]\n")
        else:
            lines.append(f"{shown}\n")
    return front + "".join(lines)
