"""Every table, drawn once. The SQL that uses a table stands in the room that owns it.

Times are float seconds since 1970 (UTC). JSON columns hold what the wire holds (lowerCamel).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)


def _text(name: str, **rest: object) -> sa.Column[str]:
    return sa.Column(name, sa.Text, **{"nullable": False, **rest})  # type: ignore[arg-type]


def _time(name: str, *, nullable: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Float, nullable=nullable)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false())


def _json(name: str) -> sa.Column[Any]:
    """JSON that may be missing: NULL, and not JSON's own null."""
    return sa.Column(name, sa.JSON(none_as_null=True))


def _policy() -> list[sa.Column[Any]]:
    return [
        sa.Column("policy", sa.JSON, nullable=False, server_default='{"bindings":[]}'),
        sa.Column("policy_version", sa.BigInteger, nullable=False, server_default="1"),
    ]


def _whole(name: str, **rest: object) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, **{"nullable": False, **rest})  # type: ignore[arg-type]


# --- iam: the who ---

projects = sa.Table(
    "projects",
    metadata,
    _text("id", primary_key=True),
    _whole("number", unique=True),
    _text("name"),
    sa.Column("policy", sa.JSON, nullable=False),  # {"bindings": [{"role", "members"}]}
    _whole("policy_version"),  # the etag: grows by one with every change
    _time("created"),
)

service_accounts = sa.Table(
    "service_accounts",
    metadata,
    _text("email", primary_key=True),
    sa.Column("project", sa.Text, sa.ForeignKey("projects.id"), nullable=False, index=True),
    _text("unique_id"),
    _text("display_name"),
    _text("description", server_default=sa.text("''")),
    _flag("disabled"),
    _time("created"),
    _time("deleted", nullable=True),  # the row stays: its grants do, and nobody else may be given its name
)

service_account_keys = sa.Table(
    "service_account_keys",
    metadata,
    _text("id", primary_key=True),
    sa.Column("email", sa.Text, sa.ForeignKey("service_accounts.email"), nullable=False, index=True),
    _text("public_key"),  # PEM; the private half was handed out once and is not kept
    _flag("disabled"),
    _time("created"),
)

users = sa.Table(
    "users",
    metadata,
    _text("email", primary_key=True),
    _text("password"),  # argon2id, as argon2-cffi writes it
    _text("display_name", server_default=sa.text("''")),
    _flag("disabled"),
    _time("created"),
)

refresh_tokens = sa.Table(
    "refresh_tokens",
    metadata,
    _text("id", primary_key=True),  # SHA-256 of the token, in hex: the token itself is not kept
    _text("member"),
    _text("scopes"),  # joined by spaces, as OAuth writes them
    _time("created"),
    _time("used", nullable=True),
)

audit = sa.Table(  # written only, never changed
    "audit",
    metadata,
    sa.Column("row", sa.Integer, primary_key=True, autoincrement=True),
    _time("time"),  # of the answer, to the microsecond
    _text("project"),
    _text("log"),  # activity | data_access
    _text("member"),  # empty: nobody
    _text("address"),  # where the request came from
    _text("permission"),
    _text("resource"),  # projects/_/buckets/B/objects/O, projects/P/models/M ...
    _text("method"),  # ml.projects.models.create, storage.objects.delete; POST /token where no permission names it
    sa.Column("allowed", sa.Boolean, nullable=False),
    _whole("code"),  # of the answer
    sa.Index("ix_audit_project", "project", "time", "row"),
)

# --- storage: the bytes ---

buckets = sa.Table(
    "buckets",
    metadata,
    _text("name", primary_key=True),
    sa.Column("project", sa.Text, sa.ForeignKey("projects.id"), nullable=False, index=True),
    _text("location"),  # as Google writes it: upper case
    _text("location_type"),  # region | dual-region | multi-region
    _text("storage_class"),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("policy", sa.JSON, nullable=False),  # {"bindings": [{"role", "members"}]}
    _whole("policy_version"),
    _whole("metageneration"),
    _time("created"),
    _time("updated"),
    _flag("uniform"),  # uniform bucket-level access: access control lists say nothing here
    _json("default_acl"),  # of new objects, [[entity, role]]; null: projectPrivate
    _flag("versioning"),
    _whole("soft_delete", server_default="0"),  # seconds that a deleted object may be restored for; 0: it is gone
    _json("lifecycle"),  # {"rule": [...]}
    sa.Column(
        "extra", sa.JSON, nullable=False, server_default="{}"
    ),  # what else is kept: cors ..., publicAccessPrevention, and until when uniform access can be turned off
)

