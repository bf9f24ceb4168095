"""Checks that say what was expected and what was got."""

import errno
import time

# How long anything may take that is to happen by itself, in seconds.
SOON = 20
LOOK = 0.002


class Failed(AssertionError):
    """The server does not do what it has to."""


class CacheFailed(Failed):
    """The page cache is not as it has to be."""

    def __init__(self, when, what, wanted, got):
        super().__init__(f"{what}: {when}\n    expected: {brief(wanted)}\n    got:      {brief(got)}")


def brief(value):
    """A value as text of bearable length."""
    if isinstance(value, bytes) and len(value) > 48:
        kept = value.rstrip(b"\0")
        return f"{kept[:32]!r}... {len(kept)} of {len(value)} bytes"
    text = str(value) if isinstance(value, str) else repr(value)
    return text if len(text) < 2000 else f"{text[:2000]}..."


def expect(wanted, got, what):
    """Both are the same."""
    if wanted != got:
        raise Failed(f"{what}\n    expected: {brief(wanted)}\n    got:      {brief(got)}")


def expect_match(pattern, got, what):
    """All of the text matches."""
    if not pattern.fullmatch(got):
        raise Failed(f"{what}\n    expected: {pattern.pattern}\n    got:      {brief(got)}")


def expect_errno(wanted, action, what):
    """The action fails with one of these error numbers."""
    names = " or ".join(errno.errorcode[number] for number in wanted)
    try:
        got = action()
    except OSError as error:
        if error.errno in wanted:
            return error.errno
        got = errno.errorcode.get(error.errno, error)
        raise Failed(f"{what}\n    expected: {names}\n    got:      {got}") from error
    raise Failed(f"{what}\n    expected: {names}\n    got:      success, {brief(got)}")


def wait_until(look, what, seconds=SOON):
    """Looks again and again, until it is so."""
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(LOOK)


def wait_equal(wanted, look, what, seconds=SOON):
    """Looks again and again, until it is what is wanted."""
    deadline = time.monotonic() + seconds
    while (got := look()) != wanted:
        if time.monotonic() > deadline:
            raise Failed(f"{what}, within {seconds} s\n    expected: {brief(wanted)}\n    got:      {brief(got)}")
        time.sleep(LOOK)
