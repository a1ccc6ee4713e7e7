"""Roles and the permissions in them: Google's names (IAM pages of AI Platform, Cloud Storage and Resource Manager)."""

from __future__ import annotations


def _of(resource: str, *verbs: str) -> frozenset[str]:
    return frozenset(f"{resource}.{verb}" for verb in verbs)


POLICY = ("getIamPolicy", "setIamPolicy")

OBJECTS_READ = _of("storage.objects", "get", "list")
OBJECTS_ALL = _of("storage.objects", "create", "delete", "get", "list", "restore", "update", *POLICY)
BUCKET_READ = _of("storage.buckets", "get") | _of("storage.objects", "list")
BUCKETS_ALL = _of("storage.buckets", "create", "delete", "get", "list", "update", *POLICY)
STORAGE_ALL = BUCKETS_ALL | OBJECTS_ALL

ML_READ = (
    _of("ml.jobs", "get", "list", "getIamPolicy")
    | _of("ml.locations", "get", "list")
    | _of("ml.models", "get", "list", "getIamPolicy")
    | _of("ml.operations", "get", "list")
    | _of("ml.projects", "getConfig")
    | _of("ml.studies", "get", "list", "getIamPolicy")
    | _of("ml.trials", "get", "list")
    | _of("ml.versions", "get", "list")
)
ML_PREDICT = _of("ml.models", "predict") | _of("ml.versions", "predict")
ML_STUDIES = _of("ml.studies", "create", "delete", "get", "list", *POLICY) | _of(
    "ml.trials", "create", "delete", "get", "list", "update"
)
ML_DEVELOP = (
    ML_READ
    | ML_PREDICT
    | ML_STUDIES
    | _of("ml.jobs", "create")
    | _of("ml.models", "create")
    | _of("ml.versions", "create")
)
ML_ALL = (
    ML_DEVELOP
    | _of("ml.jobs", "cancel", "update", "setIamPolicy")
    | _of("ml.models", "delete", "update", "setIamPolicy")
    | _of("ml.operations", "cancel")
    | _of("ml.versions", "delete", "update")
)
MODEL_USER = ML_PREDICT | _of("ml.models", "get") | _of("ml.versions", "get", "list")
MODEL_OWNER = MODEL_USER | frozenset(each for each in ML_ALL if each.startswith(("ml.models.", "ml.versions.")))
JOB_OWNER = frozenset(each for each in ML_ALL if each.startswith("ml.jobs."))
LOGS_READ = _of("logging.logEntries", "list")
LOGS_READ_ALL = LOGS_READ | _of("logging.privateLogEntries", "list")
PROJECT_READ = _of("resourcemanager.projects", "get", "getIamPolicy")
PROJECT_OWN = _of("resourcemanager.projects", "create", "update", "setIamPolicy")

ACCOUNTS_READ = _of("iam.serviceAccounts", "get", "list")
ACCOUNTS_MAKE = ACCOUNTS_READ | _of("iam.serviceAccounts", "create")
ACCOUNTS_EDIT = ACCOUNTS_MAKE | _of("iam.serviceAccounts", "delete", "disable", "enable", "undelete", "update")
ACCOUNTS_USE = ACCOUNTS_READ | _of("iam.serviceAccounts", "actAs")
ACCOUNTS_ACT = ACCOUNTS_READ | _of("iam.serviceAccounts", "getAccessToken")
KEYS_READ = _of("iam.serviceAccountKeys", "get", "list")
KEYS_ALL = KEYS_READ | _of("iam.serviceAccountKeys", "create", "delete", "disable", "enable")
ACCOUNTS_ALL = ACCOUNTS_EDIT | ACCOUNTS_USE | ACCOUNTS_ACT | KEYS_ALL
USERS_ALL = _of("taxiway.users", "admin")  # of the first project: the users of this server