blobs = sa.Table(
    "blobs",
    metadata,
    _text("id", primary_key=True),
    _whole("size"),
    sa.Column("data", sa.LargeBinary),  # the bytes of a small blob; null: they are in the blobs folder under `id`
)


def _object() -> list[sa.Column[Any]]:
    """The columns of an object beside its key, the same for a live and for a noncurrent one."""
    return [
        _whole("metageneration"),
        _whole("size"),
        _text("crc32c"),  # base64, big-endian, as on the wire
        sa.Column("md5", sa.Text),  # base64; null for a composed object, as on the wire
        _whole("components", server_default="0"),  # how many parts a composed object was made of; 0: not composed
        _text("content_type"),
        sa.Column("content_encoding", sa.Text),
        sa.Column("content_disposition", sa.Text),
        sa.Column("content_language", sa.Text),
        sa.Column("cache_control", sa.Text),
        sa.Column("custom", sa.JSON, nullable=False),  # the user's own metadata: str -> str
        _text("storage_class"),
        _text("owner"),  # the member who wrote it
        sa.Column("blob", sa.Text, sa.ForeignKey("blobs.id"), nullable=False, index=True),
        _time("created"),
        _time("updated"),
        _json("acl"),  # [[entity, role]] beside the owner; null: projectPrivate
    ]


objects = sa.Table(
    "objects",
    metadata,
    sa.Column("bucket", sa.Text, sa.ForeignKey("buckets.name"), primary_key=True),
    _text("name", primary_key=True),
    _whole("generation"),
    *_object(),
)

noncurrent = sa.Table(  # generations that were replaced or deleted, and are kept
    "noncurrent",
    metadata,
    sa.Column("bucket", sa.Text, sa.ForeignKey("buckets.name"), primary_key=True),
    _text("name", primary_key=True),
    _whole("generation", primary_key=True, autoincrement=False),
    *_object(),
    _time("deleted"),  # when it became what it is: noncurrent, or soft-deleted
    _time("kept_until", nullable=True),  # a soft-deleted one can be restored until then; null: kept by versioning
    sa.Index("ix_noncurrent_kept_until", "kept_until"),
)

uploads = sa.Table(
    "uploads",
    metadata,
    _text("id", primary_key=True),  # unguessable: holding it is the right to go on
    sa.Column("bucket", sa.Text, sa.ForeignKey("buckets.name", ondelete="CASCADE"), nullable=False),
    _text("name"),
    _text("owner"),
    sa.Column("size", sa.BigInteger),  # the announced total; null while unknown
    _whole("received", server_default="0"),  # bytes that are durable: the file may hold more, which a crash cut off
    sa.Column("intent", sa.JSON, nullable=False),  # the object's metadata and preconditions, as they were asked for
    sa.Column("result", sa.JSON),  # the object's resource once finished: a repeated last request gets it again
    _time("created"),
)

# --- jobs: the work ---

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("project", sa.Text, sa.ForeignKey("projects.id"), primary_key=True),
    _text("id", primary_key=True),
    _whole("position", index=True),  # order of arrival: oldest first out of the queue
    _whole("priority", server_default="0"),  # before that: the higher first
    _time("wait_until", nullable=True),  # a job that has not run by then is cancelled; null: it may wait for ever
    _text("state"),
    sa.Column("error", sa.Text),
    sa.Column("training", sa.JSON, nullable=False),  # TrainingInput
    sa.Column("labels", sa.JSON, nullable=False),
    _whole("etag"),  # grows by one with every change
    _text("creator"),
    _whole("attempts"),
    sa.Column("worker", sa.Text),  # who holds the lease
    _time("lease", nullable=True),  # until when
    _text("accelerator", server_default=sa.text("''")),  # what kind of GPU it waits for, or had; empty: none
    _whole("accelerators", server_default="0"),  # how many of them it asked for
    _json("gpus"),  # those of the host's that were given to it; while it is held, they are its alone
    _time("created"),
    _time("queued", nullable=True),  # when it was checked and kept: what lies before was its validation
    _time("started", nullable=True),
    _time("ended", nullable=True),
    *_policy(),
    sa.Index("ix_jobs_queue", "state", "priority", "project", "position"),  # whose turn it is
    sa.Index("ix_jobs_project", "project", "state", "position"),  # how long a project's last jobs took
    sa.Index("ix_jobs_list", "project", "position"),  # the newest of a project, page by page
)

