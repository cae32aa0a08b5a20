"""A page of ours taken apart, for tests of reports."""

import json
from html.parser import HTMLParser


class Page(HTMLParser):
    """The parts of a page that tests look at."""

    VOID = ("meta", "wbr", "br", "img")

    def __init__(self, path):
        super().__init__()
        self.links, self.handlers, self.scripts, self.data, self.policy = [], [], [], [], ""
        self.headings, self.text, self._open = [], "", []
        self.rows = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.figures = [figure for figure in map(json.loads, self.data) if "layout" in figure]

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [value for name, value in attrs.items() if name in ("src", "href", "srcset", "action")]
        self.handlers += [name for name in attrs if name.startswith("on")]
        if attrs.get("http-equiv") == "Content-Security-Policy":
            self.policy = attrs["content"]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self._open.append((tag, attrs))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        tag, attrs = self._open[-1] if self._open else ("", {})
        if tag == "script":
            (self.data if attrs.get("type") == "application/json" else self.scripts).append(data)
        elif tag == "h2":
            self.headings.append(data)
        elif tag != "style":
            self.text += data + " "
        if tag in ("td", "th"):
            self.rows[-1][-1] += data
