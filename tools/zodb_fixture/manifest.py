"""What is in each file at each tid, read through ZODB.

Invariant: nothing here knows how a database was written; each tid is read anew, as of that tid.
"""

import hashlib

import ZODB
from ZODB.FileStorage import FileStorage
from persistent import Persistent

from database import FixtureError, root_at, tid_text
from edits import files


class FileHistory:
    """What was seen of one file."""

    def __init__(self, file):
        self.oid = file._p_oid
        self.block_size = file.blksize
        self.formats = set()
        self.size = 0
        # Content and revision by number.
        self.blocks = {}

    def format(self):
        """Name of the format of its blocks, `mixed` for several, `-` for none."""
        if len(self.formats) > 1:
            return "mixed"
        return min(self.formats, default="-")


def tids(storage):
    """Tids that can be read, ascending. Of what is packed that is the last one: before it objects are missing."""
    found = []
    for record in storage.iterator():
        if record.status == "p":
            found.clear()
        found.append(record.tid)
    return found


def lines(path):
    """Lines of the manifest of a database."""
    storage = FileStorage(path, read_only=True)
    db = ZODB.DB(storage)
    try:
        histories, others, body = {}, {}, []
        for tid in tids(storage):
            with root_at(db, tid) as root:
                others.update(not_files(root))
                body.append((tid, changes(root, tid, histories)))
    finally:
        db.close()
    for block_size in sorted({history.block_size for history in histories.values()}):
        yield f"hole {hashlib.sha256(bytes(block_size)).hexdigest()}"
    for name, history in histories.items():
        yield f"file {name} {tid_text(history.oid)} {history.format()} {history.block_size}"
    for oid in sorted(others):
        yield f"notfile {tid_text(oid)}"
    # What comes before the first block of all only sets the database up.
    while body and not body[0][1]:
        body.pop(0)
    for number, (tid, changed) in enumerate(body, 1):
        yield f"tid {number} {tid_text(tid)}"
        yield from changed


def not_files(root):
    """Objects in the root that are no files. A name that begins with _ is left out: it is of the tool that wrote it."""
    there = files(root)
    return {
        value._p_oid: name for name, value in root.items()
        if isinstance(value, Persistent) and name not in there and not name.startswith("_")
    }


def changes(root, tid, histories):
    """Lines for what differs from the histories, which are brought up to this tid."""
    there = files(root)
    for name, file in there.items():
        history = histories.setdefault(name, FileHistory(file))
        if (history.oid, history.block_size) != (file._p_oid, file.blksize):
            raise FixtureError(f"{name} is another file or has other blocks since {tid_text(tid)}")
    sizes, blocks = [], []
    for name, history in histories.items():
        file = there.get(name)
        size = 0 if file is None else file.size()
        if size != history.size:
            sizes.append(f"size {tid_text(tid)} {name} {size}")
        table = {} if file is None else file.blktab
        history.formats.update(type(zblk).__name__ for zblk in table.values())
        hole = hashlib.sha256(bytes(history.block_size)).hexdigest()
        now = {number: (file.sha(number), zblk.revision()) for number, zblk in table.items()}
        for number in sorted({*now, *history.blocks}):
            state = now.get(number, (hole, None))
            if state != history.blocks.get(number, (hole, None)):
                blocks.append(f"blk {tid_text(tid)} {name} {number} {state[0]}")
        history.size, history.blocks = size, now
    return sizes + blocks