attempts = sa.Table(
    "attempts",
    metadata,
    _text("id", primary_key=True),
    sa.Column("project", sa.Text, sa.ForeignKey("projects.id"), nullable=False),
    _text("kind"),  # job | version
    _text("subject"),  # the job's id, or model/version
    _text("task"),  # master-replica-0
    _text("trial", server_default=sa.text("''")),  # of a job that tunes: 1, 2, ...
    _text("gang", server_default=sa.text("''")),  # which try of a job of several replicas it belongs to
    _whole("number"),  # 1, 2, ... of this subject's task
    _whole("restart", server_default="0"),  # how often its replica was started again within this try of the job
    _whole("retry", server_default="0"),  # how often the whole job was tried again before it
    sa.Column("pause", sa.Float, nullable=False, server_default="0"),  # seconds between its commit and its start
    _text("state"),  # STARTED -> PREPARING -> RUNNING -> ENDED; FENCED: superseded, its word is refused
    sa.Column("identity", sa.Text, nullable=False),  # the service account that the user's code acts as
    sa.Column("work", sa.JSON, nullable=False),  # what the replica is to do: see plan.Work
    _text("handle", server_default=sa.text("''")),  # the engine's own word for the running replica
    sa.Column("exit_code", sa.Integer),
    sa.Column("error", sa.Text),
    sa.Column("reason", sa.Text),  # why it ended, in a word: Completed, Error, Signal, OOM, Disk, Lost
    _time("created"),
    _time("ran", nullable=True),  # when its environment was there and the user's code began
    _time("spoke", nullable=True),  # when the user's code said its first line
    _time("heard", nullable=True),  # the last heartbeat
    _time("ended", nullable=True),
    _json("remains"),  # what was looked for after its end, and found: {"time": 1.5, "found": {"processes": 0}}
    sa.Index("ix_attempts_subject", "project", "kind", "subject"),
    sa.Index("ix_attempts_state", "state", "project", "subject"),  # of what one lives
)

studies = sa.Table(
    "studies",
    metadata,
    sa.Column("project", sa.Text, sa.ForeignKey("projects.id"), primary_key=True),
    _text("location", primary_key=True),
    _text("id", primary_key=True),
    sa.Column("config", sa.JSON, nullable=False),  # StudyConfig
    _whole("seed"),  # with a trial's number: all the chance that its point has
    _text("state"),  # ACTIVE -> COMPLETED: nothing is left to try
    _whole("made", server_default="0"),  # trials that there ever were: the number of the last
    _time("created"),
)

trials = sa.Table(
    "trials",
    metadata,
    _text("project", primary_key=True),
    _text("location", primary_key=True),
    _text("study", primary_key=True),
    _whole("number", primary_key=True, autoincrement=False),
    _text("state"),  # REQUESTED -> ACTIVE -> STOPPING -> COMPLETED; some may be left out
    sa.Column("parameters", sa.JSON, nullable=False),  # a list of Trial's parameters
    _text("client", server_default=sa.text("''")),
    _json("final"),  # Measurement
    _flag("infeasible"),
    _text("infeasible_reason", server_default=sa.text("''")),
    _time("created"),
    _time("started", nullable=True),
    _time("ended", nullable=True),
    sa.ForeignKeyConstraint(
        ["project", "location", "study"], ["studies.project", "studies.location", "studies.id"], name="fk_trials_study"
    ),
)

measurements = sa.Table(
    "measurements",
    metadata,
    sa.Column("row", sa.Integer, primary_key=True, autoincrement=True),
    _text("project"),
    _text("location"),
    _text("study"),
    _whole("trial"),
    sa.Column("step", sa.BigInteger),
    _time("elapsed"),  # seconds since the trial's start
    sa.Column("figures", sa.JSON, nullable=False),  # by their metrics' names
    sa.ForeignKeyConstraint(
        ["project", "location", "study", "trial"],
        ["trials.project", "trials.location", "trials.study", "trials.number"],
        name="fk_measurements_trial",
    ),
    sa.Index("ix_measurements_trial", "project", "location", "study", "trial"),
)

