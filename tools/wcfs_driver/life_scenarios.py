"""How the program starts, is found, and ends."""

import errno
import os
import signal
import subprocess

from database import Database
from expect import SOON, Failed, expect, expect_errno, wait_until
from history import History, tid_text
from scenario import scenario, scenario_of
from server import (CONNECTIONS, STATS, abort_connection, expect_dead, fusermount, is_dead_mount, kill_server,
                    mount_entries, mount_entry)
from stage import put

FIRST_BYTES = b"FS30"


@scenario
def the_client_finds_the_server_by_its_process_and_mount(stage):
    stage.make_database()
    server = stage.start("-autoexit", "-pintimeout", "3.0s")
    entry, pid = mount_entry(server.root), server.process.pid
    expect(("fuse.wcfs", server.zurl), (entry.type, entry.source), "type and source of the mount")
    expect(None, server.process.poll(), "the process that was started is the server: it stays in the foreground")

    def read(name):
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()

    expect(b"wcfs\n", read("comm"), "name of the process")
    expect(os.path.realpath(stage.options.program), os.readlink(f"/proc/{pid}/exe"), "program of the process")
    expect([os.fsencode(server.zurl), os.fsencode(server.root)], read("cmdline").split(b"\0")[-3:-1],
           "the last two arguments of the process")
    opened = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    expect(True, "/dev/fuse" in opened, f"/dev/fuse is among the open files: {opened}")
    abort = os.stat(f"{CONNECTIONS}/{entry.minor}/abort")
    expect(os.stat(f"/proc/{pid}").st_uid, abort.st_uid, "owner of the connection's abort file and of the process")
    with open(server.path(".wcfs/pintimeout")) as timeout:
        expect(3.0, float(timeout.read()), ".wcfs/pintimeout")
    stage.stop()


@scenario
def numbers_are_zero_at_the_start_and_gauges_at_the_end(stage):
    stage.make_database()
    zfile = stage.make_file()
    server = stage.start()
    expect({**dict.fromkeys(STATS, 0), "ZHeadLink": 1}, server.stats(), ".wcfs/stats of a server that just started")
    stage.open(zfile)
    link = stage.link()
    stage.watch(link, zfile, stage.history.head(), {})
    server.expect_stats("with a file, a link and a watch", BigFile=1, WatchLink=1, Watch=1, PinnedBlk=0)
    with stage.rev_file(zfile, stage.history.head()):
        server.expect_stats("with a revision", RevHead=1)
    with open(server.path(".wcfs/pintimeout")) as timeout:
        expect(30.0, float(timeout.read()), ".wcfs/pintimeout when nothing was said")
    stage.stop()


@scenario
def options_are_written_as_go_does(stage):
    stage.make_database()
    for number, options in enumerate((
            ["-pintimeout=1m30s"], ["--pintimeout", "90s"], ["-v=1", "-pintimeout", "1.5m"],
            ["-alsologtostderr", "-log_dir", stage.path("."), "-autoexit=false", "-pintimeout", "90000ms"],
            ["-trace.fuse", "-autoexit=true", "--pintimeout=0h1.5m"])):
        server = stage.start(*options, name=f"mnt{number}")
        with open(server.path(".wcfs/pintimeout")) as timeout:
            expect("90.0", timeout.read().strip(), f".wcfs/pintimeout for {options}")
        stage.stop()


@scenario
def a_wrong_command_line_ends_with_2(stage):
    stage.make_database()
    mountpoint = stage.path("mnt")
    os.mkdir(mountpoint)
    for arguments in ([], [stage.zurl], [stage.zurl, mountpoint, "x"], ["-nonsense", stage.zurl, mountpoint],
                      ["-pintimeout", "3", stage.zurl, mountpoint], ["-pintimeout", "x", stage.zurl, mountpoint],
                      [stage.zurl, mountpoint, "-debug"]):
        ended = subprocess.run([stage.options.program, *arguments], capture_output=True, text=True, timeout=SOON)
        expect(2, ended.returncode, f"the exit code with {arguments}; it says {ended.stderr!r}")
        expect(True, "usage" in ended.stderr.lower(), f"the usage is on stderr: {ended.stderr!r}")
        expect(None, mount_entry(mountpoint), "what is mounted")


