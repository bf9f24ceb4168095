"""Plays the client of wendelin.core and its tests against the program `wcfs`, on databases that ZODB makes.

Run this folder with the Python of the virtual environment that `.ci/run` makes.
"""

import sys

# No folder of compiled files beside the sources.
sys.dont_write_bytecode = True

import argparse  # noqa: E402
import contextlib  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402

# Exit codes.
STUCK, AGAIN = 3, 75
# How often a scenario is played that somebody disturbs.
TRIES = 10
# Between two looks at a process, in seconds.
LOOK = 0.01
HERE = os.path.dirname(os.path.abspath(__file__))
# Classes of files in ZODB, and databases of tests.
sys.path.append(os.path.join(os.path.dirname(HERE), "zodb_fixture"))

import client_scenarios  # noqa: E402, F401
import data_scenarios  # noqa: E402, F401
import failure_scenarios  # noqa: E402, F401
import faulty_scenarios  # noqa: E402, F401
import life_scenarios  # noqa: E402, F401
import pin_scenarios  # noqa: E402, F401
import random_scenarios  # noqa: E402, F401
import request_scenarios  # noqa: E402, F401
from expect import CacheFailed  # noqa: E402
from scenario import STORAGES, scenarios  # noqa: E402
from server import abort_connection, fusermount, mounts_below  # noqa: E402
from stage import Options, Stage  # noqa: E402


def arguments():
    """What the command line may have."""
    parser = argparse.ArgumentParser(prog="wcfs_driver", description=__doc__)
    parser.add_argument("names", metavar="SCENARIO", nargs="*", help="all, if none is given")
    parser.add_argument("--list", action="store_true", help="prints the names of all scenarios")
    parser.add_argument("--wcfs", metavar="PROGRAM", help="path of the program")
    parser.add_argument("--storage", choices=STORAGES, default="fs",
                        help="how the database is reached (%(default)s)")
    parser.add_argument("--limit", type=float, default=60, metavar="SECONDS",
                        help="after which a scenario is stuck: its mount is aborted (%(default)s)")
    parser.add_argument("--seed", type=int, help="of scenarios that have one, which they print")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def play(name, options, folder):
    """Plays a scenario in this process; its exit code."""
    began, dropped = time.monotonic(), page_cache_drops()
    try:
        with Stage(options, folder) as stage:
            scenarios(options.storage)[name](stage)
            if stage.server is not None:
                stage.stop()
    # Whatever it is, the other scenarios are played too.
    except Exception as error:
        if isinstance(error, CacheFailed) and page_cache_drops() != dropped:
            print("somebody dropped the page cache of the whole machine meanwhile: it is played again", flush=True)
            return AGAIN
        traceback.print_exc(file=sys.stdout)
        print(f"FAILED {name} after {time.monotonic() - began:.1f} s", flush=True)
        return 1
    print(f"ok {name} {time.monotonic() - began:.1f} s", flush=True)
    return 0


def play_apart(name, args):
    """Plays a scenario in a process of its own, which may be killed by the server, or hang; whether it went well."""
    for _ in range(TRIES):
        code = play_once(name, args)
        if code != AGAIN:
            break
    return code == 0


def play_once(name, args):
    """Plays it; the code with which the process ended."""
    print(f"scenario {name}", flush=True)
    folder = tempfile.mkdtemp(prefix="wcfs-driver-")
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    command = [sys.executable, HERE, "--wcfs", args.wcfs, "--storage", args.storage, "--seed", str(seed),
               "--folder", folder, name]
    player = subprocess.Popen(command, start_new_session=True)
    try:
        if not has_ended(player.pid, args.limit):
            print(f"FAILED {name}: it takes longer than {args.limit:.0f} s, and is ended", flush=True)
            show_logs(folder)
            return STUCK
        if has_panicked(folder):
            print(f"FAILED {name}: a server panicked", flush=True)
            show_logs(folder)
            return 1
    finally:
        clean(player, folder)
    if player.returncode < 0:
        print(f"FAILED {name}: it was ended by {signal.Signals(-player.returncode).name}", flush=True)
    return player.returncode


def page_cache_drops():
    """How often somebody dropped the page cache of the machine (drop_caches), since it started."""
    with open("/proc/vmstat") as counters:
        return next(line for line in counters if line.startswith("drop_pagecache "))


def has_ended(pid, limit):
    """Whether a child ends within so many seconds; it stays a zombie, so that its id is not used again."""
    deadline = time.monotonic() + limit
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK)
    return True


def has_panicked(folder):
    """Whether a server says so, also of one thread of many."""
    return any(b"panicked at" in open(entry.path, "rb").read() for entry in os.scandir(folder) if entry.name.endswith(".log"))


def show_logs(folder):
    """Prints what servers wrote."""
    for entry in os.scandir(folder):
        if entry.name.endswith(".log"):
            with open(entry.path, errors="replace") as log:
                print(f"--- {entry.name}\n{log.read()}---", flush=True)


def clean(player, folder):
    """Ends what a scenario left: who waits in the kernel, its processes, its mounts, its files."""
    for path in mounts_below(folder):
        abort_connection(path)
    # The server is of this group, too.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(player.pid, signal.SIGKILL)
    player.wait()
    for path in reversed(mounts_below(folder)):
        fusermount(path, "-z")
    shutil.rmtree(folder)


def main():
    """Plays what is asked for; 1 if something went wrong."""
    args = arguments()
    known = scenarios(args.storage)
    if args.list:
        print("\n".join(known))
        return 0
    unknown = [name for name in args.names if name not in known]
    if unknown:
        sys.exit(f"error: no scenario {unknown[0]}: see --list")
    if args.wcfs is None:
        sys.exit("error: no program: give its path by --wcfs")
    args.wcfs = os.path.abspath(args.wcfs)
    if args.folder is not None:
        return play(args.names[0], Options(args.wcfs, args.storage, args.seed), args.folder)
    # An end that is asked for still cleans up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = args.names or list(known)
    failed = [name for name in names if not play_apart(name, args)]
    print(f"{len(names) - len(failed)} went well, {len(failed)} failed: {' '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
