"""Random edits of the files of a database.

Invariant: what an `Editor` does depends on its seed, its options and the database alone, so that a seed replays.
Each edit takes the root and says whether it changed something.
"""

import re
from collections import Counter
from dataclasses import dataclass

from BTrees.LOBTree import LOBTree
from persistent.mapping import PersistentMapping

from objects import FORMATS, ZBigFile, ZBlk0, ZBlk1

# What is at this name in the root is an object that is no file.
NOT_A_FILE = "notfile"


@dataclass(frozen=True)
class Shape:
    """What a database is to be like."""

    files: int = 3
    block_size: int = 8192
    format: str = "mixed"


def files(root):
    """Files by name."""
    return {name: root[name] for name in sorted(root) if isinstance(root[name], ZBigFile)}


class Editor:
    """Edits a database at random. `done` counts how often each edit was made."""

    def __init__(self, rng, shape):
        self.rng = rng
        self.shape = shape
        self.done = Counter()
        self._deck = []
        self._next_name = 0

    def set_up(self, root):
        """All files but one, empty, and an object that is no file. The last file comes with a later edit."""
        root[NOT_A_FILE] = PersistentMapping()
        for _ in range(max(1, self.shape.files - 1)):
            self._create(root)

    def fill(self, root):
        """First blocks of each file."""
        for file in files(root).values():
            for number in range(self.rng.randint(5, 12)):
                self._put(file, number)

    def edit(self, root):
        """One to four edits from the deck, which has each kind: all of them come before one comes more often than its
        share."""
        left = self.rng.randint(1, 4)
        made = 0
        while left > 0:
            if not self._deck:
                self._deck = [kind for kind, share in KINDS for _ in range(share)]
                self.rng.shuffle(self._deck)
            if self._deck[-1] is Editor.touch_no_file and made:
                return
            kind = self._deck.pop()
            if kind(self, root):
                self.done[kind.__name__] += 1
                made += 1
                left -= 1
            if kind is Editor.touch_no_file:
                return

    def append(self, root):
        """A few blocks at the end."""
        file = self._any(root)
        return file is not None and self.append_to(file, self.rng.randint(1, 4))

    def append_to(self, file, count=1):
        """Blocks at the end of this file."""
        for _ in range(count):
            self._put(file, self._end(file))
        return True

    def append_after_hole(self, root):
        """A block behind some that are missing."""
        file = self._any(root)
        return file is not None and self._put(file, self._end(file) + self.rng.randint(1, 20))

    def write(self, root):
        """Blocks somewhere in a file: new content for what is there, or a hole filled."""
        file = self._any_filled(root)
        if file is None:
            return False
        for _ in range(self.rng.randint(1, 3)):
            self._put(file, self.rng.randrange(self._end(file)))
        return True

    def write_to(self, file, number):
        """Random data to this block."""
        return self._put(file, number)

    def patch(self, root):
        """A few bytes in a block that is there."""
        file, number = self._any_block(root)
        if file is None:
            return False
        data = bytearray(file.block(number))
        start = self.rng.randrange(len(data))
        data[start] = (data[start] + self.rng.randint(1, 255)) % 256
        file.blktab[number].put(bytes(data), self._cuts(file.blksize))
        return True

    def delete(self, root):
        """Some blocks become holes."""
        file = self._any_filled(root)
        if file is None:
            return False
        there = list(file.blktab)
        for number in self.rng.sample(there, min(len(there), self.rng.randint(1, 4))):
            del file.blktab[number]
        return True

    def truncate(self, root):
        """The last blocks go."""
        file = self._any_filled(root)
        if file is None:
            return False
        for number in list(file.blktab)[-self.rng.randint(1, 3):]:
            del file.blktab[number]
        return True

    def change_format(self, root):
        """A block is replaced by one of the other format, half of the time with the same content."""
        file, number = self._any_block(root)
        if file is None or self.shape.format != "mixed":
            return False
        other = ZBlk1 if isinstance(file.blktab[number], ZBlk0) else ZBlk0
        data = file.block(number) if self.rng.random() < 0.5 else self._data(file.blksize)
        file.blktab[number] = self._new(other, data, file.blksize)
        return True

    def share_in_file(self, root):
        """One block object gets a second place in its file."""
        file, number = self._any_block(root)
        if file is None:
            return False
        file.blktab[self.rng.randrange(self._end(file) + 2)] = file.blktab[number]
        return True

    def share_across_files(self, root):
        """One block object gets a place in another file."""
        file, number = self._any_block(root)
        if file is None:
            return False
        others = [other for other in files(root).values() if other is not file and other.blksize == file.blksize]
        if not others:
            return False
        other = self.rng.choice(others)
        other.blktab[self.rng.randrange(self._end(other) + 2)] = file.blktab[number]
        return True

    def create(self, root):
        """A file that was not there before, with a block or none."""
        if len(files(root)) >= self.shape.files:
            return False
        file = self._create(root)
        if self.rng.random() < 0.5:
            self._put(file, self.rng.randrange(3))
        return True

    def save_again(self, root):
        """An object of a file is saved as it was."""
        file, number = self._any_block(root)
        if file is None:
            return False
        zblk = file.blktab[number]
        objects = [file, file.blktab, zblk]
        if isinstance(zblk, ZBlk1):
            objects += [zblk.chunks, *zblk.chunks.values()]
        self.rng.choice(objects)._p_changed = True
        return True

    def empty(self, root):
        """A file loses all of its blocks; a later edit fills it again."""
        file = self._any_filled(root)
        if file is None:
            return False
        file.blktab.clear()
        self._deck.insert(max(0, len(self._deck) - 2), Editor.refill)
        return True

    def refill(self, root):
        """A file without blocks gets some."""
        candidates = [file for file in files(root).values() if not file.blktab]
        return bool(candidates) and self.append_to(self.rng.choice(candidates), self.rng.randint(1, 9))

    def empty_chunks(self, root):
        """A block loses all of its chunks, which makes it zeros."""
        blocks = [
            zblk for file in files(root).values() for zblk in file.blktab.values()
            if isinstance(zblk, ZBlk1) and zblk.chunks
        ]
        if not blocks:
            return False
        zblk = self.rng.choice(blocks)
        zblk.chunks.clear()
        # As wendelin.core does: who follows changes looks at blocks, not at their chunks.
        zblk._p_changed = True
        return True

    def new_table(self, root):
        """A file gets a new table with the same blocks."""
        file = self._any_filled(root)
        if file is None:
            return False
        file.blktab = LOBTree(file.blktab)
        return True

    def touch_no_file(self, root):
        """Only an object that is no file changes."""
        other = root.get(NOT_A_FILE)
        if other is None:
            root[NOT_A_FILE] = other = PersistentMapping()
        other["count"] = other.get("count", 0) + 1
        return True

    def _create(self, root):
        # A name is never used twice, even if its first file was undone: a manifest tells files apart by name.
        used = [int(match[1]) for match in map(re.compile(r"zfile(\d+)").fullmatch, root) if match]
        self._next_name = max([self._next_name, *(number + 1 for number in used)])
        file = root[f"zfile{self._next_name}"] = ZBigFile(self.shape.block_size)
        self._next_name += 1
        return file

    def _any(self, root):
        there = list(files(root).values())
        return self.rng.choice(there) if there else None

    def _any_filled(self, root):
        there = [file for file in files(root).values() if file.blktab]
        return self.rng.choice(there) if there else None

    def _any_block(self, root):
        file = self._any_filled(root)
        return (None, None) if file is None else (file, self.rng.choice(list(file.blktab)))

    @staticmethod
    def _end(file):
        return file.blktab.maxKey() + 1 if file.blktab else 0

    def _put(self, file, number):
        """Random data to a block: mostly into the object that is there."""
        zblk = file.blktab.get(number)
        data = self._data(file.blksize)
        if zblk is not None and self.rng.random() < 0.8:
            zblk.put(data, self._cuts(file.blksize))
        else:
            name = self.shape.format if self.shape.format in FORMATS else self.rng.choice(list(FORMATS))
            file.blktab[number] = self._new(FORMATS[name], data, file.blksize)
        return True

    def _new(self, kind, data, blksize):
        if kind is ZBlk0:
            return ZBlk0(data)
        zblk = ZBlk1()
        zblk.put(data, self._cuts(blksize))
        return zblk

    def _cuts(self, blksize):
        """Where chunks begin: mostly each eighth of a block, 4 KiB at most; sometimes anywhere."""
        if self.rng.random() < 0.8:
            return list(range(0, blksize, max(1, min(4096, blksize // 8))))
        inside = range(1, blksize)
        return [0, *sorted(self.rng.sample(inside, min(len(inside), self.rng.randint(0, 9))))]

    def _data(self, blksize):
        """Content of a block: full, short, with a run of zeros in it, or nothing but zeros. Always of full size."""
        length = self.rng.choice([blksize, blksize, self.rng.randint(0, blksize), self.rng.randint(0, blksize), 0])
        data = bytearray(self.rng.randbytes(length))
        if length and self.rng.random() < 0.3:
            start = self.rng.randrange(length)
            data[start:start + blksize // 4] = bytes(len(data[start:start + blksize // 4]))
        return bytes(data) + bytes(blksize - len(data))


# Each kind of edit with its share of the deck.
KINDS = [
    (Editor.append, 3),
    (Editor.append_after_hole, 1),
    (Editor.write, 5),
    (Editor.patch, 3),
    (Editor.delete, 2),
    (Editor.truncate, 1),
    (Editor.change_format, 2),
    (Editor.share_in_file, 1),
    (Editor.share_across_files, 1),
    (Editor.create, 1),
    (Editor.save_again, 2),
    (Editor.empty, 1),
    (Editor.empty_chunks, 1),
    (Editor.new_table, 1),
    (Editor.touch_no_file, 1),
]
