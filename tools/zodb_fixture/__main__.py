"""Databases made by the real ZODB, BTrees and ZEO, for tests.

Run this folder with the Python of the virtual environment that `.ci/run` makes.
"""

import sys

# No folder of compiled files beside the sources.
sys.dont_write_bytecode = True

import argparse  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import signal  # noqa: E402

import objects  # noqa: E402
import selftest  # noqa: E402
from database import Database, FixtureError, tid_text  # noqa: E402
from edits import Editor, Shape  # noqa: E402
from manifest import lines  # noqa: E402
from serve import HELP, serve  # noqa: E402

MANIFEST_HELP = """\
lines of a manifest:
  hole SHA256                     of a block of zeros
  file NAME OID FORMAT BLOCKSIZE  FORMAT of all of its blocks: ZBlk0, ZBlk1, mixed, or - without blocks
  notfile OID                     an object in the root that is no file
  tid K TID                       the K-th transaction; those before the first block of all are left out
  size TID NAME BYTES             where it changes
  blk TID NAME BLOCK SHA256       where a block is saved or goes, zero-padded; its content may be the same
Of a packed database it begins with the last transaction that is packed. A file that is undone has size 0."""


def at_least(least):
    """Type of an argument: a number from `least` on."""
    def number(text):
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} on")
        return int(text)
    return number


def arguments():
    """What the command line may have."""
    parser = argparse.ArgumentParser(prog="zodb_fixture", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shape = argparse.ArgumentParser(add_help=False)
    shape.add_argument("database", metavar="DB.fs")
    shape.add_argument("--seed", type=at_least(0), help="of the random edits; printed if it is not given")
    shape.add_argument("--files", type=at_least(1), default=3, help="how many files it has in the end (%(default)s)")
    shape.add_argument("--block-size", type=at_least(1), default=8192, help="in bytes (%(default)s)")
    shape.add_argument("--format", choices=["ZBlk0", "ZBlk1", "mixed"], default="mixed", help="of blocks (%(default)s)")
    shape.add_argument("--leaf", type=at_least(2), help="entries of a leaf of a BTree (as BTrees has it: 60)")
    shape.add_argument("--inner", type=at_least(2), help="children of an inner node of a BTree (as BTrees has it: 500)")
    made = commands.add_parser("make", parents=[shape], help="makes a database by random edits")
    made.add_argument("--commits", type=at_least(1), default=40, help="how many, the first fill too (%(default)s)")
    made.add_argument("--undo-every", type=at_least(1), metavar="N",
                      help="each N-th commit undoes the one before, by back pointers")
    listed = commands.add_parser("manifest", help="prints what each file has at each tid", epilog=MANIFEST_HELP,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    listed.add_argument("database", metavar="DB.fs")
    commands.add_parser("serve", parents=[shape], epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter,
                        help="edits a database by commands; makes it if it is not there")
    commands.add_parser("selftest", help="checks this tool, in a folder that goes away")
    return parser.parse_args()


def begin(args):
    """The database, made and filled if it is not there, and who edits it. Says the seed."""
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    objects.limit_trees(args.leaf, args.inner)
    print(f"seed {seed}", flush=True)
    editor = Editor(random.Random(seed), Shape(args.files, args.block_size, args.format))
    is_new = not os.path.exists(args.database)
    database = Database(args.database)
    if is_new:
        database.commit(editor.set_up, "set up")
        database.commit(editor.fill, "fill")
    return database, editor


def make(args):
    """Makes a database, and says which edits it has."""
    if os.path.exists(args.database):
        raise FixtureError(f"{args.database} is there already: remove it, or give another name")
    database, editor = begin(args)
    try:
        for number in range(2, args.commits + 1):
            if args.undo_every and number % args.undo_every == 0:
                database.undo()
            else:
                database.commit(editor.edit, f"commit {number}")
        print(f"head {tid_text(database.head())}")
    finally:
        database.close()
    for kind, count in sorted(editor.done.items()):
        print(f"edit {kind} {count}")


def main():
    """Runs the command."""
    # An end that is asked for still closes the database and ends the ZEO server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = arguments()
    try:
        if args.command == "make":
            make(args)
        elif args.command == "manifest":
            for line in lines(args.database):
                print(line)
        elif args.command == "serve":
            database, editor = begin(args)
            try:
                serve(database, editor)
            finally:
                database.close()
        else:
            selftest.run()
    except (FixtureError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
