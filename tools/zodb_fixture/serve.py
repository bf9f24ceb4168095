"""Commands on stdin, one a line, each answered by one line on stdout: a database that changes while a test runs.

Invariant: each line gets exactly one answer, flushed; a command that fails is answered with `error: ...` and leaves
the database as it was.
"""

import sys

from database import FixtureError, parse_tid, tid_text
from edits import files

HELP = """\
commands on stdin, one a line, and their answers:
  commit                tid TID         a random edit
  append FILE           tid TID         a block at the end of FILE
  write FILE BLOCK      tid TID         random data to this block
  undo                  tid TID         undoes the last transaction, by back pointers
  pack                  packed TID      packs up to the last transaction, TID; no .old is left
  head                  tid TID         the last transaction
  files [TID]           files NAME=OID ...
  size FILE TID         size BYTES
  sha FILE TID BLOCK    sha SHA256      the block as of TID, zero-padded, read through ZODB; a hole is zeros
  zeo start [ADDRESS [msgpack]]         a ZEO server at HOST:PORT or a socket's path (with a /); default: the address
                        zeo ADDRESS     of the time before, or a free port. Commits then go through it. It speaks in
                                        pickles, or in MessagePack.
  zeo stop              stopped         back to the file itself
  zeo kill              killed          the same, but the server ends by SIGKILL
  quit                  bye             the end of stdin does the same without an answer
The first lines of all are `seed N` and `ready TID`. A command that fails is answered by `error: CAUSE`.
TID and OID are 16 hex digits; the TID of a command may also be `head`."""


def serve(database, editor, source=sys.stdin, sink=sys.stdout):
    """Answers commands until `quit` or the end of input."""
    session = Session(database, editor)

    def answer(text):
        print(" ".join(text.split("\n")), file=sink, flush=True)

    answer(f"ready {tid_text(database.head())}")
    for line in source:
        if line.split() == ["quit"]:
            answer("bye")
            return
        try:
            said = session.run(line.split())
        except FixtureError as error:
            said = f"error: {error}"
        # Whatever ZODB and ZEO raise, the test is to see it as the answer.
        except Exception as error:
            said = f"error: {type(error).__name__}: {error}"
        answer(said)


class Session:
    """Commands by name, on one database."""

    def __init__(self, database, editor):
        self._database = database
        self._editor = editor
        # With how many arguments each may be called.
        self._commands = {
            "commit": (self._commit, 0, 0),
            "append": (self._append, 1, 1),
            "write": (self._write, 2, 2),
            "undo": (self._undo, 0, 0),
            "pack": (self._pack, 0, 0),
            "head": (self._head, 0, 0),
            "files": (self._files, 0, 1),
            "size": (self._size, 2, 2),
            "sha": (self._sha, 3, 3),
            "zeo": (self._zeo, 1, 3),
        }

    def run(self, words):
        """The answer to a command."""
        if not words or words[0] not in self._commands:
            known = ", ".join([*self._commands, "quit"])
            raise FixtureError(f"no command {' '.join(words[:1])!r}: there are {known}")
        command, least, most = self._commands[words[0]]
        if not least <= len(words) - 1 <= most:
            raise FixtureError(f"{words[0]} has {len(words) - 1} arguments, not {least} to {most}")
        return command(*words[1:])

    def _commit(self):
        return self._tid(self._database.commit(self._editor.edit, "commit"))

    def _append(self, name):
        return self._tid(self._database.commit(lambda root: self._editor.append_to(find(root, name)), "append"))

    def _write(self, name, block):
        number = parse_block(block)
        return self._tid(self._database.commit(lambda root: self._editor.write_to(find(root, name), number), "write"))

    def _undo(self):
        return self._tid(self._database.undo())

    def _pack(self):
        self._database.pack()
        return f"packed {tid_text(self._database.head())}"

    def _head(self):
        return self._tid(self._database.head())

    def _files(self, tid="head"):
        with self._at(tid) as root:
            return " ".join(["files", *(f"{name}={tid_text(file._p_oid)}" for name, file in files(root).items())])

    def _size(self, name, tid):
        with self._at(tid) as root:
            return f"size {find(root, name).size()}"

    def _sha(self, name, tid, block):
        number = parse_block(block)
        with self._at(tid) as root:
            return f"sha {find(root, name).sha(number)}"

    def _zeo(self, action, address=None, coding="pickle"):
        if action == "start" and coding in ("pickle", "msgpack"):
            return f"zeo {self._database.start_zeo(address, coding == 'msgpack')}"
        if action in ("stop", "kill") and address is None:
            self._database.stop_zeo(action == "kill")
            return "stopped" if action == "stop" else "killed"
        raise FixtureError("usage: zeo start [ADDRESS [msgpack]], zeo stop, or zeo kill")

    def _at(self, tid):
        return self._database.at(self._database.head() if tid == "head" else parse_tid(tid))

    @staticmethod
    def _tid(tid):
        return f"tid {tid_text(tid)}"


def find(root, name):
    """A file by its name."""
    there = files(root)
    if name not in there:
        raise FixtureError(f"no file {name} then: there are {', '.join(there) or 'none'}")
    return there[name]


def parse_block(text):
    """Number of a block."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise FixtureError(f"{text} is no number of a block: from 0 to 2^63 - 1")
    return int(text)
