"""HTML in which every string is escaped unless it was made here."""

from __future__ import annotations

import html


class Html(str):
    """Markup that is already escaped."""


def tag(name: str, *parts: str | None, **attributes: str | int | None) -> Html:
    """<name attributes>parts</name>: parts that are not Html, and all attributes, are escaped; class_ is class."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value not in (None, "")
    )
    return Html(f"<{name}{said}>{joined(*parts)}</{name}>")


def joined(*parts: str | None) -> Html:
    return Html("".join(p if isinstance(p, Html) else html.escape(p) for p in parts if p))


def listed(items: list[str], **attributes: str) -> Html:
    return tag("ul", *(tag("li", item) for item in items), **attributes) if items else Html("")
