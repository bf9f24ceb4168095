"""An open file of a mount and the state of its page cache, which is looked at block by block.

Invariant: what gets into the page cache stays there (mlock on fault), and what the kernel reads ahead of a touched page
stays inside the block: so what is cached and what is not is exactly what was read, stored and dropped.
"""

import os
import time

import posix_memory
from expect import LOOK, CacheFailed, expect
from history import tid_text

PAGE = posix_memory.PAGE
# Blocks beyond the end that are mapped too, as the file may grow.
SPARE_BLOCKS = 8
# How long the server may take to put the rest of a block into the page cache.
STORE_SECONDS = 5
# So few pages of a block are taken for lost; a server that does not store blocks leaves more.
MOST_LOST = 16
# Bytes of a block from which on half of it holds what the kernel may read ahead.
LARGE = 1 << 20


class HeadFile:
    """A file in `head`, or in `@<rev>` if one is given."""

    def __init__(self, server, history, all_history, rev=None):
        self.history = history
        self.block_size = history.block_size
        folder = "head" if rev is None else f"@{tid_text(rev)}"
        self.path = server.path(f"{folder}/bigfile/{history.hex}")
        self.fd = os.open(self.path, os.O_RDONLY)
        if rev is None:
            server.open_things.append(self)
        self.size = os.fstat(self.fd).st_size
        self._what = f"{history.name} in {folder}"
        # Blocks that are in the page cache, and that were ever read.
        self.cached = set()
        self.accessed = set()
        self._locked = set()
        state = history.at(rev or all_history.head())
        expect(state.size, self.size, f"size of {self._what}")
        expect(self.block_size, os.fstat(self.fd).st_blksize, f"st_blksize of {self._what}")
        self._blocks = self.size // self.block_size + SPARE_BLOCKS
        self._memory = posix_memory.Memory(self._blocks * self.block_size, self.fd)
        self._memory.lock_as_it_comes()
        # Small ones would not hold what the kernel reads ahead.
        half = self.block_size // 2 if self.block_size >= LARGE else 0
        for block in range(self._blocks):
            start = block * self.block_size
            if half:
                self._memory.advise(start, half, posix_memory.MADV_SEQUENTIAL)
            self._memory.advise(start + half, self.block_size - half, posix_memory.MADV_RANDOM)

    def close(self):
        """Closes and unmaps it."""
        if self.fd is not None:
            self._memory.unmap()
            os.close(self.fd)
            self.fd = None

    def expect_time(self, nanoseconds):
        """Both times are this, to a microsecond."""
        status = os.fstat(self.fd)
        for name, got in (("mtime", status.st_mtime_ns), ("ctime", status.st_ctime_ns)):
            if abs(got - nanoseconds) > 1000:
                expect(nanoseconds, got, f"{name} of {self._what}")

    def expect_attributes(self, size, nanoseconds):
        """The first fstat after a commit has all of it."""
        status = os.fstat(self.fd)
        expect(size, status.st_size, f"size of {self._what} after a commit")
        self.size = size
        self.expect_time(nanoseconds)

    def first_page(self, block):
        """Bytes of the first page of a block, through memory; empty beyond the end, where memory has nothing."""
        if block * self.block_size >= self.size:
            return b""
        return self._memory.try_copy(block * self.block_size, PAGE)

    def page(self, block, offset):
        """Bytes of one page of a block, through memory."""
        return self._memory.try_copy(block * self.block_size + offset, PAGE)

    def note_read(self, block):
        """A read of it was answered."""
        self.accessed.add(block)
        self.cached.add(block)
        self._locked.discard(block)

    def read(self, block):
        """All bytes of a block, by a system call."""
        parts, start = [], block * self.block_size
        while (got := sum(map(len, parts))) < self.block_size:
            part = os.pread(self.fd, self.block_size - got, start + got)
            if not part:
                break
            parts.append(part)
        return b"".join(parts)

    def pages(self, block):
        """How many pages of a block are in the page cache."""
        return sum(self._memory.pages_present(block * self.block_size, self.block_size))

    def absent(self, block):
        """Numbers of pages of a block that are not in the page cache."""
        present = self._memory.pages_present(block * self.block_size, self.block_size)
        return [number for number, is_there in enumerate(present) if not is_there]

    def _state(self):
        all_pages = self.block_size // PAGE
        states = {block: self.pages(block) for block in range(self._blocks)}
        return {block: "all" if pages == all_pages else pages for block, pages in states.items() if pages}

    def expect_cached(self, what):
        """Exactly these blocks are in the page cache, each as a whole: what was read comes soon, what was dropped is
        gone already."""
        wanted = dict.fromkeys(sorted(self.cached), "all")
        if set(wanted) != set(got := self._state()):
            raise CacheFailed(what, f"blocks of {self._what} that are in the page cache", set(wanted), set(got))
        deadline = time.monotonic() + STORE_SECONDS
        next_touch = time.monotonic() + STORE_SECONDS / 5
        while (got := self._state()) != wanted:
            if time.monotonic() > next_touch:
                self._touch_lost_pages(self.cached)
                next_touch = deadline
            if time.monotonic() > deadline:
                got = {block: f"{pages}, without {self.absent(block)}" for block, pages in got.items()}
                raise CacheFailed(what, f"pages of blocks of {self._what} in the page cache", wanted, got)
            time.sleep(LOOK)
        # What the server put there is locked, too, once it is mapped.
        for block in self.cached - self._locked:
            self._memory.populate(block * self.block_size, self.block_size)
        self._locked = set(self.cached)

    def _touch_lost_pages(self, blocks):
        """Touches what is absent of blocks, if that is few single pages: some machines lose such pages of any file now
        and then. It is said; the server has to bring them again."""
        lost = {block: pages for block in blocks if (pages := self.absent(block))}
        if lost and max(map(len, lost.values())) <= MOST_LOST:
            print(f"pages of {self._what} got lost and are touched again, by block: {lost}", flush=True)
            for block, pages in lost.items():
                for page in pages:
                    self.page(block, page * PAGE)

    def expect_whole(self, block, what):
        """All of a block is in the page cache."""
        wanted = self.block_size // PAGE
        if wanted != self.pages(block):
            self._touch_lost_pages([block])
        if wanted != (got := self.pages(block)):
            raise CacheFailed(what, f"pages of block {block} of {self._what}", wanted, got)

    def evict(self, block):
        """Drops a block from the page cache, as the kernel does that needs memory."""
        start = block * self.block_size
        self._memory.unlock(start, self.block_size)
        self._memory.advise(start, self.block_size, posix_memory.MADV_DONTNEED)
        os.posix_fadvise(self.fd, start, self.block_size, os.POSIX_FADV_DONTNEED)
        self._memory.lock_part(start, self.block_size)
        expect(0, self.pages(block), f"pages of block {block} of {self._what} after they were evicted")
        self.cached.discard(block)
        self._locked.discard(block)
        self._locked.discard(block)
