"""Pins: which blocks, when, and where to."""

import itertools
import os
import threading

from expect import SOON, expect
from history import tid_text
from objects import limit_trees
from posix_memory import PAGE, Memory
from scenario import scenario
from stage import BLOCK, SMALL, expect_pins, put


def changing(stage):
    """A file with five commits of it, the first of them before the server starts: its blocks are read at all times.

    0: never changed, read; 1: a hole, read; 2: changed by each, read at the end; 3: changed once, last read before
    that; 4: appears; 5: changes, never read; 6: becomes a hole.
    """
    stage.make_database()
    zfile = stage.make_file()
    tids = [stage.commit((zfile, {0: "a0", 2: "c0", 3: "d0", 5: "f0", 6: "g0"}))]
    stage.start()
    file = stage.open(zfile)
    for block in (0, 1, 2, 3, 6):
        stage.access(file, block, {})
    tids.append(stage.commit((zfile, {2: "c1"})))
    stage.access(file, 2, {})
    tids.append(stage.commit((zfile, {2: "c2", 3: "d2", 5: "f2"})))
    tids.append(stage.commit((zfile, {2: "c3", 4: "e3", 6: None, 7: "h3"})))
    stage.access(file, 4, {})
    tids.append(stage.commit((zfile, {2: "c4", 4: "e4"})))
    for block in (2, 4):
        stage.access(file, block, {})
    return zfile, file, tids


@scenario
def a_set_up_pins_what_was_read_and_changed_since(stage):
    zfile, _, (t0, t1, t2, t3, t4) = changing(stage)
    wanted = {
        t0: {2: t0, 3: t0, 4: t0, 6: t0},
        t1: {2: t1, 3: t0, 4: t0, 6: t0},
        t2: {2: t2, 4: t0, 6: t0},
        t3: {2: t3, 4: t3},
        t4: {},
    }
    for at, pins in wanted.items():
        link = stage.link()
        stage.watch(link, zfile, at, pins)
        stage.server.expect_stats(f"with a watch @{tid_text(at)}", Watch=1, PinnedBlk=len(pins))
        # As it is, once more: all is pinned already.
        stage.watch(link, zfile, at, {})
        link.bye()


@scenario
def a_watch_that_moves_pins_and_unpins_what_differs(stage):
    zfile, _, tids = changing(stage)
    for count in range(2, len(tids) + 1):
        for sequence in itertools.combinations(tids, count):
            link = stage.link()
            for at in sequence:
                stage.watch(link, zfile, at)
            link.bye()
    # The unchanged client's: from each state straight to the last, by hand.
    link = stage.link()
    t0, t1, t2, t3, t4 = tids
    stage.watch(link, zfile, t0, {2: t0, 3: t0, 4: t0, 6: t0})
    stage.watch(link, zfile, t1, {2: t1})
    stage.watch(link, zfile, t2, {2: t2, 3: None})
    stage.watch(link, zfile, t3, {2: t3, 4: t3, 6: None})
    stage.watch(link, zfile, t4, {2: None, 4: None})
    stage.server.expect_stats("when all is at head", Watch=1, PinnedBlk=0, pinkill=0)


