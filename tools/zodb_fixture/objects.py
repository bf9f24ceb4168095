"""The persistent classes of files in ZODB, under the names that stand in records.

Invariant: what is pickled names `wendelin.bigfile.file_zodb.{ZBigFile,ZBlk0,ZBlk1,ZData}` and the stock classes of
BTrees, with these states: ZBigFile (block size, LOBTree), ZBlk0 and ZData bytes, ZBlk1 an IOBTree.
The modules are registered here, so that wendelin.core need not be installed; if it is, it is not used.
Databases of Python 2 are not read: ZODB on Python 3 refuses them.
"""

import hashlib
import sys
import types

from BTrees.IOBTree import IOBTree
from BTrees.LOBTree import LOBTree
from persistent import Persistent

MODULE = "wendelin.bigfile.file_zodb"


class ZBigFile(Persistent):
    """A file: blocks of `blksize` bytes, in a table from block number to ZBlk0 or ZBlk1. No entry is a hole."""

    def __init__(self, blksize):
        self.blksize = blksize
        self.blktab = LOBTree()

    def __getstate__(self):
        return (self.blksize, self.blktab)

    def __setstate__(self, state):
        self.blksize, self.blktab = state

    def size(self):
        """Bytes up to the end of the last block."""
        return (self.blktab.maxKey() + 1) * self.blksize if self.blktab else 0

    def block(self, number):
        """A block, filled up with zeros to its full size."""
        zblk = self.blktab.get(number)
        data = b"" if zblk is None else zblk.content()
        if len(data) > self.blksize:
            raise ValueError(f"block {number} has {len(data)} bytes, more than the block size {self.blksize}")
        return data + bytes(self.blksize - len(data))

    def sha(self, number):
        """SHA-256 of a block, as text."""
        return hashlib.sha256(self.block(number)).hexdigest()


def saved(thing):
    """Which revision of which object this is: it differs once the object was saved again."""
    thing._p_activate()
    return (thing._p_oid, thing._p_serial)


class Bytes(Persistent):
    """An object whose state is bytes without the zeros at their end."""

    def __init__(self, data):
        self.data = data

    def __getstate__(self):
        return self.data.rstrip(b"\0")

    def __setstate__(self, state):
        self.data = state


class ZBlk0(Bytes):
    """A block in one piece."""

    def content(self):
        """Bytes of the block, possibly without zeros at the end."""
        return self.data

    def revision(self):
        """Differs from an earlier one if anything of the block was saved since."""
        return saved(self)

    def put(self, data, _cuts):
        """Makes `data` the content."""
        self.data = data


class ZData(Bytes):
    """One chunk of a ZBlk1."""


class ZBlk1(Persistent):
    """A block in chunks, by their offsets."""

    def __init__(self):
        self.chunks = IOBTree()

    def __getstate__(self):
        return self.chunks

    def __setstate__(self, state):
        self.chunks = state

    def content(self):
        """Bytes of the block, possibly without zeros at the end."""
        out = bytearray()
        for offset, chunk in self.chunks.items():
            if offset < len(out):
                raise ValueError(f"chunk at {offset} lies before the end of the chunk before it, {len(out)}")
            out += bytes(offset - len(out)) + chunk.data
        return bytes(out)

    def revision(self):
        """Differs from an earlier one if anything of the block was saved since."""
        return (saved(self), saved(self.chunks), *((start, saved(chunk)) for start, chunk in self.chunks.items()))

    def put(self, data, cuts):
        """Makes `data` the content, in chunks that begin at `cuts` (ascending, from 0): saves itself and what differs."""
        wanted = {}
        for start, end in zip(cuts, [*cuts[1:], len(data)], strict=True):
            piece = data[start:end].rstrip(b"\0")
            if piece:
                wanted[start] = piece
        for offset in list(self.chunks):
            if offset not in wanted:
                del self.chunks[offset]
        for offset, piece in wanted.items():
            chunk = self.chunks.get(offset)
            if chunk is None:
                self.chunks[offset] = ZData(piece)
            elif chunk.data != piece:
                chunk.data = piece
        # As wendelin.core does: who follows changes looks at blocks, not at their chunks.
        self._p_changed = True


FORMATS = {"ZBlk0": ZBlk0, "ZBlk1": ZBlk1}


def register():
    """Puts the classes where pickles look for them."""
    parent = None
    name = ""
    for part in MODULE.split("."):
        name = f"{name}.{part}" if name else part
        module = types.ModuleType(name)
        module.__path__ = []
        sys.modules[name] = module
        if parent is not None:
            setattr(parent, part, module)
        parent = module
    for cls in (ZBigFile, ZBlk0, ZBlk1, ZData):
        cls.__module__ = MODULE
        setattr(parent, cls.__name__, cls)
    # The name that ZBlk0 had first.
    parent.ZBlk = ZBlk0


def limit_trees(leaf, inner):
    """Entries of a leaf and children of an inner node from which on trees are split; None leaves what BTrees has.

    Set on the stock classes, as a subclass would put its own name into records. It holds for this process.
    """
    for tree in (LOBTree, IOBTree):
        if leaf is not None:
            tree.max_leaf_size = leaf
        if inner is not None:
            tree.max_internal_size = inner


register()
