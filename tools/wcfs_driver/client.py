"""The client of wendelin.core: memory that shows files as of a state, by mappings of head and of revisions.

Invariant: the thread that carries out pins waits for nobody but the server, and all memory is touched outside of the
interpreter's lock. Locks are taken in this order: `_at_lock`, `_files_lock`, a file's own.
"""

import os
import threading
import time

from expect import SOON, Failed
from history import tid_text
from posix_memory import Memory

POLL = 0.001


class ClientError(Exception):
    """What a user of the client gets."""


class ReadWriteLock:
    """Many may read at once, also while one that reads waits for the server; who writes is alone."""

    def __init__(self):
        self._changed = threading.Condition()
        self._readers = 0
        self._is_written = False

    def read(self):
        """Takes it together with others."""
        with self._changed:
            while self._is_written:
                self._changed.wait()
            self._readers += 1

    def end_read(self):
        """Gives it back."""
        with self._changed:
            self._readers -= 1
            self._changed.notify_all()

    def write(self):
        """Takes it alone."""
        with self._changed:
            while self._is_written or self._readers:
                self._changed.wait()
            self._is_written = True

    def write_to_read(self):
        """Keeps it together with others, without a moment between."""
        with self._changed:
            self._is_written = False
            self._readers += 1
            self._changed.notify_all()


class Connection:
    """Files as of a state."""

    def __init__(self, root, at):
        self._root = root
        self.at = at
        self.error = None
        self._at_lock = ReadWriteLock()
        self._files_lock = threading.Lock()
        self._files = {}
        self._send_lock = threading.Lock()
        self._arrived = threading.Condition()
        self._replies = {}
        self._is_ended = False
        self._next = 1
        # All pins that were carried out, in their order: (oid, block, revision or None).
        self.pins = []
        self._wait_head(at)
        self._link = os.open(os.path.join(root, "head/watch"), os.O_RDWR | os.O_CLOEXEC)
        self._pinner = threading.Thread(target=self._listen, daemon=True)
        self._pinner.start()

    def _wait_head(self, at):
        deadline = time.monotonic() + SOON
        while True:
            with open(os.path.join(self._root, "head/at")) as head:
                if head.read() >= tid_text(at):
                    return
            if time.monotonic() > deadline:
                raise Failed(f"head/at does not come to {tid_text(at)}")
            time.sleep(POLL)

    # The link.

    def _listen(self):
        pending = b""
        while True:
            try:
                chunk = os.read(self._link, 4096)
            except OSError:
                chunk = b""
            if not chunk:
                break
            pending += chunk
            *lines, pending = pending.split(b"\n")
            for line in lines:
                self._hear(line.decode())
        with self._arrived:
            self._is_ended = True
            self._arrived.notify_all()

    def _hear(self, line):
        stream, message = line.split(" ", 1)
        stream = int(stream)
        if stream == 0:
            self.error = self.error or message
        elif stream % 2:
            with self._arrived:
                self._replies[stream] = message
                self._arrived.notify_all()
        else:
            self._send(stream, self._pin(message))

    def _send(self, stream, message):
        with self._send_lock:
            os.write(self._link, f"{stream} {message}\n".encode())

    def _ask(self, message):
        with self._arrived:
            stream = self._next
            self._next += 2
        self._send(stream, message)
        with self._arrived:
            if not self._arrived.wait_for(lambda: stream in self._replies or self._is_ended, SOON):
                raise Failed(f"there is no reply to {message}")
            if stream not in self._replies:
                raise ClientError(f"the link ended: {self.error}")
            return self._replies.pop(stream)

    def _pin(self, message):
        word, oid, block, rev = message.split(" ")
        if word != "pin" or block[0] != "#" or rev[0] != "@":
            return "nak: no pin"
        oid, block, rev = bytes.fromhex(oid), int(block[1:]), None if rev == "@head" else bytes.fromhex(rev[1:])
        self._at_lock.read()
        try:
            with self._files_lock:
                file = self._files.get(oid)
            if file is None:
                return "nak: the file is not open"
            file.pin(block, rev)
            self.pins.append((oid, block, rev))
            return "ack"
        finally:
            self._at_lock.end_read()

    # What a user calls.

    def open(self, history):
        """A file; each open is closed once."""
        self._check()
        self._at_lock.read()
        try:
            with self._files_lock:
                file = self._files.get(history.oid)
                if file is not None:
                    file.opened += 1
                    return file
                # Known from now on, as pins come before the reply.
                file = self._files[history.oid] = ClientFile(self, self._root, history.oid)
            self._watch(file, self.at)
            return file
        finally:
            self._at_lock.end_read()

    def _check(self):
        if self.error:
            raise ClientError(f"connection closed: {self.error}")

    def _watch(self, file, at):
        reply = self._ask(f"watch {tid_text(file.oid)} @{tid_text(at)}")
        if reply != "ok":
            raise ClientError(reply)

    def resync(self, at):
        """Moves all to another state; an error ends the connection."""
        self._check()
        self._wait_head(at)
        self._at_lock.write()
        self.at = at
        for file in self._files.values():
            file.grow()
        self._at_lock.write_to_read()
        try:
            for file in list(self._files.values()):
                self._watch(file, at)
        except ClientError as error:
            self.error = str(error)
            raise
        finally:
            self._at_lock.end_read()
            if self.error:
                self._end()

    def forget(self, file):
        """Ends the watch of a file that nobody has open any more."""
        reply = self._ask(f"watch {tid_text(file.oid)} -")
        with self._files_lock:
            del self._files[file.oid]
        if reply != "ok":
            raise ClientError(reply)

    def after_fork(self):
        """What the child of a fork does: its copy of the memory shows nothing, and nobody hears of it. Its locks may be held
        by threads that are not in the child."""
        for file in self._files.values():
            file.after_fork()
        os.close(self._link)

    def close(self):
        """Closes all files, so that no pin can come any more, then the link."""
        if self._link is None:
            return
        if not self.error:
            for file in list(self._files.values()):
                file.opened = 1
                file.close()
            self.error = "closed"
        self._end()

    def _end(self):
        for file in self._files.values():
            file.show_nothing()
        if self._link is None:
            return
        try:
            self._send(self._next, "bye")
        except OSError:
            # The server closed it before.
            pass
        self._pinner.join(SOON)
        if self._pinner.is_alive():
            raise Failed("the link does not end after bye")
        os.close(self._link)
        self._link = None


