"""Storage beside the bare operation: large bodies by curl, small ones at c=16, a listing of 100,000 names.

    .venv/bin/python benchmarks/storage.py [--mib 1024] [--names 100000]

Starts a server on a fresh home (in the folder of --home, so that it is the same disk as the bare operations), measures,
and prints one table; ratios are of this run and the only figures to compare between machines.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from taxiway import address, errors

MIB = 1024 * 1024
SMALL = 4096
CONNECTIONS = 16
BUCKET = "benchmark-bucket"


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--mib", type=int, default=1024, help="size of the large object")
    given.add_argument("--names", type=int, default=100_000, help="names to list")
    given.add_argument("--requests", type=int, default=400, help="small requests of each of the 16 connections")
    given.add_argument("--home", type=Path, default=Path.cwd(), help="a folder on the disk to measure")
    options = given.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="storage-benchmark-", dir=options.home))
    server = None
    try:
        server, located = started(folder / "home")
        table = Table("what", "taxiway", "bare", "ratio", "RSS growth")
        large(table, server, located, folder, options.mib)
        small(table, located, folder, options.requests)
        listing(table, located, folder, options.names)
        Console().print(table)
    finally:
        if server is not None:
            server.terminate()
            server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def started(home: Path) -> tuple[subprocess.Popen[bytes], address.Address]:
    command = [sys.executable, "-m", "taxiway", "up", "--home", str(home), "--port", "0"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TAXIWAY_")}
    server = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while server.poll() is None:
        located = answering(home)
        if located is not None and located.pid == server.pid:
            headers = {"Authorization": f"Bearer {token(located)}"}
            url = f"{located.url}/storage/v1/b?project={located.project}"
            httpx.post(url, json={"name": BUCKET}, headers=headers).raise_for_status()
            return server, located
        time.sleep(0.05)
    raise SystemExit("the server did not start")


def answering(home: Path) -> address.Address | None:
    try:
        located = address.read(home)
        return located if httpx.get(f"{located.url}/healthz").status_code == 200 else None
    except (errors.Unavailable, httpx.TransportError):
        return None


def token(located: address.Address) -> str:
    return Path(located.access_token).read_text()


def large(table: Table, server: subprocess.Popen[bytes], located: address.Address, folder: Path, mib: int) -> None:
    source = folder / "source"
    with source.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
    os.sync()
    bare_up = mib / seconds(lambda: run("dd", f"if={source}", f"of={folder / 'bare'}", "bs=1M", "conv=fsync"))
    bare_down = mib / seconds(lambda: run("dd", f"if={source}", "of=/dev/null", "bs=1M"))
    watched = psutil.Process(server.pid)
    before = watched.memory_info().rss
    name = f"{located.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=large"
    up = mib / seconds(lambda: curl(located, "-X", "POST", "-T", str(source), name))
    after_up = watched.memory_info().rss
    down = mib / seconds(lambda: curl(located, f"{located.url}/storage/v1/b/{BUCKET}/o/large?alt=media"))
    after_down = watched.memory_info().rss
    row(table, f"{mib} MiB up (dd + fsync)", up, bare_up, "MiB/s", after_up - before)
    row(table, f"{mib} MiB down (dd to null)", down, bare_down, "MiB/s", after_down - before)


def small(table: Table, located: address.Address, folder: Path, requests: int) -> None:
    count = requests * CONNECTIONS
    puts = count / seconds(lambda: asyncio.run(many(located, requests, put_request)))
    gets = count / seconds(lambda: asyncio.run(many(located, requests, get_request)))
    bare_puts = count / seconds(lambda: insert_rows(folder / "bare.db", count))
    bare_gets = count / seconds(lambda: select_rows(folder / "bare.db", count))
    row(table, "4 KiB PUT, c=16 (SQLite, 16 a commit)", puts, bare_puts, "/s")
    row(table, "4 KiB GET, c=16 (SQLite select)", gets, bare_gets, "/s")


async def many(located: address.Address, requests: int, request: Callable[[str, int, int], bytes]) -> None:
    where, bearer = urlsplit(located.url), token(located)

    async def one(connection: int) -> None:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        for index in range(requests):
            writer.write(request(bearer, connection, index))
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b" 200 " not in head[:20]:
                raise SystemExit(head.decode())
            await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
        writer.close()

    await asyncio.gather(*(one(connection) for connection in range(CONNECTIONS)))


def put_request(bearer: str, connection: int, index: int) -> bytes:
    target = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=small/{connection}/{index}"
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bearer}\r\nContent-Length: {SMALL}\r\n\r\n"
    return head.encode() + os.urandom(SMALL)


def get_request(bearer: str, connection: int, index: int) -> bytes:
    target = f"/storage/v1/b/{BUCKET}/o/{quote(f'small/{connection}/{index}', safe='')}?alt=media"
    return f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bearer}\r\n\r\n".encode()


def insert_rows(path: Path, count: int) -> None:
    """The limit of a group commit: as many rows in a transaction as there are connections."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE rows (name TEXT PRIMARY KEY, data BLOB)")
    for start in range(0, count, CONNECTIONS):
        database.execute("BEGIN IMMEDIATE")
        for index in range(start, start + CONNECTIONS):
            database.execute("INSERT INTO rows VALUES (?, ?)", (f"small/{index}", os.urandom(SMALL)))
        database.execute("COMMIT")
    database.close()


