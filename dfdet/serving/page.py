"""The page at ``/``: one file that asks nothing of any other host."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from html import escape
from importlib import resources

from dfdet.serving.service import Service


def page(service: Service, *, needs_token: bool) -> str:
    """The HTML.

    Args:
        service: What it shows: the model, the threshold and its origin, the limits.
        needs_token: Whether it asks for one.
    """
    rule, limits = service.rule, service.limits
    facts = {
        "threshold": rule.threshold,
        "origin": rule.origin,
        "needsToken": needs_token,
        "maxBytes": limits.max_bytes,
    }
    told = json.dumps(facts).replace("<", "\\u003c").replace("&", "\\u0026")
    filled = {
        "@STYLE@": own("page.css"),
        "@SCRIPT@": own("page.js"),
        "@FACTS@": told,
        "@MODEL@": escape(
            f"{service.model.name} ({service.model.fingerprint[:12]}, {service.model.precision})"
        ),
    }
    html = own("page.html")
    for mark, text in filled.items():
        html = html.replace(mark, text)
    return html


@cache
def own(name: str) -> str:
    """A file beside this one."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; script-src {_hash(own('page.js'))}; style-src {_hash(own('page.css'))};"
    " img-src data: blob:; media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
"""Content security policy of the page: its own script and style by their checksums, requests to this
server alone."""
