"""The document put into the page: one file that needs no network."""

from __future__ import annotations

import html
import json
from importlib import resources
from typing import Any


def explorer_page(data: dict[str, Any]) -> str:
    """The whole page as HTML, its style, script and data inside."""
    assets = resources.files(__package__)
    page = (assets / "explorer.html").read_text(encoding="utf-8")
    filled = {
        "TITLE": html.escape(f"{data['title']} on {data['target']}"),
        "STYLE": (assets / "explorer.css").read_text(encoding="utf-8"),
        "SCRIPT": "\n".join(
            (assets / name).read_text(encoding="utf-8") for name in ("model.js", "views.js", "memory.js", "explorer.js")
        ),
        "DATA": _json_inside_html(data),
    }
    for key, text in filled.items():
        page = page.replace(f"{{{{{key}}}}}", text)
    return page


def _json_inside_html(data: Any) -> str:
    """JSON that cannot end the element it stands in, whatever the names in the model are."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028")
