"""A client that keeps its state while others commit: what its memory shows."""

import os
import random
import select
import threading

from client import ClientError, Connection
from expect import SOON, Failed, expect
from history import tid_text
from scenario import scenario
from stage import BLOCK

LENGTH = 4096


def connect(stage, at):
    """A connection as of a state, which is closed before the mount goes."""
    connection = Connection(stage.server.root, at)
    stage.server.open_things.append(connection)
    return connection


def check(history, view, at, blocks):
    """Memory shows blocks as of a state; zeros behind its end."""
    for block in blocks:
        expect(history.block(block, at)[:LENGTH], view.bytes(block, LENGTH), f"block {block} @{tid_text(at)} in memory")


@scenario
def memory_of_a_client_shows_its_state_and_moves_forward(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.start()
    at1 = stage.commit((zfile, {2: "c1", 3: "d1"}))
    at2 = stage.commit((zfile, {2: "c2"}))
    connection = connect(stage, at1)
    file = connection.open(zfile)
    view = file.map(1, 5)
    behind = file.map(10, 2)
    check(zfile, view, at1, range(1, 6))
    expect({2: at1}, file.pinned, "what is pinned")
    check(zfile, behind, at1, (10, 11))
    # Others commit, and the file grows.
    at3 = stage.commit((zfile, {2: "c3", 3: "d3", 5: "f3", 11: "m3"}))
    check(zfile, view, at1, range(1, 6))
    check(zfile, behind, at1, (10, 11))
    connection.resync(at2)
    check(zfile, view, at2, range(1, 6))
    check(zfile, behind, at2, (10, 11))
    connection.resync(at3)
    check(zfile, view, at3, range(1, 6))
    check(zfile, behind, at3, (10, 11))
    expect({}, file.pinned, "what is pinned at head")
    # A second one at an older state, and one more mapping of the first.
    older = connect(stage, at2)
    check(zfile, older.open(zfile).map(0, 12), at2, range(12))
    check(zfile, file.map(2, 4), at3, range(2, 6))
    for one in (connection, older):
        one.close()
    stage.server.expect_stats("when clients are closed", WatchLink=0, Watch=0, PinnedBlk=0, pinkill=0)


@scenario
def what_is_closed_cannot_be_read_and_the_rest_can(stage):
    stage.make_database()
    first, second = stage.make_file("first"), stage.make_file("second")
    at = stage.commit((first, {0: "a1"}), (second, {0: "A1"}))
    stage.start()
    connection, other = connect(stage, at), connect(stage, at)
    file1, file2, file3 = connection.open(first), connection.open(second), other.open(first)
    view1, view2, view3 = (file.map(0, 2) for file in (file1, file2, file3))
    expect(True, connection.open(first) is file1, "a second open gives the same file")
    file1.close()
    check(first, view1, at, (0,))
    file1.close()
    expect(False, view1.can_read(0), "what is closed can be read")
    for history, view in ((second, view2), (first, view3)):
        check(history, view, at, (0, 1))
    try:
        file1.close()
    except ClientError as error:
        expect("file already closed", str(error), "the error of a second close")
    # It is opened anew; the old memory stays dead.
    again = connection.open(first).map(0, 2)
    check(first, again, at, (0,))
    expect(False, view1.can_read(0), "old memory of a file that is opened anew")
    stage.commit((first, {0: "a2"}))
    check(first, again, at, (0,))
    connection.close()
    expect((False, False), (again.can_read(0), view2.can_read(0)), "whether memory of a closed connection can be read")
    check(first, view3, at, (0,))
    other.close()
    stage.server.expect_stats("when clients are closed", WatchLink=0, Watch=0, PinnedBlk=0, pinkill=0)


@scenario
def a_child_of_a_client_sees_nothing_and_does_not_disturb_it(stage):
    stage.make_database()
    zfile = stage.make_file()
    at = stage.commit((zfile, {0: "a1", 1: "b1", 2: "c1"}))
    stage.start()
    connection = connect(stage, at)
    view = connection.open(zfile).map(0, 4)
    check(zfile, view, at, range(4))
    stage.commit((zfile, {0: "a2"}))
    check(zfile, view, at, range(4))
    with Child(connection, view) as child:
        expect("no no no no", child.says(), "whether the child can read each block")
        # Its parent goes on, and is the one that is asked.
        tid = stage.commit((zfile, {0: "a3", 1: "b3"}))
        check(zfile, view, at, range(4))
        stage.server.expect_stats("with a child", WatchLink=1, Watch=1, PinnedBlk=2, pinkill=0)
        connection.resync(tid)
        check(zfile, view, tid, range(4))
    stage.commit((zfile, {2: "c4"}))
    check(zfile, view, tid, range(4))
    stage.server.expect_stats("when the child is gone", WatchLink=1, Watch=1, PinnedBlk=1, pinkill=0)
    connection.close()
    stage.server.expect_stats("when the client is closed", WatchLink=0, Watch=0, PinnedBlk=0, pinkill=0)


class Child:
    """A fork of this process, which has no thread but one. It ends with this."""

    def __init__(self, connection, view):
        self._answers, answers = os.pipe()
        waits, self._end = os.pipe()
        self._pid = os.fork()
        if self._pid != 0:
            os.close(answers)
            os.close(waits)
            return
        # Nothing of the interpreter's end may happen here.
        try:
            os.close(self._end)
            connection.after_fork()
            can_read = " ".join("yes" if view.can_read(block) else "no" for block in range(view.count))
            os.write(answers, can_read.encode())
            os.read(waits, 1)
        finally:
            os._exit(0)

    def says(self):
        """What it found."""
        ready, _, _ = select.select([self._answers], [], [], SOON)
        return os.read(self._answers, 100).decode() if ready else "nothing"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        os.close(self._end)
        os.waitpid(self._pid, 0)
        os.close(self._answers)


@scenario
def a_client_that_goes_back_is_refused_and_ends(stage):
    stage.make_database()
    zfile = stage.make_file()
    at1 = stage.commit((zfile, {0: "a1"}))
    stage.start()
    at2 = stage.commit((zfile, {0: "a2"}))
    connection = connect(stage, at2)
    view = connection.open(zfile).map(0, 1)
    check(zfile, view, at2, (0,))
    try:
        connection.resync(at1)
    except ClientError as error:
        expect(f"error setup watch f{zfile.hex} @{tid_text(at1)}: going back in history is forbidden", str(error),
               "the error of a client that goes back")
    else:
        raise Failed("a client can go back")
    expect(False, view.can_read(0), "memory of a connection that ended")
    stage.server.expect_stats("after a client that went back", WatchLink=0, Watch=0, pinkill=0)


@scenario
def a_client_of_an_old_state_reads_all_blocks_while_others_commit(stage):
    """Random commits, clients that stay or move, and readers of head, all at once."""
    stage.make_database()
    zfile = stage.make_file(block_size=256 << 10)
    at = stage.commit((zfile, {block: f"{block} at first" for block in range(0, 12, 2)}))
    stage.start()
    rng = stage.random()
    clients = []
    for number in range(3):
        connection = connect(stage, at)
        clients.append((connection, connection.open(zfile).map(0, 16)))
    is_done, errors = threading.Event(), []
    readers = [threading.Thread(target=keep_reading, args=(zfile, client, rng.randrange(2**32), is_done, errors),
                                daemon=True) for client in clients[:2]]
    for reader in readers:
        reader.start()
    try:
        for round in range(60):
            blocks = {rng.randrange(16): f"round {round} {rng.random()}" for _ in range(rng.randint(1, 4))}
            tid = stage.commit((zfile, blocks))
            connection, view = clients[2]
            if round % 4 == 0:
                connection.resync(tid)
            check(zfile, view, connection.at, rng.sample(range(16), 4))
    finally:
        is_done.set()
        for reader in readers:
            reader.join()
    expect([], errors, "what readers of an old state saw")
    for connection, view in clients:
        check(zfile, view, connection.at, range(16))
        connection.close()
    stage.server.expect_stats("when clients are closed", WatchLink=0, Watch=0, PinnedBlk=0, pinkill=0)


def keep_reading(history, client, seed, is_done, errors):
    """Reads blocks of a client's memory again and again."""
    connection, view = client
    rng = random.Random(seed)
    try:
        while not is_done.is_set():
            check(history, view, connection.at, [rng.randrange(16)])
    except Failed as error:
        errors.append(str(error))


@scenario
def many_files_and_mappings_of_one_client_move_together(stage):
    stage.make_database()
    all_files = [stage.make_file(f"file{number}") for number in range(4)]
    tids = [stage.commit(*((history, {0: "0", 1: "1", 2: "2"}) for history in all_files))]
    stage.start()
    connection = connect(stage, tids[0])
    views = {history: connection.open(history).map(0, 4) for history in all_files}
    for round in range(6):
        tids.append(stage.commit(*((history, {round % 4: f"round {round} of {history.name}"})
                                   for number, history in enumerate(all_files) if (round + number) % 2)))
        for history, view in views.items():
            check(history, view, tids[max(0, round - 1)] if round else tids[0], range(4))
        connection.resync(tids[max(0, round)])
        for history, view in views.items():
            check(history, view, tids[round], range(4))
    connection.close()
    expect(4 * BLOCK, max(history.at(tids[-1]).size for history in all_files), "size of the longest file")
