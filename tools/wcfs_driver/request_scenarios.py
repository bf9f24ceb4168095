"""The protocol of watch links: requests and frames, and how they are answered."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time

from expect import SOON, expect, expect_errno, expect_match, wait_until
from history import tid_text
from link import END, LinkByHand
from posix_memory import PAGE
from scenario import scenario
from stage import expect_pins

DURATION = r"-?([0-9]+h)?([0-9]+m)?([0-9]+(\.[0-9]+)?(ns|µs|us|ms|s))?"
READ = "import os, sys; fd = os.open(sys.argv[1], int(sys.argv[2])); os.pread(fd, 100, int(sys.argv[3]))"
READ_STREAM = "import os, sys; fd = os.open(sys.argv[1], int(sys.argv[2])); os.read(fd, 100)"
# So long before head nothing is forgotten, seconds.
MINUTE = 60
# What the kernel calls read(2) and pread(2).
CALLS = {READ_STREAM: "0", READ: "17"}
# Frames that are none, and how they are quoted.
BAD_FRAMES = (
    (b"zzz hello\n", r'invalid frame: "zzz hello\n" (invalid stream)'),
    (b"hello\n", r'invalid frame: "hello\n"'),
    (b"\n", r'invalid frame: "\n"'),
    (b"-1 bye\n", r'invalid frame: "-1 bye\n" (invalid stream)'),
    (b'1"\t\x01\xff\xc3\xa9 bye\n', r'invalid frame: "1\"\t\x01\xff' + "é" + r' bye\n" (invalid stream)'),
)


def text_of(file, at):
    """A file and a state as error texts name them."""
    return f"error setup watch f{file.hex} @{tid_text(at)}: "


@scenario
def a_read_of_a_link_or_of_zhead_can_be_killed(stage):
    stage.make_database()
    server = stage.start()
    for below, flags in (("head/watch", os.O_RDWR), (".wcfs/debug/zhead", os.O_RDONLY)):
        reader = start_reader(stage, READ_STREAM, below, flags)
        is_link = flags == os.O_RDWR
        server.expect_stats("while it is read", WatchLink=int(is_link), ZHeadLink=1 + int(not is_link))
        reader.send_signal(signal.SIGKILL)
        expect(-signal.SIGKILL, reader.wait(SOON), f"the end of a process that is killed while it reads {below}")
        server.expect_stats("when its process is dead the link is gone", WatchLink=0, ZHeadLink=1, pinkill=0)


@scenario
def a_read_that_waits_for_a_pin_can_be_killed(stage):
    stage.make_database()
    zfile = stage.make_file()
    at = stage.commit((zfile, {2: "c1"}))
    server = stage.start()
    file = stage.open(zfile)
    link = stage.link()
    stage.watch(link, zfile, at, {})
    stage.commit((zfile, {2: "c2"}))
    reader = start_reader(stage, READ, f"head/bigfile/{zfile.hex}", os.O_RDONLY, 2 * zfile.block_size)
    [stream] = expect_pins(link, {(zfile.oid, 2): at})
    reader.send_signal(signal.SIGKILL)
    expect(-signal.SIGKILL, reader.wait(SOON), "the end of a process that is killed while its read waits for a pin")
    # The pin is owed all the same, and holds.
    link.ack(stream)
    link.watches[zfile.oid].pinned[2] = at
    file.accessed.add(2)
    expect(zfile.block(2, stage.history.head())[:PAGE], file.first_page(2), "the block in head")
    link.expect_silence("after the block was pinned")
    server.expect_stats("nobody was killed for it", PinnedBlk=1, pin=1, pinkill=0)
    stage.watch(link, zfile, stage.history.head(), {2: None})


def start_reader(stage, program, below, flags, offset=0):
    """A process that reads a file and waits for it in the kernel."""
    path = stage.server.path(below)
    reader = subprocess.Popen([sys.executable, "-c", program, path, str(flags), str(offset)])
    stage.at_end(reader.kill)
    wait_until(lambda: waits_in(reader.pid, CALLS[program], path), f"a process waits while it reads {below}")
    return reader


def waits_in(pid, number, path):
    """Whether a process sleeps in this system call on this file."""
    try:
        with open(f"/proc/{pid}/syscall") as call, open(f"/proc/{pid}/stat") as state:
            words = call.read().split()
            is_asleep = state.read().rsplit(")", 1)[1].split()[0] in "SD"
        return words[0] == number and is_asleep and os.readlink(f"/proc/{pid}/fd/{int(words[1], 16)}") == path
    except (OSError, IndexError):
        return False


@scenario
def a_file_that_nobody_opened_cannot_be_watched(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.start()
    at = stage.history.head()
    link = stage.link()
    unknown = "file not yet known to wcfs or is not a ZBigFile"
    expect(text_of(zfile, at) + unknown, link.ask(f"watch {zfile.hex} @{tid_text(at)}"), "watch of an unopened file")
    answer = link.ask(f"watch {zfile.hex} -")
    expect(True, answer.startswith("error ") and unknown in answer, f"the end of a watch of an unopened file: {answer}")
    none = "00000000deadbeef"
    expect(f"error setup watch f{none} @{tid_text(at)}: {unknown}", link.ask(f"watch {none} @{tid_text(at)}"),
           "watch of what is no file")
    # The link goes on.
    stage.open(zfile)
    stage.watch(link, zfile, at, {})
    stage.unwatch(link, zfile)
    expect("ok", link.ask(f"watch {zfile.hex} -"), "the end of a watch that is none, of a file that is known")


@scenario
def a_request_that_is_none_is_answered_by_an_error(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.start()
    stage.open(zfile)
    at = tid_text(stage.history.head())
    link = stage.link()

    def refused(request, text):
        expect(f"error bad watch: {text}", link.ask(request), f"the answer to {request!r}")

    refused("bad", 'not a watch request: "bad"')
    refused("BYE", 'not a watch request: "BYE"')
    refused("watchh a b", 'not a watch request: "watchh a b"')
    for request, count in ((f"watch {zfile.hex}", 1), (f"watch {zfile.hex} @{at} x", 3)):
        refused(request, f"expected 2 arguments, got {count}")
    for oid in ("zzz", zfile.hex[:-1], f"{zfile.hex}0", f"{zfile.hex[:-1]}g"):
        refused(f"watch {oid} @{at}", "invalid oid")
    for bad in ("zzz", at, f"@{at[:-1]}", f"@{at}0", "@-", "--"):
        refused(f"watch {zfile.hex} {bad}", "invalid at")
    # Upper case is taken, too, and frames may come in pieces or many at once.
    stream = link.send(f"watch {zfile.hex.upper()} @{at.upper()}")
    expect("ok", link.reply(stream), "the reply to a watch in upper case")
    for part in (b"10", b"1 wat", f"ch {zfile.hex} @{at}".encode(), b"\n103 bad\n105 bad\n"):
        link.write(part)
    expect("ok", link.reply(101), "the reply to a frame in pieces")
    expect(['error bad watch: not a watch request: "bad"'] * 2, [link.reply(103), link.reply(105)], "two in one write")


@scenario
def a_frame_that_is_none_ends_the_link(stage):
    stage.make_database()
    server = stage.start()
    for frame, text in BAD_FRAMES:
        link = stage.link()
        link.write(frame)
        link.expect_end([f"error: {text}"])
        link.close()
    link = stage.link()
    link.write(b"2 ack\n")
    link.expect_end(["error: 2: reply on unexpected stream"])
    link.close()
    # Streams of requests are odd, 0 is the server's alone.
    link = stage.link()
    link.write(b"0 bye\n")
    link.expect_end(["error: 0: reply on unexpected stream"])
    link.close()
    server.expect_stats("after links that ended by bad frames", WatchLink=0, pinkill=0)


@scenario
def a_frame_without_end_ends_the_link(stage):
    stage.make_database()
    stage.start()
    link = stage.link()
    link.write(b"1 watch " + b"0" * 1000)
    wait_until(lambda: not link.is_open, "the end of a link whose frame does not end")
    expect([True], [text.startswith("error: ") for text in link.control], f"what it says before: {link.control}")
    link.close()


@scenario
def bye_and_a_close_without_it_end_a_link(stage):
    stage.make_database()
    zfile = stage.make_file()
    server = stage.start()
    stage.open(zfile)
    at = stage.history.head()
    link = LinkByHand(server.root)
    link.write(f"1 watch {zfile.hex} @{tid_text(at)}\n".encode())
    expect("1 ok", link.line(), "the reply to a watch")
    server.expect_stats("with a watch", WatchLink=1, Watch=1)
    link.write(b"3 bye\n")
    expect(END, link.line(), "after bye there is nothing but the end")
    expect_errno([errno.ECONNRESET], lambda: link.write(b"5 bye\n"), "a write to a link that ended")
    expect(END, link.line(), "a second read behind the end")
    link.close()
    server.expect_stats("after bye", WatchLink=0, Watch=0, pinkill=0)
    link = LinkByHand(server.root)
    link.write(f"1 watch {zfile.hex} @{tid_text(at)}\n".encode())
    expect("1 ok", link.line(), "the reply to a watch")
    link.close()
    server.expect_stats("a link that is closed without bye owes nothing, so nobody is killed", WatchLink=0, Watch=0,
                        pinkill=0)


@scenario
def a_copy_of_the_descriptor_that_is_closed_does_not_end_the_link(stage):
    stage.make_database()
    zfile = stage.make_file()
    at = stage.commit((zfile, {2: "c1"}))
    server = stage.start()
    file = stage.open(zfile)
    link = stage.link()
    stage.watch(link, zfile, at, {})
    os.close(link.copy())
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    link.expect_silence("after copies of the descriptor were closed")
    stage.commit((zfile, {2: "c2"}))
    stage.access(file, 2, {link: at})
    server.expect_stats("when copies are gone", WatchLink=1, Watch=1, PinnedBlk=1, pinkill=0)


@scenario
def requests_under_way_are_answered_each_on_its_stream(stage):
    stage.make_database()
    zfile, other = stage.make_file(), stage.make_file("other")
    at = stage.commit((zfile, {2: "c1"}), (other, {0: "A1"}))
    stage.start()
    file = stage.open(zfile)
    stage.open(other)
    stage.access(file, 2)
    stage.commit((zfile, {2: "c2"}))
    link = stage.link()
    far = (int.from_bytes(at, "big") + (1 << 40)).to_bytes(8, "big")
    waiting = link.send(f"watch {other.hex} @{tid_text(far)}")
    pinned = link.send(f"watch {zfile.hex} @{tid_text(at)}")
    [stream] = expect_pins(link, {(zfile.oid, 2): at})
    expect('error bad watch: not a watch request: "x"', link.ask("x"), "a bad request, meanwhile")
    expect("ok", link.ask(f"watch {zfile.hex} -"), "the end of a watch that is being set up")
    # What was being set up ends with its watch.
    expect(True, link.reply(pinned).startswith("error "), f"the reply to its set-up: {link.reply(pinned)}")
    expect(False, link.has_reply(waiting), "there is a reply to a set-up that waits")
    link.ack(stream)
    link.expect_silence("after an answer that came late")
    link.bye()
    stage.server.expect_stats("when the link is gone", WatchLink=0, Watch=0, PinnedBlk=0, pinkill=0)


@scenario
def bye_cancels_a_pin_that_is_owed_without_a_kill(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.commit((zfile, {0: "a1", 2: "c1"}))
    server = stage.start()
    file = stage.open(zfile)
    at1 = stage.history.head()
    stage.access(file, 2)
    stage.commit((zfile, {2: "c2"}))
    link = stage.link()
    stream = link.send(f"watch {zfile.hex} @{tid_text(at1)}")
    expect([(2, f"pin {zfile.hex} #2 @{tid_text(at1)}")], link.requests(1), "the first request of a link")
    link.bye()
    expect(False, link.has_reply(stream), "there is a reply to a set-up that bye cancelled")
    server.expect_stats("after bye", WatchLink=0, Watch=0, PinnedBlk=0, pinkill=0)
    # What waited goes on: a commit, and the next one to come.
    stage.access(file, 2)
    stage.commit((zfile, {2: "c3"}))
    link = stage.link()
    stage.watch(link, zfile, at1, {2: at1})
    server.expect_stats("nobody was killed", pinkill=0)


@scenario
def a_read_goes_on_when_the_link_that_owes_it_a_pin_says_bye(stage):
    stage.make_database()
    zfile = stage.make_file()
    at1 = stage.commit((zfile, {2: "c1"}))
    server = stage.start()
    file = stage.open(zfile)
    link = stage.link()
    stage.watch(link, zfile, at1, {})
    stage.commit((zfile, {2: "c2"}))
    got = []
    reader = threading.Thread(target=lambda: got.append(file.first_page(2)), daemon=True)
    reader.start()
    expect([(2, f"pin {zfile.hex} #2 @{tid_text(at1)}")], link.requests(1), "the first request of a link")
    expect(True, reader.is_alive(), "the read waits for the pin")
    link.bye()
    reader.join(SOON)
    expect([zfile.block(2, stage.history.head())[:PAGE]], got, "what is read then")
    file.note_read(2)
    server.expect_stats("nobody was killed", pinkill=0)


@scenario
def a_state_from_before_the_server_is_too_far_back(stage):
    stage.make_database()
    zfile = stage.make_file()
    old = stage.commit((zfile, {2: "c1"}))
    stage.commit((zfile, {2: "c2"}))
    stage.start()
    stage.open(zfile)
    tail = stage.history.head()
    head = stage.commit((zfile, {3: "d3"}))
    link = stage.link()
    just_before = (int.from_bytes(tail, "big") - 1).to_bytes(8, "big")
    for at in (old, just_before):
        text = f"{text_of(zfile, at)}too far away back from head/at (@{tid_text(head)}); δt = "
        answer = link.ask(f"watch {zfile.hex} @{tid_text(at)}")
        expect_match(re.compile(re.escape(text) + DURATION), answer, "a watch as of before the tail")
    # The tail itself is allowed.
    stage.watch(link, zfile, tail, {})


@scenario
def a_state_is_forgotten_after_a_minute_unless_somebody_works_at_it(stage):
    stage.make_database()
    zfile, other = stage.make_file(), stage.make_file("other")
    at = stage.commit((zfile, {2: "c1"}), (other, {2: "C1"}))
    stage.start()
    for history in (zfile, other):
        stage.open(history)

    def said():
        link = stage.link()
        answer = link.ask(f"watch {zfile.hex} @{tid_text(at)}")
        link.bye()
        stage.links.remove(link)
        return answer

    stage.commit((zfile, {2: "c2"}))
    expect("ok", said(), "a watch as of a moment ago")
    holder = stage.link()
    stage.watch(holder, other, at, {})
    began = time.monotonic()
    while time.monotonic() < began + MINUTE + 2:
        time.sleep(1)
    stage.commit((zfile, {2: "c3"}))
    expect("ok", said(), "a watch as of a state at which somebody works on another file")
    holder.bye()
    stage.links.remove(holder)
    head = stage.commit((zfile, {2: "c4"}))
    text = f"{text_of(zfile, at)}too far away back from head/at (@{tid_text(head)}); δt = "
    expect_match(re.compile(re.escape(text) + DURATION), said(), "a watch as of a state at which nobody works")


@scenario
def a_state_from_before_the_file_is_an_epoch(stage):
    stage.make_database()
    first = stage.make_file()
    stage.start()
    stage.open(first)
    before = stage.commit((first, {0: "a1"}))
    born = stage.make_file("second")
    stage.commit((born, {1: "b1"}))
    file = stage.open(born)
    head = stage.history.head()
    link = stage.link()
    text = f"file epoch detected @{tid_text(born.created)} in between (at,head=@{tid_text(head)}]"
    answer = link.ask(f"watch {born.hex} @{tid_text(before)}")
    expect(text_of(born, before) + text, answer, "a watch as of before the file")
    # The link goes on, and the watch is none: nothing is pinned for it.
    stage.access(file, 1)
    stage.commit((born, {1: "b2"}))
    stage.access(file, 1, {})
    stage.watch(link, born, born.created, {1: born.created})


@scenario
def a_watch_does_not_go_back(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.start()
    stage.open(zfile)
    at1 = stage.history.head()
    at2 = stage.commit((zfile, {2: "c2"}))
    link = stage.link()
    stage.watch(link, zfile, at2, {})
    expect(f"{text_of(zfile, at1)}going back in history is forbidden", link.ask(f"watch {zfile.hex} @{tid_text(at1)}"),
           "a watch that goes back")
    # It is what it was, and may be set up again as it is.
    stage.watch(link, zfile, at2, {})
    at3 = stage.commit((zfile, {2: "c3"}))
    stage.watch(link, zfile, at3, {})


@scenario
def a_watch_of_the_future_waits_for_it(stage):
    stage.make_database()
    zfile = stage.make_file()
    at1 = stage.commit((zfile, {0: "a1", 2: "c1"}))
    stage.start()
    file = stage.open(zfile)
    for block in (0, 2):
        stage.access(file, block)
    # Its tid comes after that of the next commit, and not later than that of the second next.
    link = stage.link()
    ahead = (int.from_bytes(at1, "big") + 1).to_bytes(8, "big")
    stream = link.send(f"watch {zfile.hex} @{tid_text(ahead)}")
    other = stage.link()
    stage.watch(other, zfile, at1, {})
    link.settle()
    expect(False, link.has_reply(stream), "there is a reply before the state is there")
    stage.commit((zfile, {2: "c2"}))
    # Block 2 changed after that state: the reply comes after its pin.
    [number] = expect_pins(link, {(zfile.oid, 2): at1})
    link.settle()
    expect(False, link.has_reply(stream), "there is a reply before the pin is acknowledged")
    link.ack(number)
    expect("ok", link.reply(stream), "the reply once the state is there")
    # One that waits ends with its link.
    far = (int.from_bytes(at1, "big") + (1 << 40)).to_bytes(8, "big")
    link.send(f"watch {zfile.hex} @{tid_text(far)}")
    link.settle()
    link.bye()
    stage.server.expect_stats("when a link ended that waited", WatchLink=1, Watch=1, pinkill=0)
