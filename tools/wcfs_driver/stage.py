"""A database, a server of it and what is known of both: each read, commit and watch is compared with what has to be.

Invariant: what is expected comes from `history`, which asks ZODB, and from the list of blocks that this process read.
A scenario may say by hand what pins it expects; then both must agree.
"""

import contextlib
import os
import random
import threading
import time

from database import Database
from objects import ZBigFile, ZBlk0, ZBlk1

from expect import LOOK, SOON, Failed, expect
from head_file import HeadFile
from history import History, tid_text, unix_nanoseconds
from link import Link
from server import Server

MIB = 1 << 20
BLOCK = 2 * MIB
# Another block size than that of wendelin.core.
SMALL = MIB // 16
# Cut of chunks of a ZBlk1.
CHUNK = 4096
FORMATS = {"ZBlk0": ZBlk0, "ZBlk1": ZBlk1}
# So many old blocks of one revision are found in the page cache, if nobody had it open before.
MOST_KEPT = 64


class Options:
    """What the command line gave."""

    def __init__(self, program, storage, seed):
        self.program = program
        self.storage = storage
        self.seed = seed


class Watch:
    """What is known of a watch: as of when, and where its blocks are pinned to."""

    def __init__(self, at):
        self.at = at
        self.pinned = {}


class Stage:
    """Where a scenario plays."""

    def __init__(self, options, folder):
        self.options = options
        self._ends = contextlib.ExitStack()
        self._folder = folder
        self.database = None
        self.history = None
        self.server = None
        # Head files of the server by oid, and links in the order in which they were opened.
        self._files = {}
        self.links = []
        # Where the history of the server begins, and what of it was looked at.
        self.tail = self.shown = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.server is not None and error[0] is not None and self.server.log():
            print(f"--- what the server wrote:\n{self.server.log()}---", flush=True)
        self._ends.close()

    def path(self, name):
        """A path in the scenario's folder."""
        return os.path.join(self._folder, name)

    def random(self):
        """Random numbers from the seed, which is said."""
        print(f"--seed {self.options.seed}", flush=True)
        return random.Random(self.options.seed)

    def at_end(self, action):
        """Something to be done at the end, whatever it is; the last one first."""
        self._ends.callback(action)

    # The database.

    def make_database(self, name="1.fs"):
        """An empty database with a root, through the storage that is chosen."""
        self.database = Database(self.path(name))
        self.at_end(self.database.close)
        self.zurl = f"file://{self.path(name)}"
        if self.options.storage == "zeo":
            self.zurl = f"zeo://{self.database.start_zeo()}"
        self.history = History(self.database)
        self.history.add(self.database.head())

    def make_file(self, name="zfile", block_size=BLOCK):
        """Commits a new file without blocks."""
        def create(root):
            root[name] = ZBigFile(block_size)
        self.commit_edit(create)
        return self.history.files[name]

    def commit(self, *changes, format="ZBlk0"):
        """Commits blocks of files, as (file, {block: text, or None for a hole}); the tid."""
        def edit(root):
            for file, blocks in changes:
                for block, text in blocks.items():
                    put(root[file.name], block, text, format)
        return self.commit_edit(edit)

    def commit_edit(self, edit):
        """Commits an edit of the root, takes it up and checks what the server makes of it; the tid."""
        tid = self.commit_unseen(edit)
        if self.server is not None:
            self.expect_caught_up()
        return tid

    def commit_unseen(self, edit):
        """Commits an edit, and asks nothing of the server yet; the tid."""
        tid = self.database.commit(edit)
        self.history.add(tid)
        return tid

    def expect_caught_up(self):
        """The server has taken up all commits since it was looked at last, and dropped what they changed."""
        before, head = self.shown, self.history.head()
        self.server.expect_head([tid for tid in self.history.tids if tid > before])
        self.shown = head
        for file in self._files.values():
            history = file.history
            changed = {block for block in file.cached if history.changes(block, before, head)}
            last = max(history.all_changes(before, head), default=None)
            if last is not None:
                file.expect_attributes(history.at(head).size, unix_nanoseconds(last))
            # What changed is gone, the rest stayed.
            file.cached -= changed
            file.expect_cached(f"after the commit @{tid_text(head)}")
            for block in sorted(changed)[:MOST_KEPT]:
                with self.rev_file(history, history.revision(block, before, self.tail)) as old:
                    # Behind the end of its file there is nothing that could be there.
                    if block * history.block_size < old.size:
                        old.expect_whole(block, "the old block, which was in the page cache of head")

    # The server.

    def spawn(self, *options, name="mnt"):
        """Starts a server of the database, with these options alone."""
        self.server = Server(self.options.program, self.zurl, self.path(name), options)
        self.at_end(self.server.clean)
        return self.server

    def start(self, *options, name="mnt"):
        """Starts a server of the database, and waits until it serves."""
        self.spawn("-debug", "-logtostderr", *options, name=name).wait_ready()
        self.server.follow()
        if self.history is not None:
            self.tail = self.shown = self.history.head()
            expect(tid_text(self.tail), self.server.at(), "head/at of a server that just started")
        self._files.clear()
        self.links.clear()
        return self.server

    def stop(self):
        """Ends the server, which goes cleanly."""
        for link in self.links:
            if link.is_open:
                link.bye()
        self.links.clear()
        self._files.clear()
        self.server.stop()
        self.server = None

    def open(self, history):
        """The file in head, opened; what it shows at first is checked."""
        file = HeadFile(self.server, history, self.history)
        self._files[history.oid] = file
        return file

    def rev_file(self, history, rev):
        """The file in `@<rev>`, to be used by `with`."""
        return contextlib.closing(HeadFile(self.server, history, self.history, rev))

    # Watches.

    def link(self):
        """A new watch link."""
        link = Link(self.server.root)
        self.server.open_things.append(link)
        self.links.append(link)
        return link

    def watch(self, link, history, at, pins=None):
        """Sets up or moves a watch. The pins are those that history gives, and, if given, these: {block: tid, or None
        for head}."""
        found = self._setup_pins(link, history, at)
        if pins is not None:
            expect(readable(pins), readable(found), "pins of the set-up: by hand, and by history")
        stream = link.send(f"watch {history.hex} @{tid_text(at)}")
        asked = expect_pins(link, {(history.oid, block): rev for block, rev in found.items()})
        if asked:
            link.settle()
            expect(False, link.has_reply(stream), "there is a reply before the pins are acknowledged")
        for number in reversed(asked):
            link.ack(number)
        expect("ok", link.reply(stream), f"the reply to watch {history.hex} @{tid_text(at)}")
        watch = link.watches.setdefault(history.oid, Watch(at))
        watch.at = at
        apply(watch, found)
        link.expect_silence("after a set-up")

    def unwatch(self, link, history):
        """Ends a watch."""
        expect("ok", link.ask(f"watch {history.hex} -"), "the reply to the end of a watch")
        link.watches.pop(history.oid, None)

    def _setup_pins(self, link, history, at):
        head = self.history.head()
        watch = link.watches.get(history.oid)
        pinned = watch.pinned if watch else {}
        file = self._files.get(history.oid)
        accessed = file.accessed if file else set()
        wanted = {
            block: history.revision(block, at, self.tail) for block in accessed if history.changes(block, at, head)
        }
        found = {block: rev for block, rev in wanted.items() if pinned.get(block) != rev}
        found.update(dict.fromkeys(pinned.keys() - wanted.keys()))
        return found

    def _access_pins(self, file, block):
        """Pins that a read of a block has to bring, by link."""
        history, head, found = file.history, self.history.head(), {}
        for link in self.links:
            watch = link.watches.get(history.oid)
            if watch is None or not link.is_open or not history.changes(block, watch.at, head):
                continue
            rev = history.revision(block, watch.at, self.tail)
            if watch.pinned.get(block) != rev:
                found[link] = rev
        return found

    def _join_read(self, toucher, what):
        """A read ends, without a pin that was not expected."""
        deadline = time.monotonic() + SOON
        while toucher.is_alive():
            toucher.join(LOOK)
            for link in self.links:
                expect([], link.unasked() if link.is_open else [], f"pins of {what}, for link {self.links.index(link)}")
            if time.monotonic() > deadline:
                raise Failed(f"{what} does not end")

    def access(self, file, block, pins=None):
        """Touches a block of head through memory. It is answered only once each watcher has pinned what it has to: by
        history, and, if given, these: {link: tid}."""
        is_read = block not in file.cached and block * file.block_size < file.size
        found = self._access_pins(file, block) if is_read else {}
        if pins is not None:
            expect(named(self.links, pins), named(self.links, found), "pins of the read: by hand, and by history")
        got = []
        toucher = threading.Thread(target=lambda: got.append(file.first_page(block)), daemon=True)
        toucher.start()
        asked = {link: expect_pins(link, {(file.history.oid, block): rev}) for link, rev in found.items()}
        for number, (link, streams) in enumerate(asked.items()):
            expect(True, toucher.is_alive(), f"the read waits for each pin, after {number} of {len(asked)} acks")
            for stream in streams:
                link.ack(stream)
        self._join_read(toucher, f"the read of block {block} of {file.history.name}")
        if not got:
            raise Failed(f"the read of block {block} of {file.history.name} failed")
        wanted = file.history.block(block, self.history.head())[:len(got[0])] if block * file.block_size < file.size \
            else b""
        expect(wanted, got[0], f"block {block} of {file.history.name} in head")
        for link, rev in found.items():
            link.watches[file.history.oid].pinned[block] = rev
        if is_read:
            file.note_read(block)
            file.expect_cached(f"after reading block {block}")
        for link in self.links:
            if link.is_open:
                link.expect_silence(f"after reading block {block}")


