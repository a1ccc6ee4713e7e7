"""Members: who a caller is, in the words that a policy uses (user:..., serviceAccount:...)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from taxiway.iam import scopes

EMAIL = re.compile(r"[^@\s:]+@[^@\s:]+")
ALL_USERS = "allUsers"
ALL_SIGNED_IN = "allAuthenticatedUsers"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sends a request. `member` is empty for nobody: a request without a token.

    `attempt` is the id of the replica that the token was given to; with `member` empty it is the replica itself, else
    the user's code in it, acting as its service account. `scopes` say what the token may be used for (see scopes.py).
    """

    member: str = ""
    attempt: str = ""
    scopes: str = scopes.ALL

    @property
    def email(self) -> str:
        return self.member.partition(":")[2]

    @property
    def signed_in(self) -> bool:
        return bool(self.member)


NOBODY = Caller()


def of_email(email: str) -> str:
    """The member for an e-mail address, told apart by its domain as Google does.

    >>> of_email("lab@taxiway.iam.gserviceaccount.com")
    'serviceAccount:lab@taxiway.iam.gserviceaccount.com'
    """
    kind = "serviceAccount" if email.endswith(".gserviceaccount.com") else "user"
    return f"{kind}:{email}"
