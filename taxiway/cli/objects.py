"""gs:// addresses with wildcards -> the objects and folders that they match.

`*` and `?` and `[...]` do not cross a slash; `**` does. A folder is a common prefix, which ends in a slash.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from taxiway import errors, names
from taxiway.cli.client import Client, Refused

WILD = re.compile(r"[*?\[]")
FIELDS = "nextPageToken,prefixes,items(name,size,generation,updated,timeCreated,crc32c,md5Hash)"


@dataclass(frozen=True)
class Found:
    """An object, or a folder if `row` is None and the name ends in a slash."""

    bucket: str
    name: str
    row: dict[str, Any] | None = None

    @property
    def url(self) -> str:
        return f"gs://{self.bucket}/{self.name}"

    @property
    def size(self) -> int:
        return int(self.row["size"]) if self.row else 0


def parse(url: str) -> tuple[str, str]:
    """gs://bucket/pattern -> (bucket, pattern). Raises InvalidArgument for anything else."""
    bucket, _, pattern = url.removeprefix("gs://").partition("/")
    if WILD.search(bucket):
        raise errors.InvalidArgument(f"{url}: a bucket's name cannot have wildcards; only what follows it can.")
    names.gs(f"gs://{bucket}", "URL")
    return bucket, pattern


def is_remote(url: str) -> bool:
    return url.startswith("gs://")


def path_of(bucket: str, name: str = "") -> str:
    """The API's path of a bucket or an object."""
    whole = f"/storage/v1/b/{quote(bucket, safe='')}"
    return f"{whole}/o/{quote(name, safe='')}" if name else whole


def listing(
    client: Client, bucket: str, prefix: str = "", delimiter: str = "", *, versions: bool = False
) -> Iterator[Found]:
    """What a bucket holds under a prefix: each page's folders and objects together, in order of their names.

    With `versions` also the noncurrent objects.
    """
    query = {"prefix": prefix, "fields": FIELDS, **({"delimiter": delimiter} if delimiter else {})}
    query |= {"versions": "true"} if versions else {}
    for page in client.pages(f"{path_of(bucket)}/o", **query):
        found = [Found(bucket, row["name"], row) for row in page.get("items", [])]
        found += [Found(bucket, folder) for folder in page.get("prefixes", [])]
        yield from sorted(found, key=lambda each: each.name)


def exists_below(client: Client, bucket: str, folder: str) -> bool:
    """Whether any object's name starts with `folder`; "" asks for the bucket itself, which must exist."""
    if not folder:
        client.get(path_of(bucket))
        return True
    return bool(client.get(f"{path_of(bucket)}/o", prefix=folder, maxResults=1).get("items"))


def expand(client: Client, bucket: str, pattern: str) -> Iterator[Found]:
    """The objects and folders that a pattern matches; without wildcards, the object and the folder of that name."""
    yield from _expand(client, bucket, "", pattern.split("/"))


def _expand(client: Client, bucket: str, above: str, words: list[str]) -> Iterator[Found]:
    """Level by level, so that only folders that match are listed; from a ** on, everything below is."""
    word, *rest = words
    if "**" in word:
        yield from _matching(client, bucket, above + "/".join(words))
        return
    if rest and not WILD.search(word):
        yield from _expand(client, bucket, f"{above}{word}/", rest)
        return
    if not word and not rest:  # the pattern ends in a slash: the folder, which may also be an object of that name
        if exists_below(client, bucket, above):
            yield Found(bucket, above)
        return
    if not WILD.search(word):
        yield from _named(client, bucket, above + word)
        return
    matches = re.compile(_regex(word))
    for found in listing(client, bucket, above + _literal(word), "/"):
        folder = found.row is None
        name = found.name[len(above) :]
        if not matches.fullmatch(name[:-1] if folder else name):
            continue
        if not rest:
            yield found
        elif folder:
            yield from _expand(client, bucket, found.name, rest)


def _named(client: Client, bucket: str, name: str) -> Iterator[Found]:
    """The object of a name and the folder of that name; who may read but not list still finds the object."""
    found = None
    try:
        found = Found(bucket, name, client.get(path_of(bucket, name)))
        yield found
    except Refused as error:
        if error.code != 404:
            raise
    try:
        if exists_below(client, bucket, f"{name}/"):
            yield Found(bucket, f"{name}/")
    except Refused as error:
        if found is None or error.code != 403:
            raise


def _matching(client: Client, bucket: str, pattern: str) -> Iterator[Found]:
    matches = re.compile(_regex(pattern), re.DOTALL)
    for found in listing(client, bucket, _literal(pattern)):
        if matches.fullmatch(found.name):
            yield found


def _literal(pattern: str) -> str:
    """What every match starts with."""
    wild = WILD.search(pattern)
    return pattern[: wild.start()] if wild else pattern


def _regex(pattern: str) -> str:
    """A wildcard pattern as a regular expression.

    >>> _regex("a*/[0-9]?.csv"), _regex("a/**/b")
    ('a[^/]*/[0-9][^/]\\\\.csv', 'a/(?:.*/)?b')
    """
    made, at = "", 0
    while at < len(pattern):
        closing = pattern.find("]", at + 2)
        if pattern.startswith("**/", at) and (at == 0 or pattern[at - 1] == "/"):
            made, at = made + "(?:.*/)?", at + 3
        elif pattern.startswith("**", at):
            made, at = made + ".*", at + 2
        elif pattern[at] in "*?":
            made, at = made + ("[^/]*" if pattern[at] == "*" else "[^/]"), at + 1
        elif pattern[at] == "[" and closing > 0 and (choice := _choice(pattern[at + 1 : closing])):
            made, at = made + choice, closing + 1
        else:
            made, at = made + re.escape(pattern[at]), at + 1
    return made


def _choice(inner: str) -> str | None:
    """What stands between brackets as a regular expression; None if it is no choice of characters, such as z-a."""
    negated = inner[0] in "!^"
    parts = re.findall(r"(.)-(.)|(.)", inner[negated:], re.DOTALL)
    escaped = (f"{re.escape(low)}-{re.escape(high)}" if low else re.escape(alone) for low, high, alone in parts)
    choice = f"[{'^' * negated}{''.join(escaped)}]"
    try:
        re.compile(choice)
    except re.error:
        return None
    return None if "/" in inner else choice