def put(file, block, text, format):
    """Makes a text the content of a block, in the object that is there if there is one; a hole for None."""
    if text is None:
        del file.blktab[block]
        return
    data = text if isinstance(text, bytes) else text.encode()
    cuts = list(range(0, max(len(data), 1), CHUNK))
    zblk = file.blktab.get(block)
    if isinstance(zblk, FORMATS[format]):
        zblk.put(data, cuts)
        return
    kind = FORMATS[format]
    zblk = kind(data) if kind is ZBlk0 else kind()
    if kind is ZBlk1:
        zblk.put(data, cuts)
    file.blktab[block] = zblk


def expect_pins(link, wanted):
    """The server asks for these pins, {(oid, block): tid or None}, in any order; their streams."""
    if not wanted:
        return []
    asked = link.requests(len(wanted))
    texts = sorted(text for _, text in asked)
    lines = sorted(
        f"pin {tid_text(oid)} #{block} @{'head' if rev is None else tid_text(rev)}"
        for (oid, block), rev in wanted.items())
    expect(lines, texts, "pins that the server asks for")
    return [stream for stream, _ in asked]


def apply(watch, pins):
    """Takes up pins that were acknowledged."""
    for block, rev in pins.items():
        if rev is None:
            del watch.pinned[block]
        else:
            watch.pinned[block] = rev


def readable(pins):
    """Pins by block, for people."""
    return {block: rev and tid_text(rev) for block, rev in sorted(pins.items())}


def named(links, pins):
    """Pins by the number of their link, for people."""
    return {f"link {links.index(link)}": tid_text(rev) for link, rev in pins.items()}
