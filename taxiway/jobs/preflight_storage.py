"""The gs:// addresses of a job before it is queued: what its account may do there, what is there, where they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from taxiway import errors, names
from taxiway.db.database import Database
from taxiway.iam import members, policies
from taxiway.iam.members import Caller
from taxiway.jobs.machines import Note
from taxiway.schemas import TrainingInput
from taxiway.storage import buckets, globs, listings, objects
from taxiway.storage.objects import Object

WRITES = (  # what TensorFlow needs to keep checkpoints, summaries and exports below a folder
    "storage.objects.create",
    "storage.objects.delete",
    "storage.objects.get",
    "storage.objects.list",
    "storage.buckets.get",
)
READS = ("storage.objects.get", "storage.objects.list")
WILD = frozenset("*?[")
LOOKED_AT = 50  # addresses among the arguments; more are left to the job


def packages(db: Database, identity: str, told: TrainingInput) -> list[Object]:
    """The packages, once it is sure that the account may read each, and write the job's folder.

    Raises PermissionDenied with every grant that mends it, NotFound for a bucket or a package that is not there.
    """
    account = Caller(members.of_email(identity))
    needed: dict[str, set[str]] = {}  # bucket -> permissions
    places = [names.gs(uri, "trainingInput.packageUris") for uri in told.package_uris]
    for bucket, name in places:
        if not policies.allowed(db, account, "storage.objects.get", bucket=bucket, within=policies.object_of(name)):
            needed.setdefault(bucket, set()).add("storage.objects.get")
    if told.job_dir:
        bucket = names.gs(told.job_dir, "trainingInput.jobDir")[0]
        needed.setdefault(bucket, set()).update(_writes(db, bucket))
    refused = [_refusal(db, account, bucket, permissions) for bucket, permissions in needed.items()]
    if any(refused):
        raise errors.PermissionDenied("\n".join(filter(None, refused)))
    return [objects.get(db, bucket, name) for bucket, name in places]


def addresses(args: Sequence[str]) -> list[str]:
    """The gs:// addresses among arguments: alone, behind a --flag=, or in a row with commas between."""
    values = (word.partition("=")[2] if word.startswith("-") else word for word in args)
    found = (each for value in values if "gs://" in value for each in value.split(",") if each.startswith("gs://"))
    return list(dict.fromkeys(found))


def notes(db: Database, identity: str, told: TrainingInput) -> Iterator[Note]:
    """What is likely to go wrong with the addresses of a job."""
    given = addresses(told.args)
    account = Caller(members.of_email(identity))
    said: set[str] = set()
    for address in given[:LOOKED_AT]:
        for sentence in _wrong(db, account, address):
            if sentence not in said:
                said.add(sentence)
                yield "WARNING", sentence
    for bucket in _holders([*told.package_uris, told.job_dir, *given[:LOOKED_AT]]):
        with suppress(errors.NotFound):
            yield from _far(bucket, buckets.get(db, bucket).location, told.region)


def _holders(given: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for address in filter(None, given):
        with suppress(errors.InvalidArgument):
            found[names.gs(address, "args")[0]] = None
    return list(found)


def _wrong(db: Database, account: Caller, address: str) -> Iterator[str]:
    """What stands in the way of reading, or of writing, at an address among the arguments."""
    try:
        bucket, name = names.gs(address, "args")
        uniform = buckets.get(db, bucket).uniform
    except errors.InvalidArgument as error:
        yield f"Among the arguments: {error.faults[0][1]}"
        return
    except errors.NotFound as error:
        yield f"Among the arguments, {address}: {error}"
        return
    if WILD.intersection(name):
        if refused := _refusal(db, account, bucket, set(READS)):
            yield f"The arguments name {address}, and {refused}"
        elif _matches_nothing(db, bucket, name):
            yield f"Nothing in gs://{bucket} matches {address}. See what is there: taxiway storage ls gs://{bucket}"
        return
    exact = _is_object(db, bucket, name)
    if exact and policies.allowed(db, account, READS[0], bucket=bucket, within=policies.object_of(name)):
        return
    there = exact or (not name or bool(listings.page(db, bucket, prefix=f"{name.rstrip('/')}/", limit=1).items))
    needed = {READS[0]} if exact else set(READS) if there else _writes_to(uniform)
    if refused := _refusal(db, account, bucket, needed):
        yield f"The arguments name {address}, and {refused}"


def _is_object(db: Database, bucket: str, name: str) -> bool:
    if not name or name.endswith("/"):
        return False
    try:
        objects.get(db, bucket, name)
    except errors.NotFound:
        return False
    return True


def _matches_nothing(db: Database, bucket: str, pattern: str) -> bool:
    """Whether no object and no folder is matched; False where to know it would take long."""
    for each in (pattern, f"{pattern.rstrip('/')}/**"):
        try:
            page = listings.page(db, bucket, glob=globs.glob(each), limit=1)
        except errors.InvalidArgument:  # no pattern to us; it may be one to the trainer
            return False
        if page.items or page.following:
            return False
    return True


def _far(bucket: str, location: str, region: str) -> Iterator[Note]:
    """A bucket elsewhere: the service warned, for it was slow and its traffic cost; here all is one machine."""
    if region == "global":
        return
    place = location.lower()
    near = {"us": "us-", "eu": "europe-", "asia": "asia-", "nam4": "us-", "asia1": "asia-northeast"}.get(place)
    if place.startswith("eur") and place[3:].isdigit():
        near = "europe-"
    if place != region and not (near and region.startswith(near)):
        yield (
            "WARNING",
            f"gs://{bucket} is in {location} and the job's region is {region}: on Google Cloud that is slow and costs.",
        )


def _writes(db: Database, bucket: str) -> set[str]:
    return _writes_to(buckets.get(db, bucket).uniform)


def _writes_to(uniform: bool) -> set[str]:
    """Without uniform access a trainer may read what it writes: it owns it."""
    return set(WRITES) - (set() if uniform else {"storage.objects.get"})


def _refusal(db: Database, who: Caller, bucket: str, permissions: set[str]) -> str:
    """Why somebody may not; "" if they may. Raises NotFound for a bucket that is not there."""
    try:
        policies.need(db, who, *sorted(permissions), bucket=bucket)
    except errors.PermissionDenied as error:
        return str(error)
    return ""
