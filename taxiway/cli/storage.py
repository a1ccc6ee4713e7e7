"""taxiway storage: buckets and objects, in gcloud's and gsutil's words."""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer

from taxiway import errors, names
from taxiway.cli import acls, client, copying, objects, options, policies, printing, transfer
from taxiway.cli.client import Client
from taxiway.cli.objects import Found
from taxiway.cli.printing import say

Bucket = Annotated[str, typer.Argument(help="gs://BUCKET")]
Recursive = Annotated[bool, typer.Option("-r", "-R", "--recursive", help="Folders with everything in them.")]

app = options.group("Buckets and objects.")
buckets = options.group("Buckets and who may use them.")
app.add_typer(buckets, name="buckets")
app.add_typer(acls.acl, name="acl")
app.add_typer(acls.defacl, name="defacl")


@app.command(epilog=options.example("taxiway storage mb gs://my-rides --location us-central1"))
def mb(
    bucket: Bucket,
    location: Annotated[str | None, typer.Option("-l", "--location", help="Kept with the bucket.")] = None,
    project: options.Project = None,
) -> None:
    """Make a bucket."""
    server = client.connect(project)
    name = _bucket(bucket)
    say(f"Creating gs://{name}/...")
    server.post("/storage/v1/b", {"name": name, **({"location": location} if location else {})}, project=server.project)


@app.command(
    epilog=options.example("taxiway storage ls -l gs://my-rides/data", "taxiway storage ls 'gs://my-rides/**.csv'")
)
def ls(
    urls: Annotated[
        list[str] | None, typer.Argument(help="gs://BUCKET[/PREFIX or wildcard] ...; none: your buckets")
    ] = None,
    recursive: Recursive = False,
    long: Annotated[bool, typer.Option("-l", "--long", help="Sizes and times as well.")] = False,
    project: options.Project = None,
) -> None:
    """List buckets, or what a bucket holds."""
    server = client.connect(project)
    if not urls:
        for row in server.items("/storage/v1/b", "items", project=server.project):
            typer.echo(f"gs://{row['name']}/")
        return
    lister = _Lister(server, recursive, long)
    for url in urls:
        lister.url(url)
    lister.end()


@app.command(
    epilog=options.example("taxiway storage cp -r data gs://my-rides", "taxiway storage cp 'gs://my-rides/*.csv' .")
)
def cp(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE... DESTINATION")],
    recursive: Recursive = False,
) -> None:
    """Copy files and objects; one side at least starts with gs://."""
    if len(sources) < 2:
        raise typer.BadParameter("give at least one source and a destination")
    server = client.connect()
    copies = copying.plan(server, sources[:-1], sources[-1], recursive)
    total = sum(copy.size for copy in copies)
    if not printing.on_terminal():
        for copy in copies:
            say(f"Copying {copy}")
    with transfer.progress(total, "Copying") as told:
        transfer.in_parallel(functools.partial(_copy, server, copy, told) for copy in copies)
    say(f"Completed files {len(copies)}/{len(copies)} | {printing.size(total)}/{printing.size(total)}")


@app.command(epilog=options.example("taxiway storage cat gs://my-rides/train.csv | head"))
def cat(urls: Annotated[list[str], typer.Argument(help="gs://BUCKET/OBJECT or wildcard ...")]) -> None:
    """Write objects to standard output."""
    server = client.connect()
    out = typer.get_binary_stream("stdout")
    for url in urls:
        for found in _objects(server, url):
            for piece in transfer.read(server, found):
                out.write(piece)
    out.flush()


@app.command(
    epilog=options.example("taxiway storage rm -r gs://my-rides/model", "taxiway storage rm 'gs://my-rides/*.csv'")
)
def rm(
    urls: Annotated[list[str], typer.Argument(help="gs://BUCKET/OBJECT or wildcard ...")], recursive: Recursive = False
) -> None:
    """Delete objects; with -r folders, and whole buckets."""
    server = client.connect()
    wanted: dict[tuple[str, str], Found] = {}
    emptied = []
    for url in urls:
        bucket, pattern = objects.parse(url)
        if not pattern and not recursive:
            raise errors.InvalidArgument(
                f"{url} is a bucket. To delete it with all that it holds: taxiway storage rm -r {url}"
            )
        found = list(_below(server, url)) if recursive else list(_objects(server, url))
        wanted.update({(each.bucket, each.name): each for each in found})
        emptied += [] if pattern else [bucket]
    for each in wanted.values():
        say(f"Removing {each.url}...")
    transfer.in_parallel(functools.partial(_remove, server, each) for each in wanted.values())
    for bucket in emptied:
        say(f"Removing gs://{bucket}/...")
        left = objects.listing(server, bucket, versions=True)
        transfer.in_parallel(functools.partial(_remove_version, server, each) for each in left)
        server.delete(objects.path_of(bucket))


