"""taxiway storage acl and defacl: access control lists of objects and buckets, in gsutil's words."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import Annotated
from urllib.parse import quote

import typer

from taxiway import errors, names
from taxiway.cli import client, objects, options, printing, transfer
from taxiway.cli.client import Client, Refused
from taxiway.cli.objects import Found
from taxiway.cli.printing import say

ROLES = {
    **dict.fromkeys(("R", "READ", "READER"), "READER"),
    **dict.fromkeys(("W", "WRITE", "WRITER"), "WRITER"),
    **dict.fromkeys(("O", "OWNER", "FC", "FULL_CONTROL"), "OWNER"),
}
PUBLIC = {"allusers": "allUsers", "allauthenticatedusers": "allAuthenticatedUsers"}
_TEAM = re.compile(r"(owners|editors|viewers)-\S+")
SHOWN = ("entity", "role", "email", "projectTeam")

Url = Annotated[str, typer.Argument(help="gs://BUCKET[/OBJECT or wildcard]")]
Bucket = Annotated[str, typer.Argument(help="gs://BUCKET")]
Give = Annotated[
    list[str] | None,
    typer.Option("-u", metavar="WHO:R|W|O", help="Let somebody read, write (buckets only) or own; may be repeated."),
]
Take = Annotated[list[str] | None, typer.Option("-d", metavar="WHO", help="Take somebody off; may be repeated.")]
Recursive = Annotated[bool, typer.Option("-r", "-R", help="Every object below, and not the bucket itself.")]

WHO = "WHO is an e-mail address, AllUsers, AllAuthenticatedUsers, or owners|editors|viewers-PROJECT."

acl = options.group(f"Who may use an object or a bucket, by its own list. {WHO}")
defacl = options.group(f"The list that a bucket's new objects get. {WHO}")


@acl.command("get", epilog=options.example("taxiway storage acl get gs://my-rides/train.csv"))
def get(url: Url, format: options.Format = None) -> None:
    """Print the list of a bucket or an object."""
    server = client.connect()
    bucket, pattern = objects.parse(url)
    (target,) = _objects(server, url, one=True) if pattern else [Found(bucket, "")]
    _show(server, _path(target), format)


@acl.command(
    "ch",
    epilog=options.example(
        "taxiway storage acl ch -u $AGENT:W gs://my-rides",
        "taxiway storage acl ch -r -u $AGENT:R gs://my-rides/data",
        "taxiway storage acl ch -d ann@example.com gs://my-rides/train.csv",
    ),
)
def change(url: Url, give: Give = None, take: Take = None, recursive: Recursive = False) -> None:
    """Change the list of a bucket or of objects."""
    server = client.connect()
    wanted = changes(give, take)
    bucket, pattern = objects.parse(url)
    targets = _objects(server, url, below=recursive) if recursive or pattern else [Found(bucket, "")]
    transfer.in_parallel(functools.partial(_change, server, each, _path(each), wanted) for each in targets)


@defacl.command("get", epilog=options.example("taxiway storage defacl get gs://my-rides"))
def get_default(bucket: Bucket, format: options.Format = None) -> None:
    """Print the list that new objects get."""
    _show(client.connect(), f"{objects.path_of(_bucket(bucket))}/defaultObjectAcl", format)


@defacl.command("ch", epilog=options.example("taxiway storage defacl ch -u $AGENT:R gs://my-rides"))
def change_default(bucket: Bucket, give: Give = None, take: Take = None) -> None:
    """Change the list that new objects get; objects that are there keep theirs."""
    found = Found(_bucket(bucket), "")
    path = f"{objects.path_of(found.bucket)}/defaultObjectAcl"
    _change(client.connect(), found, path, changes(give, take))


def entity(who: str) -> str:
    """What gsutil calls somebody, as lists spell it. Raises InvalidArgument.

    >>> entity("ann@example.com"), entity("viewers-taxi"), entity("AllUsers")
    ('user-ann@example.com', 'project-viewers-taxi', 'allUsers')
    """
    if who.lower() in PUBLIC:
        return PUBLIC[who.lower()]
    if _TEAM.fullmatch(who):
        return f"project-{who}"
    if "@" in who:
        return f"user-{who}"
    raise errors.InvalidArgument(f"{who!r} is nobody that a list can name. {WHO}")


def changes(give: list[str] | None, take: list[str] | None) -> list[tuple[str, str]]:
    """(entity, role) of each change; an empty role takes it off."""
    wanted = []
    for each in give or []:
        who, _, word = each.rpartition(":")
        if word.upper() not in ROLES:
            raise errors.InvalidArgument(f"-u {each}: expected WHO:R, WHO:W or WHO:O, such as ann@example.com:R.")
        wanted.append((entity(who), ROLES[word.upper()]))
    wanted += [(entity(who), "") for who in take or []]
    if not wanted:
        raise errors.InvalidArgument("Nothing to change: give -u WHO:R|W|O, or -d WHO.")
    return wanted


def _change(server: Client, found: Found, path: str, wanted: list[tuple[str, str]]) -> None:
    for named, role in wanted:
        if role:
            server.post(path, {"entity": named, "role": role})
        else:
            with _gone_already():
                server.delete(f"{path}/{quote(named, safe='@')}")
    say(f"Updated ACL on {found.url.rstrip('/') if not found.name else found.url}")


@contextlib.contextmanager
def _gone_already() -> Iterator[None]:
    """Whoever is not on the list need not be taken off it."""
    try:
        yield
    except Refused as error:
        if error.code != 404 or "is not on the list" not in str(error):
            raise


def _show(server: Client, path: str, format: options.Form | None) -> None:
    items = server.get(path).get("items", [])
    printing.show([{field: item[field] for field in SHOWN if field in item} for item in items], format)


def _path(found: Found) -> str:
    return f"{objects.path_of(found.bucket, found.name)}/acl"


def _bucket(url: str) -> str:
    bucket, name = objects.parse(url)
    if name:
        raise errors.InvalidArgument(f"{url} is an object. Give a bucket alone: {names.join_gs(bucket)}")
    return bucket


def _objects(server: Client, url: str, *, below: bool = False, one: bool = False) -> list[Found]:
    """The objects that a URL matches, with those in the folders that it matches if `below`. Raises NotFound."""
    bucket, pattern = objects.parse(url)
    found: list[Found] = []
    for each in objects.expand(server, bucket, pattern):
        if each.row is not None:
            found.append(each)
        elif below:
            found += objects.listing(server, bucket, each.name)
    if not found:
        raise errors.NotFound(f"No URLs matched: {url}")
    if one and len(found) > 1:
        raise errors.InvalidArgument(f"{url} matches {len(found)} objects; name one.")
    return found
