"""What Google's clients find beside the user's code: ways to this server, and the job's own metadata server.

In a jail they are what the names of Google's hosts lead to. Outside they are loopback ports that only this attempt
knows, a CONNECT proxy among them. The metadata server speaks for the attempt's identity alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

from taxiway import metadata, tunnel
from taxiway.plan import Work
from taxiway.replica import holder, jail
from taxiway.replica.jail import Jail
from taxiway.replica.wire import Wire

HOLD_S = 3600.0  # how long a connection is held while the server is away
SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)


@contextmanager
def beside(work: Work, identity: str, wire: Wire) -> Iterator[dict[str, str]]:
    """On ports of this host, while the user's code runs; yields the variables that point Google's clients at them."""

    async def ready(made: tunnel.Tunnel) -> int:
        return await made.start("127.0.0.1", 0, upstream=_tls(wire), hold_s=HOLD_S, other_hosts="tunnel")

    speaker = _speaker(work, identity, wire)
    with tunnel.run_in_thread(ready) as proxy, closing(speaker):
        here = f"127.0.0.1:{speaker.start()}"
        boto = wire.folder / "boto.cfg"
        boto.write_text(jail.boto(wire.order.bundle), encoding="utf-8")
        yield {
            **tunnel.variables(f"http://127.0.0.1:{proxy}", wire.order.bundle),
            **dict.fromkeys(("GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"), here),
            "FSSPEC_GCS_ENDPOINT_URL": wire.order.url,
            "BOTO_CONFIG": str(boto),
            **_named(work),
        }


@contextmanager
def inside(held: Jail, work: Work, identity: str, wire: Wire) -> Iterator[dict[str, str]]:
    """At the ends of a jail's network, where the clients look by themselves; yields the variables that are left."""
    allowed = wire.order.allowed

    async def ready(made: tunnel.Tunnel) -> None:
        await made.lead(held.google, _tls(wire), hold_s=HOLD_S)
        await made.lead(held.plain, _plain(wire), hold_s=HOLD_S)
        await made.start(
            "", 0, upstream=_tls(wire), hold_s=HOLD_S, other_hosts=allowed or "refuse", listening=held.proxy
        )

    speaker = _speaker(work, identity, wire)
    with tunnel.run_in_thread(ready), closing(speaker):
        speaker.start(listening=held.metadata)
        variables = tunnel.variables(proxy_of(held) if allowed else "", jail.BUNDLE)
        own = holder.metadata(held.place)
        apart = dict.fromkeys(("GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"), own) if held.place else {}
        yield {**variables, **apart, **_named(work)}


def proxy_of(held: Jail) -> str:
    """The URL of a jail's proxy, in there."""
    host, port = holder.ends(held.place)[-1]
    return f"http://{host}:{port}"


def _tls(wire: Wire) -> tunnel.Upstream:
    return lambda: ("127.0.0.1", wire.order.tls_port)


def _plain(wire: Wire) -> tunnel.Upstream:
    def upstream() -> tuple[str, int]:
        where = urlsplit(wire.order.url)
        return str(where.hostname), where.port or 80

    return upstream


def _speaker(work: Work, identity: str, wire: Wire) -> metadata.Metadata:
    return metadata.Metadata(work.project, work.project_number, identity, SCOPES, wire.token)


def _named(work: Work) -> dict[str, str]:
    return {
        "GOOGLE_CLOUD_PROJECT": work.project,
        "CLOUDSDK_CORE_PROJECT": work.project,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
