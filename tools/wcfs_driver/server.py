"""The program under test: started, looked at and ended as the client of wendelin.core does it.

Invariant: no process or mount outlives `Server.clean`, whatever state they are in.
"""

import contextlib
import errno
import os
import re
import signal
import subprocess
import time

from expect import SOON, Failed, expect, expect_match, wait_equal
from history import tid_text

STATS = ("BigFile", "RevHead", "ZHeadLink", "WatchLink", "Watch", "PinnedBlk", "pin", "pinkill")
COUNTERS = ("pin", "pinkill")
CONNECTIONS = "/sys/fs/fuse/connections"
POLL = 0.02
_STAT = re.compile(r"([A-Za-z]+)\t: ([0-9]+)\n")
_ESCAPE = re.compile(r"\\([0-7]{3})")


class MountEntry:
    """A line of the mount table."""

    def __init__(self, line):
        left, right = line.split(" - ")
        fields = left.split(" ")
        self.minor = int(fields[2].split(":")[1])
        self.path = unescaped(fields[4])
        self.type, source = right.split(" ")[:2]
        self.source = unescaped(source)


def unescaped(text):
    """A field of the mount table as it was given to the kernel."""
    return os.fsdecode(_ESCAPE.sub(lambda match: chr(int(match[1], 8)), text).encode("latin-1"))


def mount_entries():
    """All mounts, the topmost last."""
    with open("/proc/self/mountinfo", encoding="latin-1") as table:
        return [MountEntry(line) for line in table.read().splitlines()]


def mount_entry(path):
    """What is mounted there, if something is."""
    found = [entry for entry in mount_entries() if entry.path == path]
    return found[-1] if found else None


def mounts_below(folder):
    """Paths of mounts in a folder."""
    return [entry.path for entry in mount_entries() if entry.path.startswith(f"{folder}/")]


def abort_connection(path):
    """Makes the kernel end whatever waits for the mount."""
    entry = mount_entry(path)
    if entry is not None and entry.type.startswith("fuse"):
        with contextlib.suppress(OSError), open(f"{CONNECTIONS}/{entry.minor}/abort", "w") as abort:
            abort.write("1")


def fusermount(path, *options):
    """Unmounts as a user does; code and stderr."""
    ended = subprocess.run(["fusermount", "-u", *options, path], capture_output=True, text=True, timeout=SOON)
    return ended.returncode, ended.stderr


