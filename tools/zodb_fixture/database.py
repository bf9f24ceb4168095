"""A database that is open for writing, directly or through a ZEO server.

Invariant: one process has the file open for writing at a time; a ZEO server that was started here ends with this
process, whatever its end is.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import transaction
import ZODB
from ZEO.ClientStorage import ClientStorage
from ZODB.FileStorage import FileStorage

ZEO_SECONDS = 20
# Commits that change nothing in a row, after which it is said instead of tried again.
TRIES = 100
PR_SET_PDEATHSIG = 1
# What ZODB writes into the transaction that makes the root.
FIRST = b"initial database creation"


class FixtureError(Exception):
    """What was asked for cannot be done."""


def tid_text(tid):
    """A tid or oid as 16 hex digits."""
    return tid.hex()


def parse_tid(text):
    """A tid from 16 hex digits."""
    try:
        tid = bytes.fromhex(text)
    except ValueError:
        tid = b""
    if len(tid) != 8:
        raise FixtureError(f"{text} is no tid: 16 hex digits, or head")
    return tid


@contextlib.contextmanager
def root_at(db, tid):
    """The root of a database as of a tid."""
    connection = db.open(transaction_manager=transaction.TransactionManager(), at=tid)
    try:
        yield connection.root()
    finally:
        connection.close()


class Database:
    """A database that this process writes to."""

    def __init__(self, path):
        self.path = os.path.abspath(path)
        self._zeo = None
        self._zeo_address = None
        self._open()

    def _open(self):
        if self._zeo is None:
            storage = FileStorage(self.path)
        else:
            storage = ClientStorage(client_address(self._zeo_address), wait_timeout=ZEO_SECONDS)
        self._db = ZODB.DB(storage)
        self._transactions = transaction.TransactionManager()
        self._connection = self._db.open(transaction_manager=self._transactions)

    def _close(self):
        self._transactions.abort()
        self._connection.close()
        self._db.close()

    def close(self):
        """Closes the file, and ends the ZEO server."""
        try:
            self._close()
        finally:
            self._stop_zeo()

    def head(self):
        """Tid of the last transaction."""
        return self._db.storage.lastTransaction()

    def commit(self, edit, note=""):
        """Commits what `edit(root)` does, as one transaction, and returns its tid.

        An edit that turns out to change no object is made again: random data may be what was there.
        """
        before = self.head()
        for _ in range(TRIES):
            try:
                self._transactions.begin()
                edit(self._connection.root())
                self._transactions.get().note(note)
                self._transactions.commit()
            except BaseException:
                self._transactions.abort()
                raise
            if self.head() != before:
                return self.head()
        raise FixtureError(f"{TRIES} edits in a row changed nothing")

    def undo(self):
        """Undoes the last transaction by another one, and returns the tid of that."""
        log = self._db.undoLog(0, 1)
        # Without the root it would be no database.
        if not log or log[0]["description"] == FIRST:
            raise FixtureError("there is no transaction to undo since the first one and the last pack")
        try:
            self._transactions.begin()
            self._db.undo(log[0]["id"], self._transactions.get())
            self._transactions.commit()
        except BaseException:
            self._transactions.abort()
            raise
        return self.head()

    def pack(self):
        """Packs up to now, without what is no longer in use, and leaves no `.old`."""
        self._db.pack()
        with contextlib.suppress(FileNotFoundError):
            os.remove(f"{self.path}.old")
        # What the connections keep in memory may be gone from the file.
        self._close()
        self._open()

    def at(self, tid):
        """Context with the root as of a tid."""
        return root_at(self._db, tid)

    def start_zeo(self, address=None, msgpack=False):
        """Puts a ZEO server before the file and goes through it from now on. Returns its address.

        The address is HOST:PORT or the path of a socket; without one it is that of the time before, or a free port of
        this machine. Its messages are pickles, or MessagePack.
        """
        if self._zeo is not None:
            raise FixtureError(f"the ZEO server runs already, at {self._zeo_address}")
        address = address or self._zeo_address or f"127.0.0.1:{free_port()}"
        if answers(address):
            raise FixtureError(f"somebody answers at {address} already")
        self._close()
        try:
            self._zeo = ZeoServer(self.path, address, msgpack)
            self._zeo_address = address
            self._open()
        except BaseException:
            self._stop_zeo()
            self._open()
            raise
        return address

    def stop_zeo(self, kill=False):
        """Ends the ZEO server and opens the file directly. `kill`: it has no time for anything."""
        if self._zeo is None:
            raise FixtureError("no ZEO server runs")
        if kill:
            self._zeo.kill()
        self._close()
        self._stop_zeo()
        self._open()

    def _stop_zeo(self):
        if self._zeo is not None:
            self._zeo.stop()
            self._zeo = None


class ZeoServer:
    """A ZEO server in a process of its own, which answers once this is made."""

    def __init__(self, path, address, msgpack=False):
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ZEO.runzeo", "-a", address, "-f", path],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._log, preexec_fn=end_with_parent,
            env={**os.environ, "ZEO_MSGPACK": "y" if msgpack else ""})
        try:
            self._wait(address)
        except BaseException:
            self.stop()
            raise

    def _wait(self, address):
        deadline = time.monotonic() + ZEO_SECONDS
        while not answers(address):
            if self._process.poll() is not None:
                self._log.seek(0)
                said = self._log.read().decode(errors="replace").strip().splitlines()
                raise FixtureError(f"the ZEO server ended: {said[-1] if said else self._process.returncode}")
            if time.monotonic() > deadline:
                raise FixtureError(f"the ZEO server does not answer at {address} after {ZEO_SECONDS} s")
            time.sleep(0.02)

    def kill(self):
        """Ends the server at once."""
        self._process.kill()
        self._process.wait()

    def stop(self):
        """Ends the server: it has ended when this returns."""
        self._process.terminate()
        try:
            self._process.wait(ZEO_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def end_with_parent():
    """Asks the kernel to end this process once its parent has ended."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def client_address(address):
    """An address as a ZEO client takes it."""
    if "/" in address:
        return os.path.abspath(address)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise FixtureError(f"{address} is no address: HOST:PORT, or a path with a / in it")
    return (host, int(port))


def answers(address):
    """Whether somebody accepts connections there."""
    target = client_address(address)
    try:
        if isinstance(target, str):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(target)
        else:
            socket.create_connection(target, ZEO_SECONDS).close()
    except OSError:
        return False
    return True


def free_port():
    """A port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
