"""A report's page, read as a browser would."""

from html.parser import HTMLParser

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Tables by id, text by id, plots, and everything that could reach outside.

    A plot is the number of the marks that are drawn in it and the text that is written in it.
    """

    def __init__(self, content: str) -> None:
        super().__init__()
        self.text: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.plots: list[tuple[int, str]] = []
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
        assert given.get("xlink:href", "#").startswith("#")
        assert not any(name.startswith("on") for name in given)
        if tag == "svg":
            self.plots.append((0, ""))
        elif tag in ("path", "use"):
            marks, text = self.plots[-1]
            self.plots[-1] = marks + 1, text
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
        if any(tag == "svg" for tag, _ in self._open):
            marks, text = self.plots[-1]
            self.plots[-1] = marks, text + data
        for identity in self._identities():
            self.text[identity] = self.text.get(identity, "") + data
            if any(tag in ("td", "th") for tag, _ in self._open):
                self.rows[identity][-1][-1] += data

    def _identities(self) -> list[str]:
        return [identity for _, identity in self._open if identity]
