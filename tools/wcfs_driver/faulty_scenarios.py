"""Clients that break the rules: the server is rid of them in time, and serves the others meanwhile."""

import os
import signal
import subprocess
import sys
import threading
import time

from expect import Failed, expect, wait_until
from history import tid_text
from posix_memory import PAGE
from scenario import scenario
from stage import expect_pins

TIMEOUT = 3.0
HERE = os.path.dirname(os.path.abspath(__file__))
# Each fault, how a client is called that does it, and whether it is killed for it.
FAULTS = {
    "never_read": ("never_reads_its_link", True),
    "never_answer": ("never_answers", True),
    "leave": ("leaves_instead_of_an_answer", False),
    "close_link": ("closes_its_link_instead_of_an_answer", True),
    "refuse": ("answers_nak", True),
}


class FaultyClient:
    """The process."""

    def __init__(self, stage, file, at, fault):
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "faulty_client.py"), stage.server.root, file.hex, tid_text(at), fault],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._died = None
        self._watcher = threading.Thread(target=self._await_death, daemon=True)
        self._watcher.start()
        stage.at_end(self._end)
        self.expect("asked")

    def _await_death(self):
        # It stays a zombie.
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        self._died = time.monotonic()

    def _end(self):
        self.process.kill()
        self._watcher.join()
        with self.process:
            pass

    def expect(self, line):
        """The next line that it says."""
        expect(line, self.process.stdout.readline().rstrip("\n"), "what the faulty client says")

    def tell(self, line):
        """Tells it what to do."""
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def died(self):
        """When it ended, if it did."""
        return self._died


def check_end(stage, client, fault, began):
    """It is dead, by whom it has to be, in time, and counted if it was killed."""
    is_killed = FAULTS[fault][1]
    wait_until(lambda: client.died() is not None, f"the end of a client that {FAULTS[fault][0]}", 2 * TIMEOUT)
    took = client.died() - began
    stage.server.expect_stats(f"after a client that {FAULTS[fault][0]}", WatchLink=len(stage.links),
                              pinkill=int(is_killed))
    if took > 2 * TIMEOUT:
        raise Failed(f"a client that {FAULTS[fault][0]} goes after {took:.1f} s, and not within {2 * TIMEOUT} s")
    expect(-signal.SIGBUS if is_killed else 0, client.process.wait(), f"how a client ends that {FAULTS[fault][0]}")


def in_time(began, what):
    """Whatever waited went on in time."""
    took = time.monotonic() - began
    if took >= 2 * TIMEOUT:
        raise Failed(f"{what} takes {took:.1f} s, and not less than {2 * TIMEOUT} s")


def fault_on_watch(stage, fault):
    """The pin is one of the set-up of its watch."""
    stage.make_database()
    zfile = stage.make_file()
    stage.commit((zfile, {1: "b1", 2: "c1"}))
    server = stage.start("-pintimeout", f"{TIMEOUT}s")
    at = stage.history.head()
    file = stage.open(zfile)
    stage.access(file, 2)
    stage.commit((zfile, {2: "c2"}))
    client = FaultyClient(stage, zfile, at, fault)
    began = time.monotonic()
    if fault == "never_read":
        client.tell("at once")
    else:
        client.expect(f"pinned 2 pin {zfile.hex} #2 @{tid_text(at)}")
    # Somebody else is served meanwhile, also with the same block.
    link = stage.link()
    stage.watch(link, zfile, at, {2: at})
    stage.access(file, 1, {})
    stage.access(file, 2, {})
    in_time(began, "the watch of another client")
    check_end(stage, client, fault, began)
    # And later ones, too.
    stage.commit((zfile, {1: "b3", 2: "c3"}))
    stage.access(file, 1, {link: at})
    stage.access(file, 2, {})
    server.expect_stats("at the end", WatchLink=1, Watch=1, PinnedBlk=2, pinkill=int(FAULTS[fault][1]))


def fault_on_access(stage, fault):
    """The pin is one of a read by somebody else."""
    stage.make_database()
    zfile = stage.make_file()
    stage.commit((zfile, {1: "b1", 2: "c1"}))
    server = stage.start("-pintimeout", f"{TIMEOUT}s")
    at = stage.history.head()
    file = stage.open(zfile)
    link = stage.link()
    stage.watch(link, zfile, at, {})
    client = FaultyClient(stage, zfile, at, fault)
    if fault == "never_read":
        client.tell("later")
    client.expect("watching 1 ok")
    stage.commit((zfile, {2: "c2"}))
    began = time.monotonic()
    # The read waits for both clients, one of another block for none.
    got = []
    reader = threading.Thread(target=lambda: got.append(file.first_page(2)), daemon=True)
    reader.start()
    [stream] = expect_pins(link, {(zfile.oid, 2): at})
    link.ack(stream)
    if fault != "never_read":
        client.expect(f"pinned 2 pin {zfile.hex} #2 @{tid_text(at)}")
    expect(zfile.block(1, at)[:PAGE], file.first_page(1), "another block, meanwhile")
    in_time(began, "a read of another block")
    reader.join(2 * TIMEOUT)
    if reader.is_alive():
        raise Failed(f"a read of the block waits longer than {2 * TIMEOUT} s for a client that {FAULTS[fault][0]}")
    in_time(began, "a read of the block")
    expect([zfile.block(2, stage.history.head())[:PAGE]], got, "the block")
    link.watches[zfile.oid].pinned[2] = at
    check_end(stage, client, fault, began)
    for block in (1, 2):
        file.note_read(block)
    file.expect_cached("after both reads")
    stage.access(file, 2, {})
    stage.commit((zfile, {2: "c3"}))
    stage.access(file, 2, {})
    server.expect_stats("at the end", WatchLink=1, Watch=1, PinnedBlk=1, pinkill=int(FAULTS[fault][1]))


def define(play, fault, when):
    """One scenario."""
    def run(stage):
        play(stage, fault)
    words, is_killed = FAULTS[fault]
    run.__name__ = f"a_client_that_{words}_{when}_is_{'killed_in_time' if is_killed else 'not_counted_as_killed'}"
    scenario(run)


for _fault in FAULTS:
    define(fault_on_watch, _fault, "when_it_sets_a_watch_up")
    define(fault_on_access, _fault, "when_another_reads")