def select_rows(path: Path, count: int) -> None:
    database = sqlite3.connect(path)
    for index in range(count):
        database.execute("SELECT data FROM rows WHERE name = ?", (f"small/{index}",)).fetchone()
    database.close()


def listing(table: Table, located: address.Address, folder: Path, count: int) -> None:
    """Names are made as rows of the home's database: to upload them is not what is measured here."""
    rows = sqlite3.connect(folder / "home" / "taxiway.db", timeout=60)
    columns = [column[1] for column in rows.execute("PRAGMA table_info(objects)")]
    made = ", ".join({"name": "'list/' || printf('%08d', value)", "generation": "value + 1"}.get(c, c) for c in columns)
    with rows:
        rows.execute(
            f"WITH RECURSIVE numbers(value) AS (SELECT 0 UNION ALL SELECT value + 1 FROM numbers WHERE value + 1 < ?) "
            f"INSERT INTO objects SELECT {made} FROM numbers, (SELECT * FROM objects WHERE name = 'small/0/0')",
            (count,),
        )
    with httpx.Client(base_url=located.url, headers={"Authorization": f"Bearer {token(located)}"}) as client:
        taken = seconds(lambda: walk(client, count))
    bare = seconds(lambda: rows.execute("SELECT * FROM objects ORDER BY bucket, name").fetchall())
    rows.close()
    row(table, f"{count:,} names in pages of 1,000 (one select)", count / taken, count / bare, "names/s")
    table.add_row("   the same in seconds", f"{taken:.2f}", f"{bare:.2f}", "", "")


def walk(client: httpx.Client, count: int) -> None:
    found, token_of_next = 0, ""
    while True:
        query = {"prefix": "list/", "maxResults": "1000", "pageToken": token_of_next}
        page = client.get(f"/storage/v1/b/{BUCKET}/o", params=query).json()
        found += len(page["items"])
        token_of_next = page.get("nextPageToken", "")
        if not token_of_next:
            break
    if found != count:
        raise SystemExit(f"{found} names were listed, {count} are there")


def curl(located: address.Address, *words: str) -> None:
    run("curl", "-sSf", "-o", "/dev/null", "-H", f"Authorization: Bearer {token(located)}", *words)


def run(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(table: Table, what: str, ours: float, bare: float, unit: str, growth: int | None = None) -> None:
    grown = "" if growth is None else f"{growth / MIB:+.0f} MiB"
    table.add_row(what, f"{ours:,.0f} {unit}", f"{bare:,.0f} {unit}", f"{ours / bare:.2f}", grown)


if __name__ == "__main__":
    main()