study_operations = sa.Table(  # requests for trials, and questions whether to end one
    "study_operations",
    metadata,
    _text("project", primary_key=True),
    _text("location", primary_key=True),
    _text("id", primary_key=True),
    _text("kind"),  # SUGGEST_TRIALS | CHECK_TRIAL_EARLY_STOPPING_STATE
    _text("study"),
    sa.Column("trial", sa.BigInteger),  # of a question
    _text("client", server_default=sa.text("''")),
    _whole("count", server_default="0"),  # how many trials were asked for
    sa.Column("done", sa.Boolean, nullable=False),
    _json("error"),  # google.rpc.Status
    _json("response"),
    _time("created"),
    _time("ended", nullable=True),
    sa.ForeignKeyConstraint(
        ["project", "location", "study"],
        ["studies.project", "studies.location", "studies.id"],
        name="fk_study_operations_study",
    ),
    sa.Index("ix_study_operations_done", "done", "created"),
    sa.Index("ix_study_operations_study", "project", "location", "study"),
)

logs = sa.Table(
    "logs",
    metadata,
    sa.Column("row", sa.Integer, primary_key=True, autoincrement=True),
    _text("project"),
    _text("subject"),  # the job's id, or model/version
    _text("insert_id"),
    _text("timestamp"),  # RFC 3339 with nine digits: clients compare it as text
    _text("severity"),
    _text("task"),
    _text("message"),
    _time("created"),  # when the line was written, where it was written
    _text("trial", server_default=sa.text("''")),  # of a job that tunes
    sa.UniqueConstraint("project", "subject", "insert_id"),
    sa.Index("ix_logs_read", "project", "subject", "timestamp", "insert_id"),
    sa.Index("ix_logs_timestamp", "timestamp", "insert_id"),
)

logbooks = sa.Table(  # what `logs` holds of one job or version, so that nobody has to count it
    "logbooks",
    metadata,
    _text("project", primary_key=True),
    _text("subject", primary_key=True),
    _whole("lines"),
    _whole("bytes"),  # about what the lines take on the disk
    _text("oldest"),  # the stamp of the first line that is there
    _text("newest"),  # of the last that was ever there
    _flag("cut"),  # whether its own log said that its oldest lines were removed
)

samples = sa.Table(  # what replicas used, every few seconds; older ones are joined, two into one
    "samples",
    metadata,
    sa.Column("row", sa.Integer, primary_key=True, autoincrement=True),
    _text("project"),
    _text("kind"),  # job | version
    _text("subject"),
    _text("task"),
    _whole("number"),  # of the attempt
    _time("time"),  # the end of what it tells of
    _time("span"),  # seconds
    _time("cpu"),  # seconds of all cores together, within the span
    _whole("memory"),  # bytes, the most within the span
    _whole("processes"),
    _whole("read"),  # bytes, within the span
    _whole("written"),
    sa.Column("gpu", sa.Float),  # of all GPUs of the host, 0 to 1 each; null: it has none
    sa.Column("gpu_memory", sa.BigInteger),  # bytes
    sa.UniqueConstraint("project", "kind", "subject", "task", "number", "time"),
)

# --- models: the result ---

models = sa.Table(
    "models",
    metadata,
    sa.Column("project", sa.Text, sa.ForeignKey("projects.id"), primary_key=True),
    _text("name", primary_key=True),
    sa.Column("resource", sa.JSON, nullable=False),  # Model's fields that the caller sets
    sa.Column("default_version", sa.Text),
    _whole("etag"),
    _time("created"),
    *_policy(),
)

versions = sa.Table(
    "versions",
    metadata,
    _text("project", primary_key=True),
    _text("model", primary_key=True),
    _text("name", primary_key=True),
    sa.Column("resource", sa.JSON, nullable=False),  # Version's fields that the caller sets
    _text("state"),
    sa.Column("error", sa.Text),
    _text("folder"),  # where its copied bytes are, a name below the home's models folder
    sa.Column("runtime", sa.JSON, nullable=False),  # what was chosen: version, python
    _whole("etag"),
    _time("created"),
    _time("last_use", nullable=True),
    sa.ForeignKeyConstraint(["project", "model"], ["models.project", "models.name"]),
)

operations = sa.Table(
    "operations",
    metadata,
    sa.Column("project", sa.Text, sa.ForeignKey("projects.id"), primary_key=True),
    _text("id", primary_key=True),
    _text("kind"),  # CREATE_VERSION | DELETE_VERSION | DELETE_MODEL ...
    _text("model"),
    sa.Column("version", sa.Text),
    sa.Column("done", sa.Boolean, nullable=False),
    sa.Column("cancelled", sa.Boolean, nullable=False),
    sa.Column("error", sa.JSON),  # google.rpc.Status
    sa.Column("response", sa.JSON),
    _time("created"),
    _time("started", nullable=True),
    _time("ended", nullable=True),
    *_policy(),
)
