"""What storage, identity and studies need: access control lists, noncurrent objects, users, refresh tokens, the audit
log; studies, their trials and measurements.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("row", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("time", sa.Float(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("log", sa.Text(), nullable=False),
        sa.Column("member", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("permission", sa.Text(), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("allowed", sa.Boolean(), nullable=False),
        sa.Column("code", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("row", name=op.f("pk_audit")),
    )
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.create_index("ix_audit_project", ["project", "time", "row"], unique=False)

    op.create_table(
        "refresh_tokens",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("member", sa.Text(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("used", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refresh_tokens")),
    )
    op.create_table(
        "users",
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("password", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("disabled", sa.Boolean(), server_default=sa.text("0"), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("email", name=op.f("pk_users")),
    )
    op.create_table(
        "noncurrent",
        sa.Column("bucket", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("generation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("metageneration", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("crc32c", sa.Text(), nullable=False),
        sa.Column("md5", sa.Text(), nullable=True),
        sa.Column("components", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("content_encoding", sa.Text(), nullable=True),
        sa.Column("content_disposition", sa.Text(), nullable=True),
        sa.Column("content_language", sa.Text(), nullable=True),
        sa.Column("cache_control", sa.Text(), nullable=True),
        sa.Column("custom", sa.JSON(), nullable=False),
        sa.Column("storage_class", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("blob", sa.Text(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("updated", sa.Float(), nullable=False),
        sa.Column("acl", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("deleted", sa.Float(), nullable=False),
        sa.Column("kept_until", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["blob"], ["blobs.id"], name=op.f("fk_noncurrent_blob")),
        sa.ForeignKeyConstraint(["bucket"], ["buckets.name"], name=op.f("fk_noncurrent_bucket")),
        sa.PrimaryKeyConstraint("bucket", "name", "generation", name=op.f("pk_noncurrent")),
    )
    with op.batch_alter_table("noncurrent", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_noncurrent_blob"), ["blob"], unique=False)
        batch_op.create_index("ix_noncurrent_kept_until", ["kept_until"], unique=False)

    op.create_table(
        "logbooks",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("lines", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("oldest", sa.Text(), nullable=False),
        sa.Column("newest", sa.Text(), nullable=False),
        sa.Column("cut", sa.Boolean(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("project", "subject", name=op.f("pk_logbooks")),
    )
    op.execute(
        "INSERT INTO logbooks (project, subject, lines, bytes, oldest, newest) SELECT project, subject, count(*), "
        "sum(length(message) + 400), min(timestamp), max(timestamp) FROM logs GROUP BY project, subject"
    )
    op.create_table(
        "samples",
        sa.Column("row", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.Float(), nullable=False),
        sa.Column("span", sa.Float(), nullable=False),
        sa.Column("cpu", sa.Float(), nullable=False),
        sa.Column("memory", sa.BigInteger(), nullable=False),
        sa.Column("processes", sa.BigInteger(), nullable=False),
        sa.Column("read", sa.BigInteger(), nullable=False),
        sa.Column("written", sa.BigInteger(), nullable=False),
        sa.Column("gpu", sa.Float(), nullable=True),
        sa.Column("gpu_memory", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("row", name=op.f("pk_samples")),
        sa.UniqueConstraint(
            "project",
            "kind",
            "subject",
            "task",
            "number",
            "time",
            name=op.f("uq_samples_project_kind_subject_task_number_time"),
        ),
    )
    op.create_table(
        "studies",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("made", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name=op.f("fk_studies_project")),
        sa.PrimaryKeyConstraint("project", "location", "id", name=op.f("pk_studies")),
    )
    op.create_table(
        "study_operations",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("trial", sa.BigInteger(), nullable=True),
        sa.Column("client", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("done", sa.Boolean(), nullable=False),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("response", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("ended", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["project", "location", "study"],
            ["studies.project", "studies.location", "studies.id"],
            name="fk_study_operations_study",
        ),
        sa.PrimaryKeyConstraint("project", "location", "id", name=op.f("pk_study_operations")),
    )
    with op.batch_alter_table("study_operations", schema=None) as batch_op:
        batch_op.create_index("ix_study_operations_done", ["done", "created"], unique=False)
        batch_op.create_index("ix_study_operations_study", ["project", "location", "study"], unique=False)

    op.create_table(
        "trials",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("client", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("final", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("infeasible", sa.Boolean(), server_default=sa.text("0"), nullable=False),
        sa.Column("infeasible_reason", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("started", sa.Float(), nullable=True),
        sa.Column("ended", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["project", "location", "study"],
            ["studies.project", "studies.location", "studies.id"],
            name="fk_trials_study",
        ),
        sa.PrimaryKeyConstraint("project", "location", "study", "number", name=op.f("pk_trials")),
    )
    op.create_table(
        "measurements",
        sa.Column("row", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("trial", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("elapsed", sa.Float(), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project", "location", "study", "trial"],
            ["trials.project", "trials.location", "trials.study", "trials.number"],
            name="fk_measurements_trial",
        ),
        sa.PrimaryKeyConstraint("row", name=op.f("pk_measurements")),
    )
    with op.batch_alter_table("measurements", schema=None) as batch_op:
        batch_op.create_index("ix_measurements_trial", ["project", "location", "study", "trial"], unique=False)

    with op.batch_alter_table("logs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("trial", sa.Text(), server_default=sa.text("''"), nullable=False))

    with op.batch_alter_table("buckets", schema=None) as batch_op:
        batch_op.add_column(sa.Column("uniform", sa.Boolean(), server_default=sa.text("0"), nullable=False))
        batch_op.add_column(sa.Column("default_acl", sa.JSON(none_as_null=True), nullable=True))
        batch_op.add_column(sa.Column("versioning", sa.Boolean(), server_default=sa.text("0"), nullable=False))
        batch_op.add_column(sa.Column("soft_delete", sa.BigInteger(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("lifecycle", sa.JSON(none_as_null=True), nullable=True))
        batch_op.add_column(sa.Column("extra", sa.JSON(), server_default="{}", nullable=False))

    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("priority", sa.BigInteger(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("wait_until", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("queued", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("accelerator", sa.Text(), server_default=sa.text("''"), nullable=False))
        batch_op.add_column(sa.Column("accelerators", sa.BigInteger(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("gpus", sa.JSON(none_as_null=True), nullable=True))
        batch_op.add_column(sa.Column("policy", sa.JSON(), server_default='{"bindings":[]}', nullable=False))
        batch_op.add_column(sa.Column("policy_version", sa.BigInteger(), server_default="1", nullable=False))
        batch_op.drop_index("ix_jobs_state")
        batch_op.create_index("ix_jobs_queue", ["state", "priority", "project", "position"], unique=False)
        batch_op.create_index("ix_jobs_project", ["project", "state", "position"], unique=False)
        batch_op.create_index("ix_jobs_list", ["project", "position"], unique=False)

    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("trial", sa.Text(), server_default=sa.text("''"), nullable=False))
        batch_op.add_column(sa.Column("gang", sa.Text(), server_default=sa.text("''"), nullable=False))
        batch_op.add_column(sa.Column("restart", sa.BigInteger(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("retry", sa.BigInteger(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("pause", sa.Float(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("reason", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("ran", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("spoke", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("remains", sa.JSON(none_as_null=True), nullable=True))
        batch_op.create_index("ix_attempts_state", ["state", "project", "subject"], unique=False)

    with op.batch_alter_table("models", schema=None) as batch_op:
        batch_op.add_column(sa.Column("policy", sa.JSON(), server_default='{"bindings":[]}', nullable=False))
        batch_op.add_column(sa.Column("policy_version", sa.BigInteger(), server_default="1", nullable=False))

    with op.batch_alter_table("operations", schema=None) as batch_op:
        batch_op.add_column(sa.Column("policy", sa.JSON(), server_default='{"bindings":[]}', nullable=False))
        batch_op.add_column(sa.Column("policy_version", sa.BigInteger(), server_default="1", nullable=False))

    with op.batch_alter_table("objects", schema=None) as batch_op:
        batch_op.add_column(sa.Column("acl", sa.JSON(none_as_null=True), nullable=True))

    with op.batch_alter_table("service_account_keys", schema=None) as batch_op:
        batch_op.add_column(sa.Column("disabled", sa.Boolean(), server_default=sa.text("0"), nullable=False))

    with op.batch_alter_table("service_accounts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("description", sa.Text(), server_default=sa.text("''"), nullable=False))
        batch_op.add_column(sa.Column("disabled", sa.Boolean(), server_default=sa.text("0"), nullable=False))
        batch_op.add_column(sa.Column("deleted", sa.Float(), nullable=True))