@scenario
def a_database_that_cannot_be_opened_ends_it_before_it_mounts(stage):
    stage.make_database()
    with open(stage.path("noise"), "wb") as noise:
        noise.write(b"this is no database, by far")
    mountpoint = stage.path("mnt")
    os.mkdir(mountpoint)
    for zurl in (f"file://{stage.path('absent.fs')}", f"file://{stage.path('noise')}", "nonsense://x",
                 "neo://name@host", "zeo://127.0.0.1:x"):
        ended = subprocess.run([stage.options.program, "-logtostderr", zurl, mountpoint],
                               capture_output=True, text=True, timeout=SOON)
        expect(True, ended.returncode > 0, f"exit code {ended.returncode} with {zurl} is an error")
        expect(True, bool(ended.stderr), f"the cause is on stderr with {zurl}")
        expect(None, mount_entry(mountpoint), "what is mounted")


@scenario_of("fs")
def a_url_with_commas_and_blanks_is_the_source_of_the_mount_byte_for_byte(stage):
    folder = "a, b\\c=+é"
    os.makedirs(stage.path(folder))
    stage.make_database(f"{folder}/1.fs")
    server = stage.start()
    expect(server.zurl, mount_entry(server.root).source, "source of the mount")


@scenario
def fusermount_ends_it_cleanly_and_the_next_one_starts(stage):
    stage.make_database()
    for _ in range(3):
        server = stage.start()
        # Busy: it stays.
        held = os.open(server.path(".wcfs/zurl"), os.O_RDONLY)
        code, said = fusermount(server.root)
        expect(True, code != 0 and "busy" in said, f"fusermount of a mount that is in use: {code}, {said}")
        expect(tid_text(stage.history.head()), server.at(), "head/at")
        os.close(held)
        stage.stop()


