"""The server's own small pages: is it well?"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from taxiway.api.call import ANYONE, Call, Route


def health(call: Call) -> dict[str, Any]:
    """200 while the server can read its rows."""
    with call.house.db.read() as rows:
        rows.execute(sa.text("select 1"))
    return {"status": "ok"}


ROUTES = [Route("GET", "/healthz", ANYONE, health)]
