"""The jail of a user's code: a network of its own that leads to this server alone, and a disk of its own.

    with jail.opened() as held:                       # one network for each job and host
        command = held.enter(["python", ...], seen, group.procs)

bubblewrap makes it, without rights of root: user, process, mount and network namespaces, no capabilities, a filter of
system calls. What the code finds at Google's names is what was handed out by the holder of the network.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from taxiway import errors, handles, names
from taxiway.replica import family, holder, syscalls

TOOLS = ("bwrap", "nsenter")
START_S = 10.0  # how long a holder may take
END_S = 5.0
USER = 1000  # who the code is in there
NAME = "taxiway"
HOME, WORK, BUNDLE = "/home/taxiway", "/workspace", "/etc/ssl/certs/ca-certificates.crt"
APIS = ("www", "storage", "oauth2", "logging", "cloudresourcemanager", "compute", "iam", "iamcredentials", "ml")
TOP = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# What programs read of a machine, where it is there: no names, no keys, no other person's settings.
READ = (
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime"),
    *("/etc/timezone", "/etc/mime.types", "/etc/fonts", "/etc/ssl/openssl.cnf"),
    *("/sys/devices/system/cpu", "/sys/devices/system/node"),
)
# Parts of /proc that are the whole machine's. A server of root's has jobs that are root outside, if without its rights:
# the kernel's settings ask for no more than that. What container runtimes cover, and for the same reason.
UNWRITABLE = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
EMPTY = ("/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/timer_list")
DRIVER = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")  # beside each GPU's own file
TRUSTED = ("/etc/ssl/cert.pem", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")  # other systems' names
# Into the groups and below the limits first, then on: `sh` is the one program that is everywhere.
JOIN = """for each in $1; do echo $$ >"$each" || exit 125; done
ulimit -c 0; [ -z "$2" ] || ulimit -d "$2"; shift 2; exec "$@\""""


class Lacking(Exception):
    """There can be no jail here; the message is why, and what would help."""


@dataclass(frozen=True)
class Seen:
    """What the code is to find: folders of this host, read-only and at the same place; its own; whom to trust."""

    read: Sequence[Path]
    write: dict[str, Path]  # place in the jail -> folder
    bundle: Path
    devices: Sequence[str] = ()  # files below /dev of the GPUs that are the code's own; it sees no other