@scenario
def a_read_pins_for_each_watch_that_is_older(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.start()
    file = stage.open(zfile)
    at1 = stage.commit((zfile, {2: "c1", 3: "d1"}))
    at2 = stage.commit((zfile, {2: "c2", 3: "d2", 5: "f2"}))
    at3 = stage.commit((zfile, {0: "a3", 2: "c3", 5: "f3"}))
    w1, w2, w3 = stage.link(), stage.link(), stage.link()
    stage.watch(w1, zfile, at1, {})
    stage.watch(w2, zfile, at2, {})
    stage.watch(w3, zfile, at3, {})
    stage.access(file, 2, {w1: at1, w2: at2})
    stage.access(file, 3, {w1: at1})
    # A block without a change before is pinned to where history or the file begins.
    born = max(zfile.created, stage.tail)
    stage.access(file, 5, {w1: born, w2: at2})
    stage.access(file, 0, {w1: born, w2: born})
    # Neither a hole nor what is in memory pins.
    stage.access(file, 4, {})
    for block in (0, 2, 3, 5):
        stage.access(file, block, {})
    stage.server.expect_stats("with three watches", WatchLink=3, Watch=3, PinnedBlk=7, pin=7)
    # Once pinned, always pinned: another change brings a message only to whom it is new.
    at4 = stage.commit((zfile, {2: "c4"}))
    stage.access(file, 2, {w3: at3})
    # A watch that moved: what is equal is unpinned.
    stage.watch(w1, zfile, at3, {0: None, 2: at3, 3: None, 5: None})
    stage.watch(w2, zfile, at4, {0: None, 2: None, 5: None})
    stage.watch(w1, zfile, at4, {2: None})
    # One that ended is told nothing, nor is a link that said bye.
    stage.unwatch(w2, zfile)
    w3.bye()
    stage.commit((zfile, {2: "c5", 3: "d5"}))
    stage.access(file, 2, {w1: at4})
    stage.access(file, 3, {w1: at2})
    # It may begin anew, also at a state before.
    stage.watch(w2, zfile, at3, {2: at3, 3: at2})
    stage.server.expect_stats("at the end", WatchLink=2, Watch=2, PinnedBlk=4, pinkill=0)


@scenario
def a_mapping_that_is_moved_while_a_fault_waits_shows_the_old_block(stage):
    stage.make_database()
    zfile = stage.make_file()
    at1 = stage.commit((zfile, {2: "hello"}))
    server = stage.start()
    file = stage.open(zfile)
    link = stage.link()
    stage.watch(link, zfile, at1, {})
    stage.commit((zfile, {2: "world"}))
    memory = Memory(BLOCK, file.fd, 2 * BLOCK)
    got = []
    toucher = threading.Thread(target=lambda: got.append(memory.copy(0, 5)), daemon=True)
    toucher.start()
    [number] = expect_pins(link, {(zfile.oid, 2): at1})
    expect(True, toucher.is_alive(), "the fault waits for the pin")
    old = os.open(server.path(f"@{tid_text(at1)}/bigfile/{zfile.hex}"), os.O_RDONLY)
    memory.show_file(0, BLOCK, old, 2 * BLOCK)
    os.close(old)
    link.ack(number)
    toucher.join(SOON)
    expect([b"hello"], got, "what the thread reads whose fault waited")
    expect(b"hello", memory.copy(0, 5), "what memory shows from then on")
    memory.unmap()
    # Who did not move sees what is new, and nobody is asked again.
    expect(b"world", file.first_page(2)[:5], "the block in head")
    link.expect_silence("after the block was pinned")


@scenario
def a_block_that_is_evicted_and_read_again_is_not_pinned_twice(stage):
    stage.make_database()
    zfile = stage.make_file()
    at1 = stage.commit((zfile, {2: "c1"}))
    stage.start()
    file = stage.open(zfile)
    stage.commit((zfile, {2: "c2"}))
    link = stage.link()
    stage.watch(link, zfile, at1, {})
    stage.access(file, 2, {link: at1})
    for _ in range(3):
        file.evict(2)
        stage.access(file, 2, {})
    stage.server.expect_stats("of one block", PinnedBlk=1, pin=1)


@scenario
def an_answer_to_a_pin_of_a_watch_that_ended_is_ignored(stage):
    stage.make_database()
    zfile = stage.make_file()
    at1 = stage.commit((zfile, {2: "c1"}))
    stage.start("-pintimeout", "3s")
    file = stage.open(zfile)
    link = stage.link()
    stage.watch(link, zfile, at1, {})
    stage.commit((zfile, {2: "c2"}))
    got = []
    reader = threading.Thread(target=lambda: got.append(file.first_page(2)), daemon=True)
    reader.start()
    [stream] = expect_pins(link, {(zfile.oid, 2): at1})
    stage.unwatch(link, zfile)
    reader.join(SOON)
    expect([zfile.block(2, stage.history.head())[:PAGE]], got, "what is read once the watch ended that owed a pin")
    file.note_read(2)
    link.write(f"{stream} nak: the file is not open\n".encode())
    link.expect_silence("after a late answer")
    stage.server.expect_stats("after a late answer", WatchLink=1, Watch=0, PinnedBlk=0, pinkill=0)
    # The link goes on.
    stage.watch(link, zfile, at1, {2: at1})


@scenario
def a_link_goes_on_without_the_thread_that_opened_it(stage):
    stage.make_database()
    zfile = stage.make_file()
    at1 = stage.commit((zfile, {2: "c1"}))
    stage.start("-pintimeout", "3s")
    file = stage.open(zfile)
    opener = threading.Thread(target=stage.link)
    opener.start()
    opener.join()
    [link] = stage.links
    stage.watch(link, zfile, at1, {})
    stage.commit((zfile, {2: "c2"}))
    stage.access(file, 2, {link: at1})
    stage.server.expect_stats("of a link whose thread ended", Watch=1, PinnedBlk=1, pinkill=0)


@scenario
def hundreds_of_pins_are_owed_at_once_and_acknowledged_in_any_order(stage):
    stage.make_database()
    zfile = stage.make_file(block_size=SMALL)
    count = 300
    at1 = stage.commit((zfile, {block: f"{block}.1" for block in range(count)}))
    stage.start()
    file = stage.open(zfile)
    for block in range(0, count, 2):
        expect(zfile.block(block, at1)[:PAGE], file.first_page(block), f"block {block}")
        file.note_read(block)
    file.expect_cached("after reading each second block")
    stage.commit((zfile, {block: f"{block}.2" for block in range(count)}))
    link = stage.link()
    stage.watch(link, zfile, at1, dict.fromkeys(range(0, count, 2), at1))
    stage.server.expect_stats("with many pins", PinnedBlk=count // 2)
    stage.watch(link, zfile, stage.history.head(), dict.fromkeys(range(0, count, 2)))


@scenario
def two_files_on_one_link_are_watched_each_for_itself(stage):
    stage.make_database()
    first = stage.make_file("first")
    stage.commit((first, {0: "a1", 2: "c1"}))
    stage.start()
    file1 = stage.open(first)
    # It comes after the server did.
    second = stage.make_file("second")
    at2 = stage.commit((first, {0: "a2", 2: "c2"}), (second, {0: "A2", 3: "D2"}))
    file2 = stage.open(second)
    link = stage.link()
    stage.watch(link, first, at2, {})
    stage.watch(link, second, at2, {})
    at3 = stage.commit((first, {0: "a3"}), (second, {0: "A3", 3: "D3"}))
    stage.access(file1, 0, {link: at2})
    stage.access(file2, 0, {link: at2})
    stage.access(file1, 2, {})
    # One moves, the other stays.
    stage.watch(link, first, at3, {0: None})
    stage.access(file2, 3, {link: at2})
    stage.commit((first, {0: "a4", 2: "c4"}), (second, {0: "A4"}))
    stage.access(file1, 0, {link: at3})
    stage.access(file1, 2, {link: at2})
    stage.access(file2, 0, {})
    stage.unwatch(link, first)
    stage.server.expect_stats("of two files", BigFile=2, WatchLink=1, Watch=1, PinnedBlk=2, pinkill=0)
    stage.watch(link, second, stage.history.head(), {0: None, 3: None})


@scenario
def one_file_on_many_links_is_watched_as_of_many_states(stage):
    zfile, file, tids = changing(stage)
    links = [stage.link() for _ in tids]
    for link, at in zip(links, tids, strict=True):
        stage.watch(link, zfile, at)
    stage.commit((zfile, {block: f"block {block}" for block in (0, 1, 2, 3, 5)}))
    for block in range(8):
        stage.access(file, block)
    head = stage.history.head()
    for link in reversed(links):
        stage.watch(link, zfile, head)
    stage.server.expect_stats("when all are at head", Watch=len(tids), PinnedBlk=0, pinkill=0)


@scenario
def a_block_whose_leaf_of_the_tree_is_split_is_not_changed(stage):
    """The path to a block is saved again for another block's sake: that is no change of the block."""
    limit_trees(3, 3)
    stage.at_end(lambda: limit_trees(60, 500))
    stage.make_database()
    zfile = stage.make_file()
    at1 = stage.commit((zfile, {block: f"{block}.1" for block in range(0, 16, 2)}))
    stage.start()
    file = stage.open(zfile)
    for block in range(0, 6):
        stage.access(file, block)
    links = [stage.link()]
    stage.watch(links[0], zfile, at1, {})
    for round in range(4):
        tid = stage.commit((zfile, {2 * round + 1: f"new {round}", 16 + round: "end"}))
        link = stage.link()
        links.append(link)
        stage.watch(link, zfile, tid)
        for block in range(16):
            stage.access(file, block)


@scenario
def an_object_that_two_blocks_and_two_files_share_changes_all_of_them(stage):
    stage.make_database()
    first, second = stage.make_file("first"), stage.make_file("second")
    at1 = stage.commit((first, {0: "a1", 1: "b1"}), (second, {0: "A1"}))

    def share(root):
        one = root["first"].blktab[1]
        root["first"].blktab[3] = one
        root["second"].blktab[2] = one
    stage.commit_unseen(share)
    stage.start()
    at2 = stage.history.head()
    files = {history: stage.open(history) for history in (first, second)}
    for history, blocks in ((first, (0, 1, 3)), (second, (0, 2))):
        for block in blocks:
            stage.access(files[history], block)
    link = stage.link()
    stage.watch(link, first, at2, {})
    stage.watch(link, second, at2, {})
    at3 = stage.commit_edit(lambda root: put(root["first"], 1, "both", "ZBlk0"))
    stage.access(files[first], 1, {link: at2})
    stage.access(files[second], 2, {link: at2})
    stage.access(files[first], 3, {link: at2})
    # The object is moved out of one of its places, then it changes again.

    def move(root):
        root["first"].blktab[3] = root["first"].blktab[0]
    at4 = stage.commit_edit(move)
    stage.watch(link, first, at4)
    stage.watch(link, second, at4)
    stage.commit_edit(lambda root: put(root["second"], 2, "again", "ZBlk0"))
    stage.access(files[second], 2, {link: at3})
    stage.access(files[first], 1, {link: at3})
    stage.access(files[first], 3, {})
    stage.commit_edit(lambda root: put(root["first"], 0, "zero", "ZBlk0"))
    stage.access(files[first], 0)
    stage.access(files[first], 3, {link: at4})
    expect(True, at1 < at2, "tids ascend")