VIEWER = ML_READ | ML_PREDICT | LOGS_READ | PROJECT_READ | ACCOUNTS_READ | KEYS_READ | _of("storage.buckets", "list")
# No keys and no tokens of accounts: with those of an account that owns the project, an editor would be an owner.
EDITOR = VIEWER | ML_ALL | ACCOUNTS_EDIT | _of("storage.buckets", "create", "delete", "list")
OWNER = EDITOR | LOGS_READ_ALL | PROJECT_OWN | ACCOUNTS_ALL | USERS_ALL

ROLES: dict[str, frozenset[str]] = {
    "roles/viewer": VIEWER,
    "roles/editor": EDITOR,
    "roles/owner": OWNER,
    "roles/ml.admin": ML_ALL,
    "roles/ml.developer": ML_DEVELOP,
    "roles/ml.viewer": ML_READ,
    "roles/ml.modelOwner": MODEL_OWNER,
    "roles/ml.modelUser": MODEL_USER,
    "roles/ml.jobOwner": JOB_OWNER,
    "roles/ml.operationOwner": _of("ml.operations", "get", "list", "cancel"),
    "roles/iam.serviceAccountAdmin": ACCOUNTS_EDIT,
    "roles/iam.serviceAccountCreator": ACCOUNTS_MAKE,
    "roles/iam.serviceAccountKeyAdmin": ACCOUNTS_READ | KEYS_ALL,
    "roles/iam.serviceAccountTokenCreator": ACCOUNTS_ACT,
    "roles/iam.serviceAccountUser": ACCOUNTS_USE,
    "roles/logging.viewer": LOGS_READ,
    "roles/logging.privateLogViewer": LOGS_READ_ALL,
    "roles/storage.admin": STORAGE_ALL,
    "roles/storage.objectAdmin": OBJECTS_ALL,
    "roles/storage.objectCreator": _of("storage.objects", "create"),
    "roles/storage.objectViewer": OBJECTS_READ,
    "roles/storage.objectUser": OBJECTS_READ | _of("storage.objects", "create", "delete", "restore", "update"),
    "roles/storage.legacyBucketReader": BUCKET_READ,
    "roles/storage.legacyBucketWriter": BUCKET_READ | _of("storage.objects", "create", "delete"),
    "roles/storage.legacyBucketOwner": BUCKET_READ
    | _of("storage.buckets", "update", *POLICY)
    | _of("storage.objects", "create", "delete", "restore"),
    "roles/storage.legacyObjectReader": _of("storage.objects", "get"),
    "roles/storage.legacyObjectOwner": _of("storage.objects", "get", "update", *POLICY),
}

# The project's own people, as members of a bucket's policy: who holds which basic role there.
PROJECT_MEMBERS = {
    "roles/owner": "projectOwner",
    "roles/editor": "projectEditor",
    "roles/viewer": "projectViewer",
}

# The smallest role that gives a permission on a bucket, to name in a refusal.
SUGGESTED = {
    "storage.objects.get": "roles/storage.objectViewer",
    "storage.objects.list": "roles/storage.objectViewer",
    "storage.objects.create": "roles/storage.objectAdmin",  # with delete: writers replace what they wrote
    "storage.objects.delete": "roles/storage.objectAdmin",
    "storage.objects.restore": "roles/storage.objectAdmin",
    "storage.objects.update": "roles/storage.objectAdmin",
    "storage.objects.getIamPolicy": "roles/storage.objectAdmin",
    "storage.objects.setIamPolicy": "roles/storage.objectAdmin",
    "storage.buckets.get": "roles/storage.legacyBucketReader",
}


def suggested(permission: str) -> str:
    """The role to grant for a permission: the least that usual work needs."""
    if permission in SUGGESTED:
        return SUGGESTED[permission]
    if permission.startswith("storage."):
        return "roles/storage.admin"
    holders = [role for role, held in ROLES.items() if permission in held]
    return min(holders, key=lambda role: len(ROLES[role]), default="roles/owner")


def covers(role: str, other: str) -> bool:
    """Whether whoever holds `role` needs `other` no more."""
    return ROLES[role] > ROLES[other]