class Server:
    """A process of the program, and its mount."""

    def __init__(self, program, zurl, mountpoint, options=()):
        self.zurl = zurl
        self.root = mountpoint
        os.makedirs(mountpoint, exist_ok=True)
        self._log_path = f"{mountpoint}.log"
        self.command = [program, *options, zurl, mountpoint]
        with open(self._log_path, "ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        # Descriptors of what is open for as long as the server is used.
        self._fds = []
        self._counters = dict.fromkeys(COUNTERS, 0)
        # What must be closed before the mount can go: by their `close`.
        self.open_things = []

    def path(self, below):
        """A path in the mount."""
        return os.path.join(self.root, below)

    def log(self):
        """All that it wrote to stdout and stderr."""
        with open(self._log_path, errors="replace") as log:
            return log.read()

    def wait_ready(self, seconds=SOON):
        """Waits until `.wcfs/zurl` is there, and keeps it open, as who uses the server. No error but ENOENT means that
        it is not there yet."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                zurl = os.open(self.path(".wcfs/zurl"), os.O_RDONLY)
            except FileNotFoundError:
                pass
            else:
                self._fds.append(zurl)
                return expect(os.fsencode(self.zurl), os.read(zurl, 4096), ".wcfs/zurl")
            if self.process.poll() is not None:
                raise Failed(f"{self.command} ended with {self.process.returncode}: {self.log()}")
            if time.monotonic() > deadline:
                raise Failed(f"{self.command} does not get ready within {seconds} s: {self.log()}")
            time.sleep(POLL)

    def at(self):
        """What `head/at` shows."""
        with open(self.path("head/at")) as at:
            return at.read()

    def follow(self):
        """From now on `expect_head` hears of each commit."""
        self._zhead = os.open(self.path(".wcfs/debug/zhead"), os.O_RDONLY)
        self._fds.append(self._zhead)
        self._heard = b""

    def expect_line(self, tid):
        """The next line of `.wcfs/debug/zhead` is this."""
        while b"\n" not in self._heard:
            chunk = os.read(self._zhead, 4096)
            if not chunk:
                raise Failed(f".wcfs/debug/zhead ends, instead of {tid_text(tid)}: {self.log()}")
            self._heard += chunk
        line, self._heard = self._heard.split(b"\n", 1)
        expect(tid_text(tid), line.decode(), "the line of .wcfs/debug/zhead")

    def expect_head(self, tids):
        """`.wcfs/debug/zhead` says these, and once it did `head/at` shows the last one."""
        for tid in tids:
            self.expect_line(tid)
        expect(tid_text(tids[-1]), self.at(), "head/at, once .wcfs/debug/zhead has the line")

    def stats(self):
        """Numbers of `.wcfs/stats`, whose names never change and whose counters never fall."""
        with open(self.path(".wcfs/stats")) as stats:
            lines = stats.readlines()
        for line in lines:
            expect_match(_STAT, line, "a line of .wcfs/stats")
        found = {name: int(number) for name, number in (_STAT.fullmatch(line).groups() for line in lines)}
        expect(sorted(STATS), sorted(found), "names in .wcfs/stats")
        expect(len(lines), len(found), "lines of .wcfs/stats")
        for name in COUNTERS:
            if found[name] < self._counters[name]:
                raise Failed(f"the counter {name} fell from {self._counters[name]} to {found[name]}")
            self._counters[name] = found[name]
        return found

    def expect_stats(self, what, **wanted):
        """These numbers come to be so."""
        wait_equal(wanted, lambda: {name: number for name, number in self.stats().items() if name in wanted}, what)

    def signal(self, number):
        """Sends a signal to the process."""
        self.process.send_signal(number)

    def wait_end(self, seconds=SOON):
        """Waits until the process ends; its code, below 0 for a signal."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"the server does not end within {seconds} s: {self.log()}") from error

    def close_all(self):
        """Closes what this process has open in the mount."""
        while self.open_things:
            self.open_things.pop().close()
        while self._fds:
            os.close(self._fds.pop())

    def abandon(self):
        """Closes what is open in a mount whose server is gone, which is an error of each close."""
        while self.open_things or self._fds:
            with contextlib.suppress(OSError, Failed):
                self.close_all()

    def stop(self):
        """The end by `fusermount -u`: the process ends with 0, and nothing is left."""
        self.close_all()
        self.expect_stats("when all is closed", ZHeadLink=0, WatchLink=0, Watch=0, PinnedBlk=0)
        expect((0, ""), fusermount(self.root), "fusermount -u")
        expect(0, self.wait_end(), "the server's exit code after fusermount -u")
        expect(None, mount_entry(self.root), "what is mounted afterwards")

    def clean(self):
        """Ends it by all means."""
        # What waits in the kernel for it goes on with an error.
        abort_connection(self.root)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.abandon()
        if mount_entry(self.root) is not None:
            fusermount(self.root, "-z")


def is_dead_mount(path):
    """Whether a server left its mount behind."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def expect_dead(server):
    """Nobody serves the mount any more, and it says so."""
    wait_equal(True, lambda: is_dead_mount(server.path("head/at")), "the mount without a server answers ENOTCONN")


def kill_server(server):
    """The crash of a server."""
    server.signal(signal.SIGKILL)
    expect(-signal.SIGKILL, server.wait_end(), "the end of a server that is killed")