@dataclass(frozen=True)
class Jail:
    """A network that is held. `google`, `plain`, `metadata` and `proxy` listen in it; whoever has them answers."""

    pid: int  # of the holder
    google: socket.socket
    plain: socket.socket
    metadata: socket.socket
    proxy: socket.socket
    filter: int | None  # the file of the system calls' filter
    place: int = 0  # whose names lead here, of those who share the network

    def enter(self, command: Sequence[str], seen: Seen, scratch: Path, procs: Sequence[str], data: int) -> list[str]:
        """The command that runs another one in here. `scratch` takes a few small files; `procs` are the groups to
        join, `data` the bytes of memory where no group limits them (0: none)."""
        limits = ["sh", "-c", JOIN, "sh", " ".join(procs), str(data // 1024) if data else ""]
        calls = [] if self.filter is None else ["--seccomp", str(self.filter)]
        files = _files(seen, scratch, self.place)
        return [*limits, *self.network, "bwrap", *ALONE, *calls, *_machine(), *files, "--", *command]

    @property
    def network(self) -> list[str]:
        """The words before a command that is to run in this network."""
        return ["nsenter", "--user", "--net", "--preserve-credentials", "-t", str(self.pid), "--"]

    @property
    def passed(self) -> list[int]:
        """The descriptors that the command inherits."""
        return [] if self.filter is None else [self.filter]


ALONE = (
    *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
    *("--uid", str(USER), "--gid", str(USER), "--cap-drop", "ALL", "--new-session", "--die-with-parent"),
    *("--hostname", NAME, "--chdir", WORK),
)


@contextmanager
def opened() -> Iterator[Jail]:
    """A network of its own, for as long as this lasts, after a look whether a jail in it is allowed. Raises Lacking."""
    if lack := _lack():
        raise Lacking(lack)
    ours, its = socket.socketpair()
    with ours:
        with its:
            process = _hold(its)
        with process:
            try:
                ours.settimeout(START_S)
                try:
                    pid, ends = _received(ours, process)
                except OSError as error:
                    raise _refused(error) from error
                yield from _handed(pid, ends)
            finally:
                process.kill()


@contextmanager
def joined(folder: Path, place: int) -> Iterator[Jail]:
    """The network of a gang, whose folder this is, at a place in it. Whoever comes first makes the network; it lasts
    until the last one has gone. Raises Lacking."""
    if lack := _lack():
        raise Lacking(lack)
    with ExitStack() as stack:
        for last in (False, False, True):  # the one before us may go in the moment in which we come
            ours = stack.enter_context(socket.socket(socket.AF_UNIX))
            ours.settimeout(START_S)
            process = None
            with _first(folder) as door:
                if not _knock(ours, door):
                    door.unlink(missing_ok=True)
                    with socket.socket(socket.AF_UNIX) as its:
                        its.bind(str(door))
                        its.listen(holder.PLACES)
                        process = _hold(its, "gang", folder=folder)
                    _knock(ours, door)
            try:
                ours.sendall(str(place).encode())
                pid, ends = _received(ours, process)
                break
            except OSError as error:
                if last:
                    raise _refused(error) from error
        yield from _handed(pid, ends, place)


def _received(ours: socket.socket, process: subprocess.Popen[bytes] | None) -> tuple[int, list[int]]:
    """The holder's number and its ends. Raises OSError, with the holder's words if it is the `process` and ended."""
    pid, ends, *_ = socket.recv_fds(ours, 64, holder.ENDS)
    if len(ends) < holder.ENDS:
        raise OSError(_last_words(process) if process else "its holder has ended")
    return int(pid), list(ends)


def _refused(error: OSError) -> Lacking:
    return Lacking(f"this machine lets nobody make a network of one's own ({error}). {_help()}")


def _handed(pid: int, ends: Sequence[int], place: int = 0) -> Iterator[Jail]:
    sockets = [socket.socket(fileno=each) for each in ends]
    calls = syscalls.program()
    try:
        google, plain, metadata, proxy = sockets
        held = Jail(pid, google, plain, metadata, proxy, calls, place)
        _try(held)
        yield held
    finally:
        for each in sockets:
            each.close()
        if calls is not None:
            os.close(calls)


@contextmanager
def _first(folder: Path) -> Iterator[Path]:
    """The door of a gang's network, while nobody else looks whether it is open."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # a socket's path is short: 107 bytes
    try:
        with (folder / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(f"/proc/self/fd/{here}/door")
    finally:
        os.close(here)


def _knock(ours: socket.socket, door: Path) -> bool:
    try:
        ours.connect(str(door))
    except OSError:
        return False
    return True


def _hold(end: socket.socket, *words: str, folder: Path | None = None) -> subprocess.Popen[bytes]:
    """A holder: our own child, which ends with us, or a gang's, which ends with the last who joined."""
    ours = ["--die-with-parent"] if folder is None else []
    command = [*_HOLDING, *ours, "--", sys.executable, "-I", "-S", holder.__file__, str(end.fileno()), *words]
    apart = {} if folder is None else {**os.environ, handles.MARK: folder.name}
    process = subprocess.Popen(
        command,
        pass_fds=[end.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=apart or None,
        cwd=folder,
        start_new_session=folder is not None,
    )
    if folder is not None:
        family.SPARED.add(process.pid)
    return process


def _last_words(process: subprocess.Popen[bytes]) -> str:
    try:
        return (process.communicate(timeout=END_S)[0] or b"").decode(errors="replace").strip()[-500:]
    except subprocess.TimeoutExpired:
        return "it says nothing"


@contextmanager
def wanted(how: str, tell: Callable[[str], None], *, gang: Path | None = None, place: int = 0) -> Iterator[Jail | None]:
    """A jail as an order wants it; None, and `tell` hears why, where there can be none and it may be without.

    With a `gang`, the folder of that, it is joined at a place.

    Raises FailedPrecondition where there can be none and there must be one.
    """
    with ExitStack() as stack:
        held = None
        try:
            held = None if how == "off" else stack.enter_context(joined(gang, place) if gang else opened())
        except Lacking as lack:
            if how == "require":
                raise errors.FailedPrecondition(
                    f"All code must run in a jail here (TAXIWAY_JAIL=require), and there can be none: {lack}"
                ) from lack
            tell(f"This runs without a jail, beside the server's own files: {lack}")
        if held is not None and held.filter is None:
            tell("The jail has no filter of system calls: libseccomp.so.2 cannot be found.")
        yield held


_HOLDING = (
    *("bwrap", "--unshare-user", "--unshare-net", "--uid", "0", "--gid", "0"),
    *("--cap-drop", "ALL", "--cap-add", "CAP_NET_ADMIN", "--cap-add", "CAP_NET_BIND_SERVICE"),
    *("--cap-add", "CAP_SYS_ADMIN", "--ro-bind", "/", "/", "--dev", "/dev"),
)


def _try(held: Jail) -> None:
    """Run nothing in there: a machine may allow the holder its network, and refuse the jail inside of it."""
    network, calls = held.network, [] if held.filter is None else ["--seccomp", str(held.filter)]
    command = [*network, "bwrap", *ALONE, *calls, *_machine(), "--dir", WORK, "--remount-ro", "/", "--", "true"]
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=START_S, check=False, pass_fds=held.passed
        )
        said = (ended.stderr or ended.stdout).decode(errors="replace").strip()[-500:] or f"status {ended.returncode}"
        failed = bool(ended.returncode)
    except (OSError, subprocess.TimeoutExpired) as error:
        failed, said = True, str(error)
    if failed:
        raise Lacking(f"this machine lets nobody make a jail within a network of one's own ({said}). {_help()}")
    if held.filter is not None:
        os.lseek(held.filter, 0, os.SEEK_SET)  # it was read, and will be once more


# What stands in the way, by what the kernel says of itself: the file, the value that forbids, what helps.
SETTINGS = (
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile that gives bwrap userns",
    ),
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"),
    ("user/max_net_namespaces", "0", "sysctl -w user.max_net_namespaces=10000"),
)
CONTAINERS = ("/.dockerenv", "/run/.containerenv")
UNCONFINED = " ".join(f"--security-opt {each}=unconfined" for each in ("seccomp", "apparmor", "systempaths"))


def in_the_way(root: Path = Path("/")) -> list[str]:
    """What is known to forbid a jail here, each in a sentence with what helps. `root` is where /proc lies."""
    found = []
    for file, forbids, helps in SETTINGS:
        with suppress(OSError):
            if (root / "proc/sys" / file).read_text().strip() == forbids:
                name = file.replace("/", ".")
                found.append(f"The kernel's setting {name} is {forbids}, which forbids it; as root: {helps}.")
    if any((root / each.lstrip("/")).exists() for each in CONTAINERS):
        found.append(f"This is a container: it must be started with the right to make namespaces ({UNCONFINED}).")
    return found


def _help() -> str:
    return " ".join(in_the_way()) or "No setting of the kernel that is known to forbid it is set so."


@functools.cache
def _lack() -> str:
    if sys.platform != "linux":
        return "namespaces are Linux's."
    missing = [each for each in TOOLS if not shutil.which(each)]
    if missing:
        return f"{' and '.join(missing)} cannot be found. Try: make jail (apt install bubblewrap util-linux)"
    return ""


@functools.cache
def _machine() -> list[str]:
    """The programs and libraries of the machine, and what they read of it."""
    words = ["--ro-bind", "/usr", "/usr"]
    for each in TOP:
        if (place := Path(each)).is_symlink():
            words += ["--symlink", str(place.readlink()), each]
        elif place.is_dir():
            words += ["--ro-bind", each, each]
    for each in READ:
        words += ["--ro-bind-try", each, each]
    words += ["--proc", "/proc", "--dev", "/dev", "--dir", "/run", "--dir", "/var", "--symlink", "../tmp", "/var/tmp"]
    for each in UNWRITABLE:
        words += ["--ro-bind-try", each, each]
    for each in EMPTY:
        words += ["--ro-bind", "/dev/null", each] if Path(each).exists() else []
    return words


def _files(seen: Seen, scratch: Path, own: int) -> list[str]:
    words: list[str] = []
    binds = {str(folder): ("--ro-bind", folder) for folder in seen.read if not folder.is_relative_to("/usr")}
    binds |= {place: ("--bind", folder) for place, folder in seen.write.items()}
    for place in sorted(binds, key=lambda each: Path(each).parts):  # what lies in another one is laid over it
        how, folder = binds[place]
        words += [how, str(folder), place]
    for each in (*DRIVER, *seen.devices) if seen.devices else ():
        words += ["--dev-bind-try", f"/dev/{each}", f"/dev/{each}"]
    words += ["--ro-bind", str(seen.bundle), BUNDLE]
    for each in TRUSTED:
        words += ["--symlink", BUNDLE, each]
    scratch.mkdir(mode=0o700, exist_ok=True)
    for name, text in _own_files(own).items():
        (scratch / name).write_text(text, encoding="utf-8")
        words += ["--ro-bind", str(scratch / name), f"/etc/{name}"]
    return [*words, "--remount-ro", "/"]


@functools.cache
def _own_files(place: int) -> dict[str, str]:
    """What stands in /etc: who there is, and where names lead."""
    regions = [f"{region}-ml" for region in names.REGIONS]
    google = " ".join(f"{each}.googleapis.com" for each in [*APIS, *regions])
    return {
        "passwd": f"{NAME}:x:{USER}:{USER}::{HOME}:/bin/sh\n",
        "group": f"{NAME}:x:{USER}:\n",
        "hosts": f"127.0.0.1 localhost {NAME}\n{holder.google(place)} googleapis.com accounts.google.com {google}\n"
        f"{holder.metadata(place)} metadata.google.internal metadata\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
        "resolv.conf": "",
        "host.conf": "multi on\n",
        "boto.cfg": boto(BUNDLE),
    }


def boto(bundle: str) -> str:
    """The settings with which gsutil acts as the metadata server's account. What it is refused it tells as it heard it,
    and not that no account is configured, which it takes for granted where only variables lead to that server."""
    acts = "[GoogleCompute]\nservice_account = default\n\n[Tests]\nbypass_anonymous_access_warning = True\n"
    return f"[Boto]\nca_certificates_file = {bundle}\n\n{acts}"


def main() -> int:
    """`python -m taxiway.replica.jail`: 0 where there can be one; else 1, and why not on stdout."""
    try:
        with opened():
            return 0
    except Lacking as lack:
        sys.stdout.write(f"{lack}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