@scenario
def a_second_server_at_the_mount_point_ends_and_the_first_goes_on(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.commit((zfile, {0: "a1"}))
    server = stage.start()
    file = stage.open(zfile)
    stage.access(file, 0)
    ended = subprocess.run([*server.command[:1], "-logtostderr", server.zurl, server.root],
                           capture_output=True, text=True, timeout=SOON)
    expect(True, ended.returncode > 0, f"exit code {ended.returncode} of the second one is an error")
    expect(True, server.root in ended.stderr, f"what is served already is on stderr: {ended.stderr!r}")
    expect([server.root], [entry.path for entry in mount_entries() if entry.path == server.root], "mounts there")
    file.expect_cached("after a second server was started")
    stage.commit((zfile, {0: "a2"}))
    stage.access(file, 0)
    stage.stop()


@scenario
def of_servers_that_start_at_once_one_serves(stage):
    stage.make_database()
    server = stage.spawn("-logtostderr")
    others = [subprocess.Popen(server.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
              for _ in range(3)]
    try:
        started = [server.process, *others]
        # All but one end; it does not matter which one stays.
        wait_until(lambda: sum(process.poll() is None for process in started) == 1, "all servers but one end")
        wait_until(lambda: mount_entry(server.root) is not None, "it serves")
        server.process = next(process for process in started if process.poll() is None)
        server.wait_ready()
        expect(1, sum(entry.path == server.root for entry in mount_entries()), "mounts there")
        for process in started:
            expect(True, process is server.process or process.returncode > 0, "the exit codes of the others are errors")
        stage.stop()
    finally:
        for process in others:
            process.kill()
            process.wait()


@scenario
def autoexit_ends_it_when_nobody_uses_it(stage):
    stage.make_database()
    server = stage.start("-autoexit")
    users = [os.open(server.path(".wcfs/zurl"), os.O_RDONLY) for _ in range(2)]
    server.close_all()
    os.close(users.pop())
    expect(tid_text(stage.history.head()), server.at(), "head/at while somebody still uses it")
    expect(None, server.process.poll(), "the end of a server that is used")
    # Who uses it without a word is not cut off either.
    silent = os.open(server.path("head/at"), os.O_RDONLY)
    os.close(users.pop())
    try:
        server.process.wait(8)
        raise Failed("the server ended while somebody had a file of it open")
    except subprocess.TimeoutExpired:
        expect(16, len(os.read(silent, 100)), "bytes of head/at, which is still open")
    os.close(silent)
    expect(0, server.wait_end(40), "the exit code of a server that nobody uses any more")
    expect(None, mount_entry(server.root), "what is mounted afterwards")
    stage.server = None


@scenario
def it_stays_without_autoexit(stage):
    stage.make_database()
    server = stage.start()
    os.close(os.open(server.path(".wcfs/zurl"), os.O_RDONLY))
    server.close_all()
    try:
        server.process.wait(3)
    except subprocess.TimeoutExpired:
        return
    raise Failed("the server ended, though nobody asked for that")


@scenario
def sigquit_ends_the_process(stage):
    stage.make_database()
    server = stage.start()
    server.signal(signal.SIGQUIT)
    expect(True, server.wait_end() != 0, "SIGQUIT is no good end")
    server.abandon()
    if mount_entry(server.root) is not None:
        expect_dead(server)
        fusermount(server.root)
    stage.server = None


@scenario
def sigterm_unmounts_and_ends_it(stage):
    stage.make_database()
    server = stage.start()
    server.close_all()
    server.signal(signal.SIGTERM)
    server.wait_end(40)
    expect(None, mount_entry(server.root), "what is mounted after SIGTERM")
    stage.server = None


@scenario
def a_crash_is_seen_by_who_has_files_open_and_the_next_server_starts_after_an_unmount(stage):
    stage.make_database()
    zfile = stage.make_file()
    stage.commit((zfile, {0: "a1"}))
    server = stage.start()
    zurl = os.open(server.path(".wcfs/zurl"), os.O_RDONLY)
    data = os.open(server.path(f"head/bigfile/{zfile.hex}"), os.O_RDONLY)
    at = os.open(server.path("head/at"), os.O_RDONLY)
    kill_server(server)
    gone = [errno.ENOTCONN, errno.ECONNABORTED]
    expect_errno(gone, lambda: os.pread(at, 16, 0), "a read of an open file of a server that crashed")
    expect_errno(gone, lambda: os.pread(data, 100, 4096), "a read of data that is not in memory")
    expect_errno(gone, lambda: os.stat(server.path(".wcfs/zurl")), "a look at a path")
    expect_errno(gone, lambda: os.open(server.path(".wcfs/zurl"), os.O_RDONLY), "an open")
    expect(True, mount_entry(server.root) is not None, "the mount stays behind")
    # A close says it too, as flush is answered.
    expect_errno(gone, lambda: os.close(data), "close of a file of a server that crashed")
    for fd in (zurl, at):
        expect_errno(gone, lambda fd=fd: os.close(fd), "close of a file of a server that crashed")
    server.abandon()
    expect((0, ""), fusermount(server.root), "fusermount of what is left behind")
    stage.server = None
    stage.start()
    file = stage.open(zfile)
    stage.access(file, 0)
    stage.stop()


@scenario
def a_connection_that_is_aborted_ends_the_process(stage):
    stage.make_database()
    server = stage.start()
    server.close_all()
    abort_connection(server.root)
    server.wait_end()
    expect(True, mount_entry(server.root) is None or is_dead_mount(server.path("head/at")), "the mount is dead or gone")
    fusermount(server.root, "-z")
    stage.server = None


@scenario_of("fs")
def an_empty_database_is_served_and_followed(stage):
    path = stage.path("1.fs")
    with open(path, "wb") as file:
        file.write(FIRST_BYTES)
    stage.zurl = f"file://{path}"
    server = stage.start()
    expect("0" * 16, server.at(), "head/at of a database without transactions")
    expect_errno([errno.EINVAL], lambda: os.stat(server.path("head/bigfile/" + "0" * 16)), "a file of it")
    server.stats()
    # The root comes, then a file.
    stage.database = Database(path)
    stage.at_end(stage.database.close)
    stage.history = History(stage.database)
    stage.history.add(stage.database.head())
    stage.tail = stage.shown = b"\0" * 8
    stage.expect_caught_up()
    zfile = stage.make_file()
    stage.commit((zfile, {1: "b1"}))
    file = stage.open(zfile)
    stage.access(file, 1)
    stage.commit((zfile, {1: "b2"}))
    stage.access(file, 1)
    link = stage.link()
    stage.watch(link, zfile, stage.history.tids[-2])


@scenario
def zhead_says_each_commit_once_to_each_that_reads_it(stage):
    stage.make_database()
    zfile = stage.make_file()
    server = stage.start()
    others = [open(server.path(".wcfs/debug/zhead"), "rb", buffering=0) for _ in range(2)]
    server.expect_stats("with three that read zhead", ZHeadLink=3)
    tids = [stage.commit((zfile, {number: "x"})) for number in range(3)]
    # One that changes no file counts, too.
    tids.append(stage.commit_edit(lambda root: root.__setitem__("other", 1)))
    for other in others:
        said = b""
        while said.count(b"\n") < len(tids):
            said += other.read(17)
        expect([tid_text(tid) for tid in tids], said.decode().split("\n")[:-1], "lines of .wcfs/debug/zhead")
        other.close()
    server.expect_stats("with one that reads zhead", ZHeadLink=1)


@scenario
def a_zhead_that_nobody_reads_holds_up_nothing(stage):
    stage.make_database()
    zfile = stage.make_file()
    server = stage.start()
    with open(server.path(".wcfs/debug/zhead"), "rb", buffering=0) as idle:
        tids = [stage.commit((zfile, {number % 4: f"{number}"})) for number in range(60)]
        said = b""
        while said.count(b"\n") < len(tids):
            said += idle.read(4096)
    expect([tid_text(tid) for tid in tids], said.decode().split("\n")[:-1], "lines that nobody read until now")


@scenario
def zhead_is_only_there_when_debug_is_said(stage):
    stage.make_database()
    server = stage.spawn()
    server.wait_ready()
    expect_errno([errno.ENOENT], lambda: os.stat(server.path(".wcfs/debug/zhead")), ".wcfs/debug/zhead without -debug")
    expect(tid_text(stage.history.head()), server.at(), "head/at")


@scenario
def commits_made_while_nobody_served_are_there_at_the_start(stage):
    stage.make_database()
    zfile = stage.make_file()
    for number in range(20):
        stage.commit((zfile, {number % 3: f"{number}"}))
    stage.start()
    file = stage.open(zfile)
    for block in range(3):
        stage.access(file, block)
    wait_until(lambda: stage.server.at() == tid_text(stage.history.head()), "head/at is the last commit")


@scenario_of("zeo")
def a_zeo_server_that_restarts_is_followed_and_nothing_is_missed(stage):
    stage.make_database()
    zfile = stage.make_file()
    at = stage.commit((zfile, {0: "a1", 1: "b1", 2: "c1"}))
    server = stage.start()
    file = stage.open(zfile)
    for block in (0, 1):
        stage.access(file, block)
    link = stage.link()
    stage.watch(link, zfile, at, {})
    # Nobody tells the server of these.
    stage.database.stop_zeo()
    for text in ("a2", "a3"):
        stage.commit_unseen(lambda root, text=text: put(root[zfile.name], 0, text, "ZBlk0"))
    expect(tid_text(at), server.at(), "head/at without a ZEO server")
    file.expect_cached("without a ZEO server")
    stage.database.start_zeo()
    stage.expect_caught_up()
    for block in range(3):
        stage.access(file, block)
    stage.commit((zfile, {1: "b4"}))
    stage.access(file, 1, {link: at})


@scenario_of("fs")
def a_writer_that_packs_does_not_disturb_head(stage):
    stage.make_database()
    zfile = stage.make_file()
    for number in range(5):
        stage.commit((zfile, {0: f"a{number}", 1: f"b{number}"}))
    stage.start()
    file = stage.open(zfile)
    stage.access(file, 0)
    # The writer puts another file in place, and goes on in it.
    stage.database.pack()
    stage.commit((zfile, {0: "a9"}))
    for block in (0, 1):
        stage.access(file, block)
