"""Names: which are allowed, and projects/p/models/m/versions/v and gs://bucket/object taken apart and put together.

A check returns the name it was given; a parser returns its parts; both raise errors.InvalidArgument that names the
field (as the wire spells it), says what is allowed and shows the value. The rules are Google's: names of jobs, models
and versions from "Managing models and jobs", buckets and objects from Cloud Storage's naming pages, project ids from
Resource Manager, labels from "Requirements for labels".
"""

from __future__ import annotations

import difflib
import keyword
import re
from collections.abc import Mapping

from taxiway import errors

_ML_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}")
_PROJECT_ID = re.compile(r"[a-z][a-z0-9-]{4,28}[a-z0-9]")
_PROJECT_NUMBER = re.compile(r"[1-9][0-9]{0,18}")
_STUDY = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,127}")
_OPERATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_IP_ADDRESS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")
_GOOGLE = re.compile(r"g[o0]{2,}g[l1]e")
_RUNTIME = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}")
_PYTHON = re.compile(r"[23]\.[0-9]{1,2}")
_LOCATION = re.compile(
    r"(africa|asia|australia|europe|me|northamerica|southamerica|us)-(north|south|east|west|central)(east|west)?[0-9]{1,2}"
)
REGIONS = (  # where the service trained and served: gcloud's own list, and its endpoint without a place
    "asia-east1",
    "asia-northeast1",
    "asia-southeast1",
    "australia-southeast1",
    "europe-west1",
    "europe-west2",
    "europe-west3",
    "europe-west4",
    "global",
    "northamerica-northeast1",
    "us-central1",
    "us-east1",
    "us-east4",
    "us-west1",
)
_SHOWN = 100  # characters of a bad value that a message repeats


def ml_name(name: str, field: str) -> str:
    """A job, model or version: a letter, then letters, digits and underscores, 128 characters at most."""
    allowed = "start with a letter and have only letters, digits and underscores, 128 characters at most"
    return _matched(_ML_NAME, name, field, f"A name must {allowed}")


def study_id(name: str, field: str) -> str:
    """A study: a letter, then letters, digits, underscores and hyphens, 128 characters at most."""
    allowed = "start with a letter and have only letters, digits, underscores and hyphens, 128 characters at most"
    return _matched(_STUDY, name, field, f"A study's id must {allowed}")


def project_id(name: str, field: str) -> str:
    """6 to 30 lower-case letters, digits and hyphens; begins with a letter, does not end with a hyphen."""
    allowed = "6 to 30 lower-case letters, digits and hyphens, start with a letter and not end with a hyphen"
    return _matched(_PROJECT_ID, name, field, f"A project id must have {allowed}")


def account_id(name: str, field: str) -> str:
    """The part of a service account's address that a person chooses; the rule is that of a project's id."""
    allowed = "6 to 30 lower-case letters, digits and hyphens, start with a letter and not end with a hyphen"
    return _matched(_PROJECT_ID, name, field, f"A service account's id must have {allowed}")


