"""A client that breaks the rules when it gets a pin: a process of its own, as it may be killed for it.

Arguments: MOUNTPOINT OID AT FAULT. Says `watching` on stdout when its watch is set up, `pinned` when it got a pin, each
with what it got, and then does its fault.
"""

import os
import signal
import sys
import time


def never_read(_fd):
    """Does not read its link; here it was not read since the watch was set up."""
    time.sleep(3600)


def never_answer(fd):
    """Reads its link and does not answer."""
    while os.read(fd, 4096):
        pass
    time.sleep(3600)


def leave(_fd):
    """Ends."""
    os._exit(0)


def close_link(fd):
    """Closes its link and goes on."""
    os.close(fd)
    time.sleep(3600)


def refuse(fd):
    """Answers with an error."""
    os.write(fd, b"2 nak: no\n")
    time.sleep(3600)


FAULTS = {function.__name__: function for function in (never_read, never_answer, leave, close_link, refuse)}


def line(fd, kept):
    """The next frame of a link."""
    while b"\n" not in kept[0]:
        kept[0] += os.read(fd, 4096) or sys.exit("the link ended")
    first, kept[0] = kept[0].split(b"\n", 1)
    return first.decode()


def main():
    """Sets the watch up and waits for a pin."""
    root, oid, at, fault = sys.argv[1:]
    signal.signal(signal.SIGBUS, signal.SIG_DFL)
    fd = os.open(f"{root}/head/watch", os.O_RDWR)
    os.write(fd, f"1 watch {oid} @{at}\n".encode())
    print("asked", flush=True)
    if fault == "never_read" and sys.stdin.readline() == "at once\n":
        never_read(fd)
    kept = [b""]
    heard = line(fd, kept)
    if heard == "1 ok":
        print(f"watching {heard}", flush=True)
        if fault == "never_read":
            never_read(fd)
        heard = line(fd, kept)
    print(f"pinned {heard}", flush=True)
    FAULTS[fault](fd)


if __name__ == "__main__":
    main()
