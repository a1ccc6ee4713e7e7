"""Storage beside its emulators, nginx and the plain disk: large bodies by curl, small ones at c=16, listings.

    .venv/bin/python benchmarks/storage.py [--part peers listing] [--mib 1024] [--seconds 5] [--names 10000 ...]

One server after another on the same disk (a fresh folder in --folder), in one run; ratios of one run are the only
figures to compare. The small requests are sent by wrk, which the machine must have (Debian: apt install wrk). nginx and
the emulators are left out where they cannot be had, and that is said.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import peers
from peers import BUCKET, MIB, Peer, Request
from rich.console import Console
from rich.table import Table

SMALL = 4096
CONNECTIONS = 16
READ_BACK = 500  # small objects that are read again, one after another
TARGETS = ("450", "2,000", "< 64", "5,000", "9,000", "0")

# wrk's: each request has a name of its own, or one of those that were written before.
PUT = """
local body, n = string.rep("x", {size}), 0
function request()
  n = n + 1
  return wrk.format("{method}", string.gsub("{path}", "NAME", tostring(n)), {headers}, body)
end
"""
GET = """
local n = 0
function request()
  n = n % {names} + 1
  local name = tostring(n + 1)  -- wrk asked for the first one, and did not send it
  return wrk.format("{method}", string.gsub("{path}", "NAME", name), {headers})
end
"""


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--part", nargs="+", choices=["peers", "listing"], default=["peers", "listing"])
    given.add_argument("--mib", type=int, default=1024, help="size of the large object")
    given.add_argument("--seconds", type=int, default=5, help="how long small requests are sent")
    given.add_argument("--names", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="names to list")
    given.add_argument("--folder", type=Path, default=Path.cwd(), help="a folder on the disk to measure")
    options = given.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("wrk sends the small requests: install it first (Debian: apt install wrk)")
    folder = Path(tempfile.mkdtemp(prefix="storage-benchmark-", dir=options.folder))
    try:
        if "peers" in options.part:
            side_by_side(folder, options.mib, options.seconds)
        if "listing" in options.part:
            listings(folder, options.names)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def say(what: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


# ---- side by side ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Rates of one server: MB/s, requests/s, bytes, and how many requests failed."""

    up: float
    down: float
    growth: int
    puts: float
    gets: float
    failed: int

    def cells(self) -> list[str]:
        return [
            f"{self.up:,.0f}",
            f"{self.down:,.0f}",
            f"{self.growth / MIB:,.0f}",
            f"{self.puts:,.0f}",
            f"{self.gets:,.0f}",
            f"{self.failed:,}",
        ]


def side_by_side(folder: Path, mib: int, seconds: int) -> None:
    source = folder / "source"
    with source.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
    opened: list[Callable[[Path], AbstractContextManager[Peer]]] = [peers.taxiway]
    left_out = []
    if reason := peers.missing_emulators():
        left_out.append(reason)
    else:
        opened += [partial(peers.emulator, memory=False), partial(peers.emulator, memory=True), peers.moto]
    if reason := peers.missing_nginx():
        left_out.append(reason)
    else:
        opened.append(peers.nginx)
    table = Table(title=f"{mib} MiB by curl; {SMALL // 1024} KiB by wrk, c={CONNECTIONS}, {seconds} s")
    for head in ("", "up, MB/s", "down, MB/s", "RSS growth, MiB", "PUT/s", "GET/s", "failed"):
        table.add_column(head, justify="right" if head else "left")
    for each in opened:
        place = Path(tempfile.mkdtemp(dir=folder))
        with each(place) as peer:
            say(peer.name)
            table.add_row(peer.name, *measured(peer, source, place, seconds).cells())
        shutil.rmtree(place)
    say("the plain disk")
    up, down = plain_disk(source, folder, mib)
    table.add_row("the plain disk (dd, one fsync)", f"{up:,.0f}", f"{down:,.0f}", "", "", "", "")
    table.add_row("to be reached", *TARGETS)
    source.unlink()
    Console(width=120).print(table)
    for reason in left_out:
        print(f"Left out: {reason}.")


def measured(peer: Peer, source: Path, folder: Path, seconds: int) -> Measured:
    os.sync()  # what the one before left to the disk is not this one's
    before = peer.resident()
    up = source.stat().st_size / 1e6 / timed(lambda: curl(peer, peer.put("large"), "-T", str(source)))
    failed = int(read_size(peer, "large") != source.stat().st_size)
    down = statistics.median(
        source.stat().st_size / 1e6 / timed(lambda: curl(peer, peer.get("large"))) for _ in range(3)
    )
    growth = peer.resident(peak=True) - before
    puts, bad_puts = wrk(peer, peer.put("small/NAME"), PUT, folder / "put.lua", seconds)
    gets, bad_gets = wrk(peer, peer.get("small/NAME"), GET, folder / "get.lua", seconds)
    return Measured(up, down, growth, puts, gets, failed + bad_puts + bad_gets)


