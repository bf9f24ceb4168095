"""Checks of this tool itself, against databases that it makes and, if they are there, against some that it did not.

Invariant: each check compares with something that does not come from the code it checks: another process, a second
way to read, or a manifest that others made.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import ZODB
from BTrees.check import check as check_tree
from BTrees.LOBTree import LOBTree
from ZODB.FileStorage import FileStorage
from ZODB.utils import get_pickle_metadata

from database import FixtureError, root_at
from edits import KINDS, Editor, files
from objects import MODULE

HERE = Path(__file__).resolve().parent
REAL = HERE.parent.parent / "../shared/data/zodb"
SECONDS = 60
END_SECONDS = 15
SMALL = ["--leaf", "3", "--inner", "2", "--block-size", "2048", "--undo-every", "8"]
CLASSES = {
    *((MODULE, name) for name in ("ZBigFile", "ZBlk0", "ZBlk1", "ZData")),
    *((f"BTrees.{kind}BTree", f"{kind}{form}") for kind in ("LO", "IO") for form in ("BTree", "Bucket")),
    ("persistent.mapping", "PersistentMapping"),
}


def run():
    """All checks; the first that fails is raised."""
    signal.signal(signal.SIGALRM, timed_out)
    signal.alarm(SECONDS)
    folder = Path(tempfile.mkdtemp(prefix="zodb-fixture-"))
    try:
        check_replay(folder)
        check_records(folder / "one.fs")
        check_serve(folder)
        check_orphans(folder)
        check_real(folder)
    finally:
        signal.alarm(0)
        shutil.rmtree(folder)


def timed_out(*_):
    """The whole test took too long."""
    raise FixtureError(f"the test was not done after {SECONDS} s")


def expect(truth, what):
    """Fails with what was expected."""
    if not truth:
        raise FixtureError(f"selftest: expected that {what}")


def tool(*arguments):
    """Lines that this tool prints, in a process of its own."""
    command = [sys.executable, str(HERE), *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()


def without_tids(lines):
    """A manifest in which transactions have numbers instead of tids."""
    numbers = {line.split()[2]: line.split()[1] for line in lines if line.startswith("tid ")}
    return [" ".join(numbers.get(word, word) for word in line.split()) for line in lines]


def check_replay(folder):
    """A seed gives the same edits and the same manifest but for tids, another seed gives others."""
    made = {name: tool("make", folder / name, "--seed", seed, "--commits", 90, *SMALL)
            for name, seed in [("one.fs", 7), ("again.fs", 7), ("other.fs", 8)]}
    one, again, other = (tool("manifest", folder / name) for name in made)
    expect(tool("manifest", folder / "one.fs") == one, "a manifest is the same twice")
    expect(without_tids(again) == without_tids(one), "a seed replays to the same manifest but for tids")
    expect(without_tids(other) != without_tids(one), "another seed gives another manifest")
    edits = [[line for line in lines if line.startswith("edit ")] for lines in made.values()]
    expect(edits[0] == edits[1] != edits[2], "a seed replays to the same edits")
    for kind in [*(kind for kind, _ in KINDS), Editor.refill]:
        expect(any(line.split()[1] == kind.__name__ for line in edits[0]), f"{kind.__name__} was among the edits")
    expect(any(line.startswith("tid 90 ") for line in one), "all 90 commits are in the manifest")
    print(f"ok: a seed replays, {len(one)} lines of manifest")


def depth(tree):
    """Levels of a BTree, its buckets included."""
    state = tree.__getstate__()
    if state is None or len(state) == 1:
        return 1
    child = state[0][0]
    return 1 + (depth(child) if isinstance(child, LOBTree) else 1)


def check_records(path):
    """Records name the right classes and no others; trees are deep; undo made back pointers; blocks are shared."""
    classes, pointers = set(), 0
    storage = FileStorage(str(path), read_only=True)
    db = ZODB.DB(storage)
    try:
        tids = []
        for transaction in storage.iterator():
            tids.append(transaction.tid)
            for record in transaction:
                pointers += record.data_txn is not None
                if record.data is not None:
                    classes.add(get_pickle_metadata(record.data))
        expect(classes == CLASSES, f"records have the classes {sorted(CLASSES)}: they have {sorted(classes)}")
        expect(pointers > 0, "undo made back pointers")
        deepest, shared_inside, shared_across = 0, 0, 0
        for tid in tids[1:]:
            with root_at(db, tid) as root:
                seen = set()
                for file in files(root).values():
                    file.blktab._check()
                    check_tree(file.blktab)
                    deepest = max(deepest, depth(file.blktab))
                    oids = [zblk._p_oid for zblk in file.blktab.values()]
                    shared_inside += len(oids) > len(set(oids))
                    shared_across += not seen.isdisjoint(oids)
                    seen.update(oids)
    finally:
        db.close()
    expect(deepest >= 4, f"trees have 4 levels: the deepest has {deepest}")
    expect(shared_inside and shared_across, "files share blocks, inside and with others")
    print(f"ok: the classes of records, {deepest} levels of trees, {pointers} back pointers")


class Driver:
    """`serve` in a process of its own."""

    def __init__(self, path, *options):
        command = [sys.executable, str(HERE), "serve", str(path), *map(str, options)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        expect(self._answer().startswith("seed "), "the first line says the seed")
        expect(self._answer().startswith("ready "), "the second line says that it is ready")

    def _answer(self):
        return self.process.stdout.readline().rstrip("\n")

    def ask(self, command, start):
        """What follows `start` in the answer to a command."""
        self.process.stdin.write(f"{command}\n")
        answer = self._answer()
        expect(answer.startswith(start), f"{command} is answered by {start}...: {answer}")
        return answer[len(start):].strip()


@contextlib.contextmanager
def driver(path, *options):
    """A driver that ends, whatever the end is."""
    started = Driver(path, *options)
    try:
        yield started
    finally:
        with started.process as process:
            try:
                # The end of its input lets it end its ZEO server first.
                process.stdin.close()
                process.wait(END_SECONDS)
            except (OSError, subprocess.TimeoutExpired):
                process.kill()


def states(lines):
    """Sizes and SHA-256 of blocks by file as of each tid of a manifest, and SHA-256 of a hole."""
    sizes, blocks, found, hole = {}, {}, {}, None
    for words in map(str.split, lines):
        if words[0] == "hole":
            hole = words[1]
        elif words[0] == "size":
            sizes[words[2]] = int(words[3])
        elif words[0] == "blk":
            blocks[words[2], int(words[3])] = words[4]
        if words[0] in ("tid", "size", "blk"):
            found[words[2] if words[0] == "tid" else words[1]] = (dict(sizes), dict(blocks))
    return found, hole


def compare(asked, path, tids):
    """What the driver reads at these tids is what the manifest of another process says."""
    found, hole = states(tool("manifest", path))
    compared = 0
    for tid in tids:
        sizes, blocks = found[tid]
        for pair in asked.ask(f"files {tid}", "files").split():
            name = pair.split("=")[0]
            size = sizes.get(name, 0)
            expect(asked.ask(f"size {name} {tid}", "size ") == str(size), f"{name} has {size} bytes at {tid}")
            for number in range(size // 1024 + 1):
                sha = asked.ask(f"sha {name} {tid} {number}", "sha ")
                expect(sha == blocks.get((name, number), hole), f"block {number} of {name} at {tid} is as listed")
                compared += 1
    return compared


def greeting(path):
    """The first message of a server at a socket."""
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(END_SECONDS)
        server.connect(path)
        with server.makefile("rb") as stream:
            return stream.read(int.from_bytes(stream.read(4), "big"))


def check_serve(folder):
    """Answers, directly and through ZEO, agree with the manifest; undo brings back what was; a pack keeps the head."""
    path = folder / "served.fs"
    with driver(path, "--seed", 3, "--block-size", 1024, "--leaf", 3, "--inner", 3) as asked:
        tids = [asked.ask("head", "tid ")]
        before = asked.ask("sha zfile0 head 2", "sha ")
        for command in ["write zfile0 2", "undo", *["commit"] * 12, "append zfile1", "undo"]:
            tids.append(asked.ask(command, "tid "))
        expect(asked.ask(f"sha zfile0 {tids[1]} 2", "sha ") != before, "a write changes the block")
        expect(asked.ask(f"sha zfile0 {tids[2]} 2", "sha ") == before, "undo brings the block back")
        address = asked.ask("zeo start", "zeo ")
        for command in ["commit", "append zfile0", "undo"]:
            tids.append(asked.ask(command, "tid "))
        asked.ask("zeo stop", "stopped")
        tids.append(asked.ask("commit", "tid "))
        expect(asked.ask("zeo start", "zeo ") == address, "the address stays the same")
        tids.append(asked.ask("commit", "tid "))
        expect(tids == sorted(set(tids)), "tids ascend")
        compared = compare(asked, path, tids)
        for wrong in ["zeo start", "write zfile0 x", "sha nofile head 0", "size zfile0 12", "no", "", "commit 1"]:
            asked.ask(wrong, "error: ")
        expect(asked.ask("pack", "packed ") == tids[-1], "a pack is as of the last transaction")
        expect(not os.path.exists(f"{path}.old"), "a pack leaves no .old")
        after = [tids[-1], asked.ask("append zfile0", "tid "), asked.ask("undo", "tid ")]
        compared += compare(asked, path, after)
        asked.ask("zeo stop", "stopped")
        asked.ask("pack", "packed ")
        asked.ask("undo", "error: ")
        place = asked.ask(f"zeo start {folder}/zeo.sock", "zeo ")
        expect(os.path.exists(place), "ZEO listens at a socket")
        asked.ask("zeo kill", "killed")
        after = [asked.ask("commit", "tid ")]
        asked.ask(f"zeo start {folder}/zeo.sock msgpack", "zeo ")
        expect(greeting(place) == b"M5", "ZEO speaks in MessagePack")
        after.append(asked.ask("commit", "tid "))
        compared += compare(asked, path, after)
        asked.ask("quit", "bye")
        expect(asked.process.wait() == 0, "quit ends it with 0")
    print(f"ok: serve, {compared} blocks compared")


def check_orphans(folder):
    """A ZEO server ends with its driver, even if that is killed."""
    path = folder / "served.fs"
    with driver(path) as asked:
        asked.ask("zeo start", "zeo ")
        # Who has the lock of the file is the server.
        server = os.pidfd_open(int(Path(f"{path}.lock").read_text()))
        try:
            asked.process.kill()
            has_ended = select.select([server], [], [], END_SECONDS)[0]
            if not has_ended:
                signal.pidfd_send_signal(server, signal.SIGKILL)
        finally:
            os.close(server)
    expect(has_ended, "the ZEO server ends once its driver is killed")
    FileStorage(str(path)).close()
    print("ok: a killed driver leaves no ZEO server")


def check_real(folder):
    """Manifests of databases that the real wendelin.core made. Those also list writes of zeros over zeros, which leave
    nothing in a database: such lines may be missing here."""
    if not REAL.is_dir():
        print(f"SKIPPED: {REAL} is not there")
        return
    for name in ("plain.fs", "deep.fs"):
        shutil.copyfile(REAL / name, folder / name)
        wanted = (REAL / f"{name}.manifest").read_text().splitlines()
        got = tool("manifest", folder / name)
        expect(len(got) == len(set(got)) and set(got) <= set(wanted), f"no line of {name} but those of its manifest")
        missing = set(wanted) - set(got)
        [hole] = (line.split()[1] for line in wanted if line.startswith("hole "))
        content = {}
        for line in (line for line in wanted if line.startswith("blk ")):
            block, sha = tuple(line.split()[2:4]), line.split()[4]
            if sha == hole == content.get(block, hole):
                missing.discard(line)
            content[block] = sha
        expect(not missing, f"all lines of the manifest of {name}: {sorted(missing)[:3]}")
        print(f"ok: {name}, {len(got)} of {len(wanted)} lines, the rest writes zeros over zeros")
