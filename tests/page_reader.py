"""An HTML page as a tree, for tests that read what a browser would show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser

from benchmarks.plots import Picture
from benchmarks.reporting import page
from benchmarks.results import Results

VOID = {"br", "img", "meta"}


@dataclass
class Element:
    name: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()

    def all(self, *names: str) -> Iterator[Element]:
        """Every element below this one, those of `names` alone if any are given, in order."""
        for child in self.children:
            if isinstance(child, Element):
                if not names or child.name in names:
                    yield child
                yield from child.all(*names)


class Reader(HTMLParser):
    """ValueError where an element is closed that is not open."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("document", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {k: v or "" for k, v in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1].name != tag:
            raise ValueError(f"</{tag}> inside <{self.open[-1].name}>")
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(text: str) -> Element:
    reader = Reader()
    reader.feed(text)
    reader.close()
    if len(reader.open) != 1:
        raise ValueError(f"<{reader.open[-1].name}> is not closed")
    return reader.open[0]


def shown(found: Results, pictures: Sequence[Picture] = ()) -> Element:
    """The page of these results."""
    return read(page.page(found, pictures))


def section(tree: Element, anchor: str) -> Element:
    return next(s for s in tree.all("section") if s.attributes["id"] == anchor)
