"""What each block of each file is at each tid, and when it changed: found by reading all of all trees at each tid.

Invariant: nothing is derived from what a test wrote. ZODB in Python is asked as of each tid, and a block changed where
its entry in the tree or the revision of its object differs from the tid before. What pins are expected follows from
that alone.
"""

import calendar

from edits import files


def tid_text(tid):
    """A tid or an oid as 16 hex digits."""
    return tid.hex()


def unix_nanoseconds(tid):
    """Time of a tid: the high half counts minutes since 1900 in years, months, days and hours of fixed length, the low
    half parts of a minute."""
    high, low = int.from_bytes(tid[:4], "big"), int.from_bytes(tid[4:], "big")
    minute, hour, day = high % 60, high // 60 % 24, high // 1440 % 31 + 1
    month, year = high // 44640 % 12 + 1, high // 535680 + 1900
    seconds = calendar.timegm((year, month, day, hour, minute, 0))
    return seconds * 10**9 + (low * 60 * 10**9 >> 32)


class State:
    """A file as of a tid."""

    def __init__(self, file):
        file._p_activate()
        self.serial = file._p_serial
        self.entries = {}
        self.data = {}
        for block, zblk in file.blktab.items():
            zblk._p_activate()
            self.entries[block] = (zblk._p_oid, zblk._p_serial)
            self.data[block] = file.block(block).rstrip(b"\0")
        self.size = file.size()


class FileHistory:
    """States of one file, by tid."""

    def __init__(self, name, file, tid):
        self.name = name
        self.oid = file._p_oid
        self.block_size = file.blksize
        self.created = tid
        self._states = []
        # Tids at which a block changed, ascending.
        self._changes = {}

    @property
    def hex(self):
        """The object's name in a mount."""
        return tid_text(self.oid)

    def add(self, tid, file):
        """Takes up the state as of a tid later than all before."""
        state = State(file)
        old = self._states[-1][1].entries if self._states else {}
        for block in {*old, *state.entries}:
            if old.get(block) != state.entries.get(block):
                self._changes.setdefault(block, []).append(tid)
        self._states.append((tid, state))

    def at(self, tid):
        """The state as of a tid."""
        found = [state for of, state in self._states if of <= tid]
        if not found:
            raise AssertionError(f"{self.name} was not there at {tid_text(tid)}")
        return found[-1]

    def block(self, block, tid):
        """Bytes of a block, of full size; a hole is zeros."""
        return self.at(tid).data.get(block, b"").ljust(self.block_size, b"\0")

    def changes(self, block, after, until):
        """Tids at which a block changed, in (after, until]."""
        return [tid for tid in self._changes.get(block, []) if after < tid <= until]

    def all_changes(self, after, until):
        """Tids at which any block changed, in (after, until]."""
        return {tid for block in self._changes for tid in self.changes(block, after, until)}

    def revision(self, block, at, tail):
        """Where a block is to be pinned for a view as of `at`: its last change that a server knows whose history begins
        after `tail`. Without one: creation of the file, or `tail`, whichever is later."""
        known = self.changes(block, tail, at)
        return known[-1] if known else max(self.created, tail)


class History:
    """All files of a database."""

    def __init__(self, database):
        self._database = database
        self.tids = []
        self.files = {}

    def add(self, tid):
        """Takes up the transaction after those before."""
        with self._database.at(tid) as root:
            for name, file in files(root).items():
                if name not in self.files:
                    self.files[name] = FileHistory(name, file, tid)
                self.files[name].add(tid, file)
        self.tids.append(tid)

    def head(self):
        """The last tid."""
        return self.tids[-1]