class ClientFile:
    """A file of a connection."""

    def __init__(self, connection, root, oid):
        self._connection = connection
        self._root = root
        self.oid = oid
        self.opened = 1
        self._fd = os.open(os.path.join(root, "head/bigfile", tid_text(oid)), os.O_RDONLY)
        status = os.fstat(self._fd)
        self.block_size, self.size = status.st_blksize, status.st_size
        if self.size % self.block_size:
            raise Failed(f"the size {self.size} is no multiple of the block size {self.block_size}")
        self._lock = threading.Lock()
        # Revisions by block.
        self.pinned = {}
        self._views = []

    def map(self, first, count):
        """Memory that shows blocks, without end: zeros are behind it."""
        view = View(self, first, count)
        with self._lock:
            self._show_head(view, 0)
            for block, rev in self.pinned.items():
                if view.has(block):
                    self._show_revision(view, block, rev)
            self._views.append(view)
        return view

    def _show_head(self, view, from_block):
        """Puts head where head has blocks, from one on."""
        start = max(view.first, from_block)
        end = min(view.first + view.count, self.size // self.block_size)
        if start < end:
            view.memory.show_file((start - view.first) * self.block_size, (end - start) * self.block_size, self._fd,
                                  start * self.block_size)

    def _show_revision(self, view, block, rev):
        place = (block - view.first) * self.block_size
        fd = os.open(os.path.join(self._root, f"@{tid_text(rev)}/bigfile", tid_text(self.oid)), os.O_RDONLY)
        try:
            status = os.fstat(fd)
            if status.st_blksize != self.block_size:
                raise Failed(f"another block size @{tid_text(rev)}")
            if (block + 1) * self.block_size > status.st_size:
                view.memory.show_zeros(place, self.block_size)
            else:
                view.memory.show_file(place, self.block_size, fd, block * self.block_size)
        finally:
            os.close(fd)

    def pin(self, block, rev):
        """Shows a block as of a revision, or of head without one."""
        with self._lock:
            for view in self._views:
                if not view.has(block):
                    continue
                if rev is not None:
                    self._show_revision(view, block, rev)
                elif (block + 1) * self.block_size > self.size:
                    view.memory.show_zeros((block - view.first) * self.block_size, self.block_size)
                else:
                    view.memory.show_file((block - view.first) * self.block_size, self.block_size, self._fd,
                                          block * self.block_size)
            if rev is None:
                self.pinned.pop(block, None)
            else:
                self.pinned[block] = rev

    def grow(self):
        """Shows what head has got behind its old end."""
        status = os.fstat(self._fd)
        if status.st_blksize != self.block_size or status.st_size < self.size:
            raise Failed(f"a file of {self.size} bytes becomes {status.st_size}")
        old = self.size
        with self._lock:
            self.size = status.st_size
            for view in self._views:
                self._show_head(view, old // self.block_size)
                for block, rev in self.pinned.items():
                    if view.has(block) and block >= old // self.block_size:
                        self._show_revision(view, block, rev)

    def show_nothing(self):
        """An access to its memory is a fault from now on."""
        with self._lock:
            for view in self._views:
                view.memory.show_nothing(0, view.memory.length)
            self._views.clear()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def after_fork(self):
        """See `Connection.after_fork`."""
        for view in self._views:
            view.memory.show_nothing(0, view.memory.length)
        os.close(self._fd)

    def close(self):
        """Closes it once; with the last time it goes."""
        if self.opened == 0:
            raise ClientError("file already closed")
        self.opened -= 1
        if self.opened == 0:
            self._connection.forget(self)
            self.show_nothing()


class View:
    """Memory of a part of a file."""

    def __init__(self, file, first, count):
        self.first = first
        self.count = count
        self.block_size = file.block_size
        self.memory = Memory(count * file.block_size)

    def has(self, block):
        """Whether it shows this block."""
        return self.first <= block < self.first + self.count

    def bytes(self, block, length):
        """The first bytes of a block."""
        return self.memory.copy((block - self.first) * self.block_size, length)

    def can_read(self, block):
        """Whether the block can be read."""
        return self.memory.can_read((block - self.first) * self.block_size)
