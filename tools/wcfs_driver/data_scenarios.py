"""What files show, and what of them is in the page cache."""

import errno
import os
import stat

from expect import expect, expect_errno
from history import tid_text, unix_nanoseconds
from persistent.timestamp import TimeStamp
from scenario import scenario
from stage import BLOCK, SMALL


def read_all(stage, history, rev):
    """All blocks of a file under a revision are as ZODB has them."""
    with stage.rev_file(history, rev) as file:
        size = history.at(rev).size
        for block in range(size // history.block_size):
            expect(history.block(block, rev), file.read(block), f"block {block} of {history.name} @{tid_text(rev)}")
        expect(b"", os.pread(file.fd, 100, size), f"a read at the end of {history.name} @{tid_text(rev)}")


@scenario
def commits_are_seen_in_head_and_stay_under_their_revisions(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.start()
    file = stage.open(zfile)
    expect(0, file.size, "the size of a file without blocks")
    file.expect_cached("at first")
    stage.commit((zfile, {2: "c1"}))
    for block in (2, 0):
        stage.access(file, block)
    stage.commit((zfile, {2: "c2"}))
    expect({0}, file.cached, "blocks that the scenario believes to be in the page cache")
    stage.access(file, 2)
    stage.commit((zfile, {2: "c3", 3: "d3"}))
    for block in (1, 2, 3):
        stage.access(file, block)
    stage.commit((zfile, {0: "a4", 5: "f4"}))
    for block in range(6):
        stage.access(file, block)
    for rev in stage.history.tids[stage.history.tids.index(zfile.created):]:
        read_all(stage, zfile, rev)


@scenario
def a_file_that_was_filled_before_the_server_started_is_followed(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.commit((zfile, {0: "a1", 1: "b1", 3: "d1"}))
    stage.commit((zfile, {1: "b2"}))
    stage.start()
    file = stage.open(zfile)
    for block in (0, 1):
        stage.access(file, block)
    stage.commit((zfile, {1: "b3"}))
    expect({0}, file.cached, "blocks that the scenario believes to be in the page cache")
    stage.commit((zfile, {0: "a4", 3: "d4"}))
    for block in range(4):
        stage.access(file, block)
    stage.stop()
    # Once more, with all in the past.
    stage.start()
    file = stage.open(zfile)
    for block in range(4):
        stage.access(file, block)
    for rev in stage.history.tids[stage.history.tids.index(zfile.created):]:
        read_all(stage, zfile, rev)


@scenario
def blocks_in_chunks_are_dropped_and_kept_as_those_in_one_piece(stage):
    stage.make_database()
    zfile = stage.make_file()
    text = b"".join(bytes([65 + number]) * 4096 for number in range(6))
    stage.commit((zfile, {0: text, 1: text, 2: text}), format="ZBlk1")
    stage.start()
    file = stage.open(zfile)
    for block in range(3):
        stage.access(file, block)
    # One chunk of a block changes.
    stage.commit((zfile, {1: text[:4096] + b"x" * 4096 + text[8192:]}), format="ZBlk1")
    expect({0, 2}, file.cached, "blocks that the scenario believes to be in the page cache")
    stage.access(file, 1)
    # A block gets an object of the other kind, with the same bytes.
    stage.commit((zfile, {2: text}), format="ZBlk0")
    expect({0, 1}, file.cached, "blocks that the scenario believes to be in the page cache")
    stage.access(file, 2)
    # A block loses all of its chunks.
    stage.commit((zfile, {0: b""}), format="ZBlk1")
    expect({1, 2}, file.cached, "blocks that the scenario believes to be in the page cache")
    stage.access(file, 0)
    read_all(stage, zfile, stage.history.head())


@scenario
def a_hole_that_becomes_data_is_dropped_alone(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.commit((zfile, {3: "d1"}))
    stage.start()
    file = stage.open(zfile)
    for block in range(4):
        stage.access(file, block)
    stage.commit((zfile, {1: "b2"}))
    expect({0, 2, 3}, file.cached, "blocks that the scenario believes to be in the page cache")
    stage.access(file, 1)
    # And back.
    stage.commit((zfile, {1: None}))
    expect({0, 2, 3}, file.cached, "blocks that the scenario believes to be in the page cache")
    stage.access(file, 1)


@scenario
def a_page_anywhere_in_a_block_brings_all_of_it_and_nothing_else(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.commit((zfile, {block: f"block {block}" for block in range(5)}))
    stage.start()
    file = stage.open(zfile)
    # In the part where the kernel reads nothing ahead: the rest comes from the server.
    for block, offset in ((3, BLOCK - 4096), (1, BLOCK // 2 + 8192), (0, 4096)):
        expect(bytes(4096), file.page(block, offset), f"the page at {offset} of block {block}")
        file.note_read(block)
        file.expect_cached(f"after reading a page of block {block}")


@scenario
def blocks_of_other_sizes_are_served_too(stage):
    stage.make_database()
    small = stage.make_file("small", SMALL)
    other = stage.make_file("other", 8 * BLOCK)
    odd = stage.make_file("odd", 3 * SMALL)
    stage.commit((small, {0: "a", 2: "c"}), (other, {1: "b"}), (odd, {0: "x"}))
    server = stage.start()
    for history in (small, other):
        stage.open(history)
        read_all(stage, history, stage.history.head())
    file = stage.open(small)
    got = [os.pread(file.fd, SMALL, block * SMALL) for block in range(3)]
    expect([small.block(block, stage.history.head()) for block in range(3)], got, "blocks of 64 KiB in head")
    # A size that is no power of two is an error of that file, which is said.
    expect_errno([errno.EIO], lambda: os.stat(server.path(f"head/bigfile/{odd.hex}")), "a file of odd blocks")
    expect(True, f"file {odd.hex}" in server.log() and str(3 * SMALL) in server.log(), "the log names file and size")


@scenario
def reads_at_and_behind_the_end_are_empty(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.start()
    file = stage.open(zfile)

    def read(length, offset):
        return os.pread(file.fd, length, offset)

    expect(b"", read(4096, 0), "a read of an empty file")
    expect(b"", read(4096, 100 * BLOCK), "a read far behind the end of an empty file")
    stage.commit((zfile, {2: "c1"}))
    size = 3 * BLOCK
    expect(b"", read(100, size), "a read at the end")
    expect(b"", read(100, size + 1), "a read behind the end")
    expect(b"", read(100, size + 100 * BLOCK), "a read far behind the end")
    file.expect_cached("after reads behind the end")
    expect(bytes(50), read(100, size - 50), "a read over the end is cut at the end")
    got = read(2 * BLOCK, 2 * BLOCK)
    expect(zfile.block(2, stage.history.head()), got, "a read of more than there is")


@scenario
def a_file_that_becomes_shorter_is_served_on(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.commit((zfile, {0: "a1", 2: "c1", 5: "f1"}))
    stage.start()
    file = stage.open(zfile)
    for block in (0, 2, 5):
        stage.access(file, block)
    stage.commit((zfile, {5: None}))
    expect({0, 2}, file.cached, "blocks that the scenario believes to be in the page cache")
    expect(b"", os.pread(file.fd, 100, 3 * BLOCK), "a read of what is gone")
    stage.commit((zfile, {0: None, 2: None}))
    expect(0, file.size, "the size of a file that lost all")
    stage.commit((zfile, {5: "f4"}))
    for block in range(6):
        stage.access(file, block)
    for rev in stage.history.tids[stage.history.tids.index(zfile.created):]:
        read_all(stage, zfile, rev)


@scenario
def names_that_are_none_are_refused_by_the_right_error(stage):
    stage.make_database()
    zfile = stage.make_file()
    born = stage.commit((zfile, {0: "a1"}))
    server = stage.start()
    stage.open(zfile)
    first = stage.history.tids[0]
    root_object = "0" * 16

    def refused(error, below):
        expect_errno([error], lambda: os.stat(server.path(below)), f"stat of {below}")

    for below in ("x", "@", "@xyz", "@0123", f"@{tid_text(born)}0", f"@{tid_text(born)[:-1]}g", "bigfile", ".wcf"):
        refused(errno.EINVAL, below)
    for folder in ("head", f"@{tid_text(born)}"):
        for name in ("zzz", "0", f"{zfile.hex}0", f"{zfile.hex[:-1]}x", "f" * 16, "0000000000ffffff", root_object):
            refused(errno.EINVAL, f"{folder}/bigfile/{name}")
    for below in ("head/x", "head/bigfiles", ".wcfs/x", ".wcfs/debug/x", f"@{tid_text(born)}/x"):
        refused(errno.ENOENT, below)
    # There are no such in the past.
    for below in (f"@{tid_text(born)}/at", f"@{tid_text(born)}/watch"):
        refused(errno.ENOENT, below)
    # States before the file, and before all.
    for rev in (first, b"\0" * 7 + b"\1", b"\0" * 8):
        expect(True, stat.S_ISDIR(os.stat(server.path(f"@{tid_text(rev)}")).st_mode), f"@{tid_text(rev)} is a folder")
        refused(errno.EINVAL, f"@{tid_text(rev)}/bigfile/{zfile.hex}")
    expect(16, len(server.at()), "the server lives")


@scenario
def a_state_of_the_future_is_there_as_soon_as_head_is(stage):
    stage.make_database()
    zfile = stage.make_file()
    head = stage.commit((zfile, {0: "a1"}))
    server = stage.start()
    # No transaction has this tid, but it is a state once there is a later one.
    future = (int.from_bytes(head, "big") + 1).to_bytes(8, "big")
    path = server.path(f"@{tid_text(future)}/bigfile/{zfile.hex}")
    expect_errno([errno.ENOENT], lambda: os.stat(path), "a state of the future")
    stage.commit((zfile, {0: "a2", 1: "b2"}))
    expect(BLOCK, os.stat(path).st_size, "size of the file as of a state that has come")
    with open(path, "rb") as file:
        expect(b"a1", file.read(2), "bytes as of that state")


@scenario
def the_tree_has_the_modes_and_sizes_of_its_kind(stage):
    stage.make_database()
    zfile = stage.make_file()
    rev = stage.commit((zfile, {0: "a1"}))
    server = stage.start("-pintimeout", "3.5s")
    stage.open(zfile)

    def check(below, kind, mode, size):
        status = os.stat(server.path(below))
        expect((kind, oct(mode)), (stat.S_IFMT(status.st_mode), oct(stat.S_IMODE(status.st_mode))), f"mode of /{below}")
        expect((os.getuid(), os.getgid()), (status.st_uid, status.st_gid), f"owner of /{below}")
        if size is not None:
            expect(size, status.st_size, f"size of /{below}")

    for below, mode in (("", 0o755), ("head", 0o555), ("head/bigfile", 0o755), (f"@{tid_text(rev)}", 0o555),
                        (f"@{tid_text(rev)}/bigfile", 0o755), (".wcfs", 0o755)):
        check(below, stat.S_IFDIR, mode, None)
    check("head/at", stat.S_IFREG, 0o644, 16)
    # WCFS says 0. Writes run beside each other only up to the end of a file.
    check("head/watch", stat.S_IFREG, 0o644, 4096)
    check(f"head/bigfile/{zfile.hex}", stat.S_IFREG, 0o444, BLOCK)
    check(f"@{tid_text(rev)}/bigfile/{zfile.hex}", stat.S_IFREG, 0o444, BLOCK)
    check(".wcfs/zurl", stat.S_IFREG, 0o644, len(os.fsencode(server.zurl)))
    check(".wcfs/stats", stat.S_IFREG, 0o644, None)
    with open(server.path(".wcfs/pintimeout")) as timeout:
        expect("3.5", timeout.read().strip(), ".wcfs/pintimeout")
    whole = os.statvfs(server.root)
    expect((BLOCK, BLOCK, 255), (whole.f_bsize, whole.f_frsize, whole.f_namemax), "block sizes and length of names")
    with open(server.path("head/at"), "rb", buffering=0) as at:
        expect([b"", b"", b"", tid_text(rev)[4:].encode()],
               [os.pread(at.fileno(), 100, offset) for offset in (16, 17, 1 << 40, 4)],
               "reads of head/at at and behind its end")
    for below in (f"head/bigfile/{zfile.hex}", "head/new"):
        expect_errno([errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.ENOENT],
                     lambda below=below: os.open(server.path(below), os.O_RDWR | os.O_CREAT),
                     f"/{below} is opened for writing")


@scenario
def a_file_of_a_revision_has_the_time_of_its_object(stage):
    stage.make_database()
    zfile = stage.make_file()
    rev = stage.commit((zfile, {0: "a1"}))
    stage.start()
    later = stage.commit((zfile, {0: "a2"}))
    for at in (zfile.created, rev, later):
        with stage.rev_file(zfile, at) as file:
            file.expect_time(unix_nanoseconds(zfile.created))


@scenario
def times_are_those_of_tids(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.start()
    file = stage.open(zfile)
    file.expect_time(unix_nanoseconds(zfile.created))
    for number in range(5):
        tid = stage.commit((zfile, {number: f"block {number}"}))
        # Two ways to the same time.
        expect(True, abs(TimeStamp(tid).timeTime() - unix_nanoseconds(tid) / 1e9) < 1e-5, f"time of @{tid_text(tid)}")
    # What is no change of the file does not change its time.
    stage.commit_edit(lambda root: root.__setitem__("other", 1))
    file.expect_time(unix_nanoseconds(stage.history.tids[-2]))
