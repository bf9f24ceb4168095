"""What the server cannot go on with, and what it must not fall over."""

import errno
import os

from BTrees.LOBTree import LOBTree

import data_scenarios
from expect import expect
from history import tid_text
from objects import ZBlk0
from persistent.mapping import PersistentMapping
from scenario import scenario
from server import expect_dead, fusermount

WORDS = ("zwatcher failed", "switching filesystem to EIO mode")


def expect_failed(stage):
    """The server ends, says why, and nobody is shown anything any more."""
    server = stage.server
    expect(True, server.wait_end() != 0, "a server that cannot follow ends with an error")
    log = server.log()
    for words in WORDS:
        expect(True, words in log, f"{words!r} is on stderr")
    expect_dead(server)
    server.abandon()
    fusermount(server.root, "-z")
    stage.server = None


@scenario
def an_epoch_of_a_file_in_use_ends_all(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.commit((zfile, {0: "a1", 2: "c1"}))
    stage.start()
    file = stage.open(zfile)
    stage.access(file, 2)
    stage.commit_unseen(lambda root: setattr(root[zfile.name], "blktab", LOBTree()))
    expect_failed(stage)
    # The next one serves what is there now.
    stage.start()
    stage.open(zfile)


@scenario
def another_block_size_of_a_file_in_use_ends_all(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.commit((zfile, {0: "a1"}))
    stage.start()
    file = stage.open(zfile)
    stage.access(file, 0)
    stage.commit_unseen(lambda root: setattr(root[zfile.name], "blksize", zfile.block_size // 2))
    expect_failed(stage)


@scenario
def what_was_committed_before_the_server_started_is_read_dropped_and_pinned(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.commit((zfile, {0: "a1", 1: "b1", 3: "d1"}))
    stage.commit((zfile, {0: "a2"}))
    stage.start()
    at = stage.history.head()
    file = stage.open(zfile)
    for block in (0, 1, 2):
        stage.access(file, block)
    # History knows nothing of them, yet.
    stage.commit((zfile, {0: "a3", 2: "c3"}))
    link = stage.link()
    stage.watch(link, zfile, at, {0: at, 2: at})
    stage.access(file, 1, {})
    stage.commit((zfile, {1: "b4", 3: "d4"}))
    stage.access(file, 1, {link: at})
    stage.access(file, 3, {link: at})
    data_scenarios.read_all(stage, zfile, at)


@scenario
def an_object_that_is_no_block_is_an_error_for_that_block_alone(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.commit((zfile, {0: "a1", 1: "b1", 2: "c1"}))

    def damage(root):
        table = root[zfile.name].blktab
        table[1] = PersistentMapping()
        table[2] = ZBlk0(bytes(zfile.block_size) + b"more than a block")

    stage.database.commit(damage)
    # History cannot be asked: ZODB refuses such a block, too.
    server = stage.spawn("-debug", "-logtostderr")
    server.wait_ready()
    fd = os.open(server.path(f"head/bigfile/{zfile.hex}"), os.O_RDONLY)
    stage.at_end(lambda: os.close(fd))
    expect(b"a1", os.pread(fd, 2, 0), "a good block")
    for block in (1, 2):
        try:
            os.pread(fd, 4096, block * zfile.block_size)
        except OSError as error:
            expect(errno.EIO, error.errno, f"the error of block {block}")
        else:
            expect("an error", "bytes", f"what a read of block {block} gives")
    expect(b"a1", os.pread(fd, 2, 0), "a good block afterwards")
    expect(tid_text(stage.database.head()), server.at(), "head/at")
    # Ended by hand, since there is no history to compare with.
    stage.server = None
