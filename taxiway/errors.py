"""Every error that a caller may see: Google's word and HTTP's number.

    Error
    ├── InvalidArgument        400  the request itself is wrong; `faults` names each field
    ├── FailedPrecondition     400  the request is right, the thing is in the wrong state
    ├── OutOfRange             416  a byte range past the end of an object
    ├── Unauthenticated        401  no token, or one that does not hold
    ├── PermissionDenied       403  a known caller without the grant; the message names the grant
    ├── NotFound               404
    ├── AlreadyExists          409
    ├── Aborted                409  somebody else moved first; read again and retry
    ├── ConditionNotMet        412  an if-generation-match (or the like) that does not
    ├── NotModified            304  the same, for a read
    ├── TooLarge               413
    ├── ResourceExhausted      429  too many at once; retry later
    ├── Cancelled              499
    ├── Internal               500  our own failure; the traceback is in our log
    ├── Unimplemented          501  a method that is known and not offered yet
    ├── Unavailable            503
    ├── DeadlineExceeded       504
    └── StorageFull            507  the disk of the home is full or read-only

`code` and `status` are those of google.rpc.Code (https://cloud.google.com/apis/design/errors); `reason` is the word
that the Cloud Storage JSON API uses for the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence


class Error(Exception):
    """What a caller did not get, in one sentence that says why and what to try."""

    code = 500
    status = "INTERNAL"
    reason = "backendError"


class InvalidArgument(Error):
    """A malformed or unknown value; `faults` holds (field, sentence) pairs when several are found at once."""

    code, status, reason = 400, "INVALID_ARGUMENT", "invalid"

    def __init__(self, message: str = "", faults: Sequence[tuple[str, str]] = ()) -> None:
        self.faults = tuple(faults)
        super().__init__(message or " ".join(f"Field: {field} Error: {fault}" for field, fault in faults))


class FailedPrecondition(Error):
    code, status, reason = 400, "FAILED_PRECONDITION", "failedPrecondition"


class OutOfRange(Error):
    code, status, reason = 416, "OUT_OF_RANGE", "requestedRangeNotSatisfiable"


class Unauthenticated(Error):
    code, status, reason = 401, "UNAUTHENTICATED", "authError"


class PermissionDenied(Error):
    code, status, reason = 403, "PERMISSION_DENIED", "forbidden"


class NotFound(Error):
    code, status, reason = 404, "NOT_FOUND", "notFound"


class AlreadyExists(Error):
    code, status, reason = 409, "ALREADY_EXISTS", "conflict"


class Aborted(Error):
    code, status, reason = 409, "ABORTED", "conflict"


class ConditionNotMet(Error):
    code, status, reason = 412, "FAILED_PRECONDITION", "conditionNotMet"


class NotModified(Error):
    code, status, reason = 304, "FAILED_PRECONDITION", "notModified"


class TooLarge(Error):
    code, status, reason = 413, "INVALID_ARGUMENT", "uploadTooLarge"


class ResourceExhausted(Error):
    code, status, reason = 429, "RESOURCE_EXHAUSTED", "rateLimitExceeded"


class Cancelled(Error):
    code, status, reason = 499, "CANCELLED", "cancelled"


class Internal(Error):
    code, status, reason = 500, "INTERNAL", "backendError"


class Unimplemented(Error):
    code, status, reason = 501, "UNIMPLEMENTED", "notImplemented"


class Unavailable(Error):
    code, status, reason = 503, "UNAVAILABLE", "backendError"


class DeadlineExceeded(Error):
    code, status, reason = 504, "DEADLINE_EXCEEDED", "backendError"


class StorageFull(Error):
    code, status, reason = 507, "RESOURCE_EXHAUSTED", "backendError"
