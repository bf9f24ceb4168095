"""Makes undo.fs and packed.fs with the real ZODB, and what ZODB reads from them; run in an empty folder: make.py FOLDER."""

import os
import shutil
import sys
import time

import transaction
from persistent.mapping import PersistentMapping
from ZODB import DB
from ZODB.FileStorage import FileStorage
from ZODB.POSException import POSKeyError
from ZODB.utils import p64, u64


def commit(note):
    transaction.get().note(note)
    transaction.get().setUser("ann")
    transaction.commit()


def history(path):
    """Commits, an undo, an undo of that, an object whose creation is undone, one that nothing leads to any more."""
    storage = FileStorage(path, create=True)
    db = DB(storage)
    root = db.open().root()
    for name in "abcd":
        root[name] = PersistentMapping({"n": 0})
    commit("first")
    for n in range(1, 4):
        root["a"]["n"] = n
        root["b"]["n"] = "x" * 300 * n
        commit("change %d" % n)
    for _ in range(2):
        db.undo(db.undoInfo()[0]["id"])
        commit("undo")
    root["late"] = PersistentMapping({"n": "late"})
    commit("create")
    db.undo(db.undoInfo()[0]["id"])
    commit("undo the creation")
    del root["d"]
    commit("unlink d")
    middle = time.time()
    time.sleep(0.05)
    for n in range(4, 7):
        root["a"]["n"] = n
        commit("change %d" % n)
    return db, storage, middle


def dump(storage, path, tids, oids):
    """Lines: oid, at, then serial and length and sum of the bytes; or '-' where ZODB has nothing."""
    with open(path, "w") as out:
        for oid in oids:
            for at in tids:
                try:
                    found = storage.loadBefore(p64(oid), p64(at + 1))
                except POSKeyError:
                    found = None
                line = "%x %x " % (oid, at)
                if found is None:
                    out.write(line + "-\n")
                else:
                    data, serial = found[:2]
                    out.write(line + "%x %d %d\n" % (u64(serial), len(data), sum(data)))


def main(folder):
    path = os.path.join(folder, "Data.fs")
    db, storage, middle = history(path)
    tids = [u64(t.tid) for t in storage.iterator()]
    oids = range(0, 8)
    shutil.copy(path, os.path.join(folder, "undo.fs"))
    dump(storage, os.path.join(folder, "undo.txt"), tids, oids)
    db.pack(middle)
    dump(storage, os.path.join(folder, "packed.txt"), tids, oids)
    db.close()
    os.rename(path, os.path.join(folder, "packed.fs"))
    os.rename(path + ".index", os.path.join(folder, "packed.fs.index"))


main(sys.argv[1])