def curl(peer: Peer, request: Request, *words: str) -> None:
    headers = [word for name, value in request.headers.items() for word in ("-H", f"{name}: {value}")]
    target = peer.url + request.path
    run("curl", "-sSf", "-o", "/dev/null", "-X", request.method, "--noproxy", "*", *headers, *words, target)


def read_size(peer: Peer, name: str) -> int:
    """How many bytes really came back."""
    request = peer.get(name)
    with httpx.stream(request.method, peer.url + request.path, headers=request.headers, timeout=120) as answer:
        return sum(map(len, answer.iter_raw()))


def wrk(peer: Peer, request: Request, script: str, path: Path, seconds: int) -> tuple[float, int]:
    """(answers a second that are 2xx, how many are not or did not come)."""
    headers = "{" + ", ".join(f'["{name}"] = "{value}"' for name, value in request.headers.items()) + "}"
    path.write_text(
        script.format(method=request.method, path=request.path, headers=headers, size=SMALL, names=READ_BACK)
    )
    words = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}", "--timeout", "30", "-s", str(path), peer.url]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    total, rate = int(number(r"(\d+) requests in", told)), number(r"Requests/sec: *([\d.]+)", told)
    refused = int(number(r"Non-2xx or 3xx responses: (\d+)", told))
    broken = sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", told)))
    return rate * (total - refused) / max(total, 1), refused + broken


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    return float(found[1]) if found else 0.0


def plain_disk(source: Path, folder: Path, mib: int) -> tuple[float, float]:
    os.sync()
    copied = folder / "copied"
    up = mib * MIB / 1e6 / timed(lambda: run("dd", f"if={source}", f"of={copied}", "bs=1M", "conv=fsync"))
    down = mib * MIB / 1e6 / timed(lambda: run("dd", f"if={source}", "of=/dev/null", "bs=1M"))
    copied.unlink()
    return up, down


# ---- listings -------------------------------------------------------------------------------------------------------


def listings(folder: Path, sizes: list[int]) -> None:
    """What a page of 1,000 costs, and all of them; names are made as rows: to upload them is not what is measured."""
    table = Table(title="names in pages of 1,000")
    for head in ("names", "first page, ms", "middle, ms", "last, ms", "all, s", "with fields=, s", "one select, s"):
        table.add_column(head, justify="right")
    for size in sizes:
        say(f"listing {size:,} names")
        place = Path(tempfile.mkdtemp(dir=folder))
        with peers.taxiway(place) as peer:
            put = peer.put("one")
            httpx.post(peer.url + put.path, headers=put.headers, content=b"x" * SMALL).raise_for_status()
            make_names(place / "home" / "taxiway.db", size)
            with httpx.Client(base_url=peer.url, headers=peer.get("").headers, trust_env=False) as client:
                walk(client, 2000)  # the interpreter warms up
                pages, whole = walk(client, size)
                _, slim = walk(client, size, fields="items/name,nextPageToken")
            bare = timed(lambda database=place / "home" / "taxiway.db": select_all(database))
        middle = pages[len(pages) // 2]
        cells = [f"{1000 * each:.1f}" for each in (pages[0], middle, pages[-1])]
        table.add_row(f"{size:,}", *cells, f"{whole:.2f}", f"{slim:.2f}", f"{bare:.2f}")
        shutil.rmtree(place)
    Console(width=120).print(table)
    print("To be reached: 100,000 names in less than 1.5 s, and pages that cost the same however many names there are.")


def make_names(database: Path, count: int) -> None:
    rows = sqlite3.connect(database, timeout=60)
    columns = [column[1] for column in rows.execute("PRAGMA table_info(objects)")]
    made = ", ".join({"name": "'list/' || printf('%08d', value)", "generation": "value + 1"}.get(c, c) for c in columns)
    with rows:
        rows.execute(
            "WITH RECURSIVE numbers(value) AS (SELECT 0 UNION ALL SELECT value + 1 FROM numbers WHERE value + 1 < ?) "
            f"INSERT INTO objects SELECT {made} FROM numbers, (SELECT * FROM objects WHERE name = 'one')",
            (count,),
        )
    rows.close()


def walk(client: httpx.Client, count: int, **more: str) -> tuple[list[float], float]:
    """(seconds of each page, of all) until all names were seen, or `count` of them."""
    found, following, pages = 0, "", []
    start = time.perf_counter()
    while True:
        query = {"prefix": "list/", "maxResults": "1000", "pageToken": following, **more}
        began = time.perf_counter()
        page = client.get(f"/storage/v1/b/{BUCKET}/o", params=query).json()
        pages.append(time.perf_counter() - began)
        found += len(page["items"])
        following = page.get("nextPageToken", "")
        if not following or found >= count:
            break
    if found != count:
        raise SystemExit(f"{found} names were listed, {count} are there")
    return pages, time.perf_counter() - start


def select_all(database: Path) -> None:
    rows = sqlite3.connect(database)
    for _ in rows.execute("SELECT * FROM objects ORDER BY bucket, name"):
        pass
    rows.close()


def run(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
