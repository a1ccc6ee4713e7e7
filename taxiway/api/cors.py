"""Cross-origin requests: which pages of other sites may use a bucket's objects from within a browser.

The rules are the bucket's `cors`, as https://cloud.google.com/storage/docs/cross-origin describes them; how a browser
asks is said by https://fetch.spec.whatwg.org/#http-cors-protocol. A rule lets a page read an answer, and nobody in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

import msgspec
import sqlalchemy as sa
from starlette.types import Message, Scope, Send

from taxiway.db.database import Database, Prepared
from taxiway.db.tables import buckets

Rule = Mapping[str, Any]  # {"origin": [...], "method": [...], "responseHeader": [...], "maxAgeSeconds": int}

DEFAULT_AGE_S = 3600  # how long a browser may remember a preflight's answer, if the rule does not say
_BUCKET = re.compile(r"/(?:(?:resumable/)?upload/storage/v1/b/)?([^/]+)")
_EXTRA = Prepared(sa.select(buckets.c.extra).where(buckets.c.name == sa.bindparam("bucket")))


def preflight(rules: Iterable[Rule], origin: str, method: str, headers: str) -> dict[str, str]:
    """What to answer a browser that asks before it sends; nothing if no rule allows it.

    `headers` are those that it wants to send, joined by commas; only those that the rule names are allowed.
    """
    rule = _matching(rules, origin, method)
    if rule is None:
        return {}
    named = {each.lower() for each in _listed(rule, "responseHeader")}
    wanted = [each.strip() for each in headers.split(",") if each.strip()]
    allowed = [each for each in wanted if "*" in named or each.lower() in named]
    told = {
        **_origin(rule, origin),
        "Access-Control-Allow-Methods": ",".join(_listed(rule, "method")),
        "Access-Control-Max-Age": str(_age(rule)),
    }
    return {**told, "Access-Control-Allow-Headers": ",".join(allowed)} if allowed else told


def answer(rules: Iterable[Rule], origin: str, method: str) -> dict[str, str]:
    """What an answer carries so that a page of this origin may read it."""
    rule = _matching(rules, origin, method)
    if rule is None:
        return {}
    exposed = ",".join(_listed(rule, "responseHeader"))
    return {**_origin(rule, origin), **({"Access-Control-Expose-Headers": exposed} if exposed else {})}


def rules_of(db: Database, bucket: str) -> list[Rule]:
    """A bucket's rules; none for a bucket that is not there."""
    for (extra,) in db.rows(_EXTRA, {"bucket": bucket}):
        rules = msgspec.json.decode(extra).get("cors")
        return [each for each in rules if isinstance(each, dict)] if isinstance(rules, list) else []
    return []


def answering(db: Database, scope: Scope, send: Send) -> Send:
    """A `send` that adds what a page of the request's origin needs to read the answer; `send` itself for no page."""
    origin = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"), "")
    match = _BUCKET.match(scope["path"])
    if not origin or match is None or scope["method"] == "OPTIONS":
        return send
    told = answer(rules_of(db, unquote(match[1])), origin, scope["method"])
    added = [(name.encode(), value.encode("latin-1")) for name, value in told.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return sending


def _matching(rules: Iterable[Rule], origin: str, method: str) -> Rule | None:
    """The first rule for this origin and method, as Cloud Storage takes it."""
    for rule in rules:
        origins, methods = _listed(rule, "origin"), {each.upper() for each in _listed(rule, "method")}
        if ("*" in origins or origin in origins) and ("*" in methods or method.upper() in methods):
            return rule
    return None


def _origin(rule: Rule, origin: str) -> dict[str, str]:
    if "*" in _listed(rule, "origin"):
        return {"Access-Control-Allow-Origin": "*"}
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def _listed(rule: Rule, name: str) -> list[str]:
    """The rule's words under a name; one that no header could carry is none."""
    held = rule.get(name)
    words = held if isinstance(held, list) else []
    return [each for each in words if isinstance(each, str) and each.isascii() and each.isprintable()]


def _age(rule: Rule) -> int:
    held = rule.get("maxAgeSeconds")
    return held if isinstance(held, int) else DEFAULT_AGE_S
