"""Inside a job it looks like Google Cloud: a CONNECT proxy to the server's TLS port, and the job's own metadata server.

Both listen on loopback ports that only this attempt knows; the metadata server speaks for the attempt's identity alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from taxiway import metadata, tunnel
from taxiway.plan import Work
from taxiway.replica.wire import Wire

HOLD_S = 3600.0  # how long a connection is held while the server is away
SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)


@contextmanager
def relay(work: Work, identity: str, wire: Wire) -> Iterator[dict[str, str]]:
    """Both servers, while the user's code runs; yields the variables that point Google's clients at them."""
    speaker = metadata.Metadata(work.project, work.project_number, identity, SCOPES, wire.token)

    def upstream() -> tuple[str, int]:
        return "127.0.0.1", wire.order.tls_port

    with (
        tunnel.run_in_thread("127.0.0.1", 0, upstream=upstream, hold_s=HOLD_S, other_hosts="tunnel") as proxy,
        closing(speaker),
    ):
        here = f"127.0.0.1:{speaker.start()}"
        yield {
            **tunnel.variables(f"http://127.0.0.1:{proxy}", wire.order.bundle),
            **dict.fromkeys(("GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"), here),
            "GOOGLE_CLOUD_PROJECT": work.project,
            "CLOUDSDK_CORE_PROJECT": work.project,
            "FSSPEC_GCS_ENDPOINT_URL": wire.order.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