SIGN = "taxiway storage sign-url gs://my-rides/a.csv --private-key-file key.json"


@app.command("sign-url", epilog=options.example(SIGN, f"{SIGN} --http-verb PUT --content-type text/csv --duration 10m"))
def sign_url(
    urls: Annotated[list[str], typer.Argument(help="gs://BUCKET/OBJECT ...; no wildcards")],
    private_key_file: Annotated[
        Path | None,
        typer.Option(help="A service account's key (default: GOOGLE_APPLICATION_CREDENTIALS, else the owner's)."),
    ] = None,
    private_key_password: Annotated[
        str | None, typer.Option("-p", "--private-key-password", help="Of the key.")
    ] = None,
    duration: Annotated[str, typer.Option("-d", "--duration", help="How long it holds: 10m, 1h30m, up to 7d.")] = "1h",
    http_verb: Annotated[str, typer.Option("-m", "--http-verb", help="GET, HEAD, PUT, POST or DELETE.")] = "GET",
    content_type: Annotated[str | None, typer.Option(help="The Content-Type that the request must have.")] = None,
    headers: Annotated[str | None, typer.Option(help="KEY=VALUE,... that the request must have.")] = None,
    query_params: Annotated[str | None, typer.Option(help="KEY=VALUE,... for the URL, such as generation=1.")] = None,
    region: Annotated[str, typer.Option("-r", "--region", help="The bucket's; any is right here.")] = "auto",
    endpoint: Annotated[str | None, typer.Option(help="Where the URL leads (default: the server).")] = None,
    format: options.Format = None,
) -> None:
    """Sign URLs with which anybody may do one thing for a while, with the key's account's rights; here, unasked.

    Resumable uploads: --http-verb POST --headers x-goog-resumable=start.
    """
    signing = importlib.import_module("taxiway.cli.signing")  # by name: cryptography would cost every command 40 ms
    signer = signing.signer(client.key_file(private_key_file), private_key_password)
    base, seconds, now = (endpoint or client.url()).rstrip("/"), signing.duration(duration), time.time()
    sent = {**_pairs("--headers", headers), **({"content-type": content_type} if content_type else {})}
    for url in urls:
        bucket, name = names.gs(url, "URL")
        signed = signing.url(
            signer,
            http_verb.upper(),
            base,
            f"/{bucket}/{name}" if name else f"/{bucket}",
            seconds=seconds,
            now=now,
            headers=sent,
            query=_pairs("--query-params", query_params),
            location=region,
        )
        ends = f"{datetime.fromtimestamp(now + seconds, timezone.utc):%Y-%m-%d %H:%M:%S}"
        row = {"resource": url, "http_verb": http_verb.upper(), "expiration": ends, "signed_url": signed}
        if format != options.Form.json:
            typer.echo("---")
        printing.show(row, format)


def _pairs(flag: str, text: str | None) -> dict[str, str]:
    """KEY=VALUE,KEY=VALUE as gcloud takes it."""
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    if not all(name.strip() and equals for name, equals, _ in pairs):
        raise errors.InvalidArgument(f"{flag}: expected KEY=VALUE,KEY=VALUE; got {text!r}.")
    return {name.strip(): value for name, _, value in pairs}


@buckets.command("get-iam-policy", epilog=options.example("taxiway storage buckets get-iam-policy gs://my-rides"))
def get_iam_policy(bucket: Bucket, format: options.Format = None) -> None:
    """Print who may do what with a bucket."""
    printing.show(_policy(bucket).read(), format)


GRANT = "gs://my-rides --member serviceAccount:$AGENT --role roles/storage.objectAdmin"


@buckets.command(
    "add-iam-policy-binding", epilog=options.example(f"taxiway storage buckets add-iam-policy-binding {GRANT}")
)
def add_iam_policy_binding(
    bucket: Bucket, member: policies.Member, role: policies.Role, format: options.Format = None
) -> None:
    """Grant a role on a bucket."""
    printing.show(policies.grant(_policy(bucket), member, role), format)


