"""Addresses of pages: mode ``url``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from envrl.envs.webshop.pages import DonePage, ItemPage, Page, ResultsPage, StartPage, SubPage

BASE = "http://127.0.0.1:3000"


def _query(keywords: Sequence[str]) -> str:
    return "+".join(keywords)


def address(page: Page, session_id: str) -> str:
    """Address of a page, nothing in it escaped; chosen options are written as the original writes them.

    Args:
        page: The page.
        session_id: Name of the session.
    """
    match page:
        case StartPage():
            return f"{BASE}/{session_id}"
        case ResultsPage():
            return f"{BASE}/search_results/{session_id}/{_query(page.keywords)}/{page.number}"
        case ItemPage():
            options = json.dumps(dict(page.options))
            return f"{BASE}/item_page/{session_id}/{_item(page)}/{options}"
        case SubPage():
            options = repr(dict(page.item.options))
            return f"{BASE}/item_sub_page/{session_id}/{_item(page.item)}/{page.name}/{options}"
        case DonePage():
            return f"{BASE}/done/{session_id}/{page.asin}/{dict(page.options)!r}"


def _item(page: ItemPage) -> str:
    return f"{page.asin}/{_query(page.keywords)}/{page.number}"
