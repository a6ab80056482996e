"""A report's page, read as a browser would."""

import base64
from html.parser import HTMLParser

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tables by id, text by id, images, and everything that could reach outside."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.text: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.images: list[bytes] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self._open: list[tuple[str, str]] = []
        self.feed(content)
        self.close()
        assert self._open == [], "a tag is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.addresses += [given[name] for name in ("src", "href", "action") if name in given]
        assert not any(name.startswith("on") for name in given)
        if tag == "img":
            kind, data = given["src"].split(",", 1)
            assert kind == "data:image/png;base64"
            self.images.append(base64.b64decode(data, validate=True))
        if tag not in VOID:
            self._open.append((tag, given.get("id", "")))
        for identity in self._identities():
            if tag == "tr":
                self.rows.setdefault(identity, []).append([])
            elif tag in ("td", "th"):
                self.rows[identity][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self._open.pop()
        assert opened == tag

    def handle_data(self, data: str) -> None:
        for identity in self._identities():
            self.text[identity] = self.text.get(identity, "") + data
            if any(tag in ("td", "th") for tag, _ in self._open):
                self.rows[identity][-1][-1] += data

    def _identities(self) -> list[str]:
        return [identity for _, identity in self._open if identity]