@buckets.command(
    "remove-iam-policy-binding", epilog=options.example(f"taxiway storage buckets remove-iam-policy-binding {GRANT}")
)
def remove_iam_policy_binding(
    bucket: Bucket, member: policies.Member, role: policies.Role, format: options.Format = None
) -> None:
    """Take a role on a bucket back."""
    printing.show(policies.take_back(_policy(bucket), member, role), format)


def _policy(url: str) -> policies.Policy:
    return policies.of_bucket(client.connect(), _bucket(url))


class _Lister:
    """Prints what `ls` is asked for, and at the end what it came to."""

    def __init__(self, server: Client, recursive: bool, long: bool) -> None:
        self.server = server
        self.recursive = recursive
        self.long = long
        self.count = self.bytes = 0
        self.printed = False

    def url(self, url: str) -> None:
        bucket, pattern = objects.parse(url)
        if not pattern:
            self.folder(Found(bucket, ""), headed=self.recursive)
            return
        found = list(objects.expand(self.server, bucket, pattern))
        if not found:
            raise errors.NotFound(f"{url}: one or more URLs matched no objects.")
        several = len(found) > 1 or self.recursive
        for each in found:
            if each.row is not None:
                self.line(each)
        for each in found:
            if each.row is None:
                self.folder(each, headed=several)

    def folder(self, folder: Found, headed: bool) -> None:
        if headed:
            typer.echo(f"{chr(10) if self.printed else ''}{folder.url}:")
            self.printed = True
        inside = []
        for each in objects.listing(self.server, folder.bucket, folder.name, "/"):
            self.line(each)
            inside += [each] if each.row is None else []
        for each in inside if self.recursive else []:
            self.folder(each, headed)

    def line(self, found: Found) -> None:
        self.printed = True
        if not self.long:
            typer.echo(found.url)
        elif found.row is None:
            typer.echo(f"{'':33}{found.url}")
        else:
            updated = str(found.row.get("updated", "")).partition(".")[0].rstrip("Z")
            typer.echo(f"{found.size:>11}  {updated}Z  {found.url}")
            self.count, self.bytes = self.count + 1, self.bytes + found.size

    def end(self) -> None:
        if self.long:
            typer.echo(f"TOTAL: {self.count} objects, {self.bytes} bytes ({printing.size(self.bytes)})")


def _bucket(url: str) -> str:
    bucket, name = objects.parse(url)
    if name:
        raise errors.InvalidArgument(f"{url} is an object. Give a bucket alone: gs://{bucket}")
    return bucket


def _objects(server: Client, url: str) -> list[Found]:
    """The objects, not the folders, that a URL matches. Raises NotFound if there are none."""
    bucket, pattern = objects.parse(url)
    every = list(objects.expand(server, bucket, pattern))
    found = [each for each in every if each.row is not None]
    if not found:
        below = f" There are objects below {every[0].url}: give -r, or {every[0].url}**" if every else ""
        raise errors.NotFound(f"No URLs matched: {url}.{below}")
    return found


def _below(server: Client, url: str) -> Iterator[Found]:
    """The objects that a URL matches and everything in the folders that it matches."""
    bucket, pattern = objects.parse(url)
    matched = list(objects.expand(server, bucket, pattern))
    if not matched:
        raise errors.NotFound(f"No URLs matched: {url}")
    for each in matched:
        if each.row is not None:
            yield each
        else:
            yield from objects.listing(server, bucket, each.name)


def _copy(server: Client, copy: copying.Copy, told: transfer.Told) -> None:
    if isinstance(copy.target, Path):
        assert isinstance(copy.source, Found)
        transfer.download(server, copy.source, copy.target, told)
    elif isinstance(copy.source, Path):
        transfer.upload(server, copy.source, *copy.target, told)
    else:
        transfer.rewrite(server, copy.source, *copy.target)
        told(copy.size)


def _remove(server: Client, found: Found) -> None:
    server.delete(objects.path_of(found.bucket, found.name))


def _remove_version(server: Client, found: Found) -> None:
    generation = found.row["generation"] if found.row else ""
    server.delete(objects.path_of(found.bucket, found.name), generation=generation)
