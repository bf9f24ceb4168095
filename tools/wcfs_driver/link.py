"""A watch link by hand: what is written and read is all that there is.

Invariant: each frame that comes is kept and checked for its form; none is dropped. What nobody asked for is found by
`Link.expect_silence`.
"""

import os
import re
import threading
import time

from expect import SOON, Failed, expect

# A client takes no frame that is longer. The longest that it knows by heart has 134 bytes.
LONGEST_FRAME = 256
END = "end of the link"
_FRAME = re.compile(r"(0|[1-9][0-9]*) (.*)")


class Link:
    """An open of `head/watch`, with a thread that reads it."""

    def __init__(self, root):
        self._fd = os.open(os.path.join(root, "head/watch"), os.O_RDWR | os.O_CLOEXEC)
        self._arrived = threading.Condition()
        self._replies = {}
        # Requests of the server that nobody took yet: (stream, text).
        self._requests = []
        # Texts on stream 0.
        self.control = []
        self._last_stream = 0
        self._faults = []
        self._ended = False
        self._next = 1
        self.watches = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        pending = b""
        try:
            while chunk := os.read(self._fd, 4096):
                pending += chunk
                *lines, pending = pending.split(b"\n")
                for line in lines:
                    self._take(line)
        except OSError as error:
            self._fault(f"reading the link failed: {error}")
        if pending:
            self._fault(f"half a frame before the end: {pending!r}")
        with self._arrived:
            self._ended = True
            self._arrived.notify_all()

    def _fault(self, text):
        with self._arrived:
            self._faults.append(text)
            self._arrived.notify_all()

    def _take(self, line):
        text = line.decode(errors="backslashreplace")
        match = _FRAME.fullmatch(text)
        if not match:
            return self._fault(f"no frame: {text!r}")
        if len(line) + 1 > LONGEST_FRAME:
            self._fault(f"a frame of {len(line) + 1} bytes, more than {LONGEST_FRAME}: {text!r}")
        stream, message = int(match[1]), match[2]
        with self._arrived:
            if stream == 0:
                self.control.append(message)
            elif stream % 2:
                if stream in self._replies:
                    self._faults.append(f"two replies on stream {stream}: {message!r}")
                self._replies[stream] = message
            else:
                # Ids of the server are 2, 4, 6, ...; that is also the order in which it decided.
                if stream != self._last_stream + 2:
                    self._faults.append(f"request {stream} of the server after request {self._last_stream}")
                self._last_stream = stream
                self._requests.append((stream, message))
            self._arrived.notify_all()

    def _wait(self, what, look, seconds=SOON):
        deadline = time.monotonic() + seconds
        with self._arrived:
            while True:
                if self._faults:
                    raise Failed(f"the link is at fault: {self._faults}")
                found = look()
                if found is not None:
                    return found
                if self._ended:
                    raise Failed(f"{what}: the link ended, after {self.control}")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Failed(f"{what}: not within {seconds} s; there are {self._requests}, {self._replies}")
                self._arrived.wait(left)

    def write(self, data):
        """Writes bytes as they are."""
        os.write(self._fd, data)

    def copy(self):
        """A copy of the descriptor."""
        return os.dup(self._fd)

    def send(self, message):
        """Begins a request; its stream."""
        stream = self._next
        self._next += 2
        self.write(f"{stream} {message}\n".encode())
        return stream

    def reply(self, stream, seconds=SOON):
        """The reply to a request."""
        return self._wait(f"the reply on {stream}", lambda: self._replies.get(stream), seconds)

    def has_reply(self, stream):
        """Whether there is one."""
        with self._arrived:
            return stream in self._replies

    def ask(self, message, seconds=SOON):
        """Sends a request and hears its reply."""
        return self.reply(self.send(message), seconds)

    def requests(self, count, seconds=SOON):
        """The next so many requests of the server: (stream, text)."""
        def take():
            if len(self._requests) < count:
                return None
            taken, self._requests[:count] = self._requests[:count], []
            return taken
        return self._wait(f"{count} requests of the server", take, seconds)

    def ack(self, stream):
        """Answers a pin."""
        self.write(f"{stream} ack\n".encode())

    def settle(self):
        """Returns when all that the server sent before now has come: this answer comes behind it."""
        expect('error bad watch: not a watch request: "settle"', self.ask("settle"), "a request that is none")

    def unasked(self):
        """Requests of the server that nobody took."""
        with self._arrived:
            return [f"{stream} {text}" for stream, text in self._requests]

    def expect_silence(self, what):
        """The server asked nothing that was not taken."""
        self.settle()
        expect([], self.unasked(), f"requests of the server {what}")

    def expect_end(self, control):
        """The link ends, after these texts on stream 0."""
        deadline = time.monotonic() + SOON
        with self._arrived:
            while not self._ended and deadline > time.monotonic():
                self._arrived.wait(deadline - time.monotonic())
            expect(True, self._ended, f"the link ends: {self.control}")
            expect(control, self.control, "what is said on stream 0 before the end")
            expect([], self._faults, "faults of the link")

    @property
    def is_open(self):
        """Whether it did not end."""
        with self._arrived:
            return not self._ended

    def bye(self):
        """The orderly end."""
        if self.is_open:
            self.send("bye")
        self.expect_end([])
        self.close()

    def close(self):
        """Closes the descriptor of a link that ended, or makes it end and closes it then."""
        if self._fd is None:
            return
        if self.is_open:
            try:
                self.send("bye")
            except OSError:
                pass
        self._reader.join(SOON)
        if self._reader.is_alive():
            raise Failed("the link does not end after bye")
        os.close(self._fd)
        self._fd = None
        self.watches.clear()


class LinkByHand:
    """A link that nobody reads until it is asked for, so that it can be closed at any moment."""

    def __init__(self, root):
        self.fd = os.open(os.path.join(root, "head/watch"), os.O_RDWR | os.O_CLOEXEC)
        self._pending = b""

    def write(self, data):
        """Writes bytes as they are."""
        os.write(self.fd, data)

    def line(self):
        """The next frame, END behind the last one."""
        while b"\n" not in self._pending:
            chunk = os.read(self.fd, 4096)
            if not chunk:
                return END
            self._pending += chunk
        line, self._pending = self._pending.split(b"\n", 1)
        return line.decode(errors="backslashreplace")

    def close(self):
        """Closes it, without a word."""
        os.close(self.fd)