def region(name: str, field: str) -> str:
    """One of REGIONS. Each is this machine; a misspelt one is refused as the service did."""
    if name not in REGIONS:
        near = difflib.get_close_matches(name, REGIONS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise _wrong(field, f"A region must be one of {', '.join(REGIONS)}.{hint}", name)
    return name


def location(name: str, field: str) -> str:
    """A region by Google's pattern: a part of the world, a direction, a number. Buckets have been in more of them."""
    return _matched(_LOCATION, name, field, "A location must be a region such as us-central1 or europe-west4")


def runtime_version(name: str, field: str) -> str:
    """major.minor, such as 2.21; whether this server has it is for its runtimes to say."""
    return _matched(_RUNTIME, name, field, "A runtime version must be major.minor, such as 2.21")


def python_version(name: str, field: str) -> str:
    """major.minor, such as 3.11."""
    return _matched(_PYTHON, name, field, "A Python version must be major.minor, such as 3.11")


def python_module(name: str, field: str) -> str:
    """What `python -m` takes: identifiers joined by dots, such as trainer.task."""
    words = name.split(".")
    if len(name) > 512 or not all(word.isidentifier() and not keyword.iskeyword(word) for word in words):
        hint = " Leave out the ending .py." if words[-1] == "py" else ""
        raise _wrong(field, f"A module must be Python names joined by dots, such as trainer.task.{hint}", name)
    return name


def labels(given: Mapping[str, str], field: str = "labels") -> Mapping[str, str]:
    """64 at most; keys and values of lower-case letters, digits, _ and -, 63 at most; a key starts with a letter.

    Letters of any script count, those without case as well. Every fault is told at once.
    """
    faults = [] if len(given) <= 64 else [(field, f"At most 64 labels are allowed; these are {len(given)}.")]
    for key, value in given.items():
        if not (key and _in_label(key) and key[0].isalpha()):
            allowed = "start with a lower-case letter and have only lower-case letters, digits, _ and -, 63 at most"
            faults.append((field, f"The key of a label must {allowed}; it is {_shown(key)}."))
        if not _in_label(value):
            allowed = "only lower-case letters, digits, _ and -, 63 at most"
            faults.append((f"{field}.{key[:63]}", f"The value of a label must have {allowed}; it is {_shown(value)}."))
    if faults:
        raise errors.InvalidArgument(faults=faults[:64])
    return given


def bucket(name: str, field: str) -> str:
    """A bucket that may be made: well-formed, no IP address, neither `goog...` nor anything like `google` in it."""
    _bucket_form(name, field)
    if name.startswith("goog") or _GOOGLE.search(name):
        raise _wrong(field, "A bucket must not start with goog nor contain google or what looks like it", name)
    return name


def object_name(name: str, field: str) -> str:
    """1 to 1024 bytes of UTF-8 without CR, LF or NUL; not `.` or `..`; not under .well-known/acme-challenge/."""
    if not 1 <= _bytes_in(name, field) <= 1024:
        raise _wrong(field, "An object's name must have 1 to 1024 bytes as UTF-8", name)
    if any(letter in name for letter in "\r\n\0"):
        raise _wrong(field, "An object's name must not contain a line end or NUL", name)
    if name in (".", "..") or name.startswith(".well-known/acme-challenge/"):
        raise _wrong(field, "An object's name must not be . or .. nor start with .well-known/acme-challenge/", name)
    return name


def gs(uri: str, field: str) -> tuple[str, str]:
    """gs://bucket/object -> (bucket, object); the object is "" for a whole bucket, and keeps a slash at its end."""
    scheme, _, path = uri.partition("://")
    if scheme != "gs" or not path:
        raise _wrong(field, "A Cloud Storage address must be gs://BUCKET/OBJECT", uri)
    holder, _, name = path.partition("/")
    _bucket_form(holder, field)
    return holder, object_name(name, field) if name else ""


def join_gs(bucket: str, object: str = "") -> str:
    """(bucket, object) -> gs://bucket/object; gs://bucket without an object."""
    return f"gs://{bucket}/{object}" if object else f"gs://{bucket}"


def project_name(project: str) -> str:
    return f"projects/{project}"


def job_name(project: str, job: str) -> str:
    return f"projects/{project}/jobs/{job}"


def model_name(project: str, model: str) -> str:
    return f"projects/{project}/models/{model}"


def version_name(project: str, model: str, version: str) -> str:
    return f"projects/{project}/models/{model}/versions/{version}"


def operation_name(project: str, operation: str) -> str:
    return f"projects/{project}/operations/{operation}"


def study_name(project: str, location: str, study: str) -> str:
    return f"projects/{project}/locations/{location}/studies/{study}"


def trial_name(project: str, location: str, study: str, trial: int) -> str:
    return f"{study_name(project, location, study)}/trials/{trial}"


def location_operation_name(project: str, location: str, operation: str) -> str:
    return f"projects/{project}/locations/{location}/operations/{operation}"


def parse_project(name: str, field: str = "name") -> str:
    """projects/P -> P, an id or a number."""
    return _parts(name, ("projects",), field)[0]


def parse_job(name: str, field: str = "name") -> tuple[str, str]:
    """projects/P/jobs/J -> (P, J)."""
    project, job = _parts(name, ("projects", "jobs"), field)
    return project, job


def parse_model(name: str, field: str = "name") -> tuple[str, str]:
    """projects/P/models/M -> (P, M)."""
    project, model = _parts(name, ("projects", "models"), field)
    return project, model


def parse_version(name: str, field: str = "name") -> tuple[str, str, str]:
    """projects/P/models/M/versions/V -> (P, M, V)."""
    project, model, version = _parts(name, ("projects", "models", "versions"), field)
    return project, model, version


def parse_model_or_version(name: str, field: str = "name") -> tuple[str, str, str]:
    """What predict takes: a version, or a model, whose version is then "" (the default one answers)."""
    if name.count("/") == 3:
        return *parse_model(name, field), ""
    return parse_version(name, field)


def parse_operation(name: str, field: str = "name") -> tuple[str, str]:
    """projects/P/operations/O -> (P, O)."""
    project, operation = _parts(name, ("projects", "operations"), field)
    return project, operation


def _parts(name: str, collections: tuple[str, ...], field: str) -> list[str]:
    """The words between the collections' names, each checked by its own rule."""
    words = name.split("/")
    if tuple(words[::2]) != collections or len(words) != 2 * len(collections):
        form = "/".join(f"{collection}/{collection[:-1].upper()}" for collection in collections)
        raise _wrong(field, f"A resource's name must be {form}", name)
    for collection, word in zip(collections, words[1::2], strict=True):
        _check(collection, word, field)
    return words[1::2]


def _check(collection: str, word: str, field: str) -> None:
    if collection == "projects":
        if not _PROJECT_NUMBER.fullmatch(word):
            project_id(word, field)
    elif collection == "operations":
        _matched(_OPERATION, word, field, "An operation's name must have only letters, digits, dots, _ and -")
    else:
        ml_name(word, field)


def _bucket_form(name: str, field: str) -> None:
    """What every bucket's name is, also one that we merely read from; with dots it may be longer."""
    allowed = (
        "3 to 63 lower-case letters, digits, hyphens, underscores and dots, and start and end with a letter or digit"
    )
    parts = name.split(".")
    _matched(_BUCKET, name, field, f"A bucket must have {allowed}")
    if any(len(part) > 63 for part in parts):
        raise _wrong(field, f"A bucket must have {allowed} (222 with dots, 63 between two of them)", name)
    if _IP_ADDRESS.fullmatch(name):
        raise _wrong(field, "A bucket must not look like an IP address", name)


def _in_label(text: str) -> bool:
    """Whether a label's key or value keeps to the letters and lengths (63 characters, 128 bytes)."""
    allowed = all(
        letter in "_-" or letter.isdigit() or (letter.isalpha() and letter == letter.lower()) for letter in text
    )
    return len(text) <= 63 and allowed and len(text.encode()) <= 128


def _bytes_in(text: str, field: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise _wrong(field, "A name must be Unicode text without lone surrogates", text) from error


def _matched(pattern: re.Pattern[str], name: str, field: str, rule: str) -> str:
    if pattern.fullmatch(name):
        return name
    raise _wrong(field, rule, name)


def _wrong(field: str, rule: str, value: str) -> errors.InvalidArgument:
    end = "" if rule.endswith(".") else "."
    return errors.InvalidArgument(faults=[(field, f"{rule}{end} It is {_shown(value)}.")])


def _shown(value: str) -> str:
    """The value in quotes, harmless to a terminal, and cut if it is long."""
    cut = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
    return ascii(cut) if not cut.isprintable() else repr(cut)
