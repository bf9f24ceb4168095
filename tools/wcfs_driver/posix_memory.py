"""Memory of files, with the system calls that Python does not have.

Invariant: mapped memory is touched only by C functions called through ctypes, which release the interpreter's lock:
a thread that waits in a page fault must not keep the thread from running that carries out the pin.
"""

import ctypes
import os

PAGE = os.sysconf("SC_PAGE_SIZE")
PROT_NONE, PROT_READ = 0, 1
MAP_SHARED, MAP_FIXED, MAP_NORESERVE = 0x01, 0x10, 0x4000
MLOCK_ONFAULT = 1
MADV_RANDOM, MADV_SEQUENTIAL, MADV_DONTNEED, MADV_POPULATE_READ = 1, 2, 4, 22
MS_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mlock2.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
_libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
_libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_libc.write.restype = ctypes.c_ssize_t
_libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_libc.memcpy.restype = ctypes.c_void_p


def _check(result, what):
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _map(address, length, protection, flags, fd, offset):
    got = _libc.mmap(address, length, protection, flags, fd, offset)
    if got == MS_FAILED:
        error = ctypes.get_errno()
        raise OSError(error, f"mmap: {os.strerror(error)}")
    return got


class Memory:
    """A range of memory: of a file, or of zeros without one. It stays until `unmap`."""

    def __init__(self, length, fd=None, offset=0):
        self.length = length
        self._zero = os.open("/dev/zero", os.O_RDONLY)
        if fd is None:
            fd, offset, flags = self._zero, 0, MAP_SHARED | MAP_NORESERVE
        else:
            flags = MAP_SHARED
        self.address = _map(None, length, PROT_READ, flags, fd, offset)

    def unmap(self):
        """Gives the range back; it is not used any more."""
        if self.address is not None:
            _check(_libc.munmap(self.address, self.length), "munmap")
            os.close(self._zero)
            self.address = None

    def show_file(self, start, length, fd, offset):
        """Puts a part of a file where something else is shown, at once."""
        _map(self.address + start, length, PROT_READ, MAP_SHARED | MAP_FIXED, fd, offset)

    def show_zeros(self, start, length):
        """Puts zeros where something else is shown."""
        _map(self.address + start, length, PROT_READ, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, self._zero, 0)

    def show_nothing(self, start, length):
        """From now on an access is a fault."""
        _map(self.address + start, length, PROT_NONE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, self._zero, 0)

    def copy(self, start, length):
        """Bytes of the range. Who reads what cannot be read is killed: see `try_copy`."""
        copied = ctypes.create_string_buffer(length)
        _libc.memcpy(copied, self.address + start, length)
        return copied.raw

    def try_copy(self, start, length):
        """Bytes of a range of at most a page. The kernel copies them: what cannot be read is an error (EFAULT)."""
        reader, writer = os.pipe()
        try:
            if _libc.write(writer, self.address + start, length) != length:
                error = ctypes.get_errno()
                raise OSError(error, f"memory cannot be read: {os.strerror(error)}")
            return os.read(reader, length)
        finally:
            os.close(reader)
            os.close(writer)

    def can_read(self, start):
        """Whether the byte there can be read."""
        try:
            self.try_copy(start, 1)
        except OSError:
            return False
        return True

    def advise(self, start, length, advice):
        """madvise"""
        _check(_libc.madvise(self.address + start, length, advice), "madvise")

    def populate(self, start, length):
        """Maps what is in the page cache, as if each page were touched."""
        self.advise(start, length, MADV_POPULATE_READ)

    def lock_as_it_comes(self):
        """What gets into memory stays there, until it is dropped on purpose."""
        _check(_libc.mlock2(self.address, self.length, MLOCK_ONFAULT), "mlock2")

    def unlock(self, start, length):
        """munlock"""
        _check(_libc.munlock(self.address + start, length), "munlock")

    def lock_part(self, start, length):
        """As `lock_as_it_comes`, for a part."""
        _check(_libc.mlock2(self.address + start, length, MLOCK_ONFAULT), "mlock2")

    def pages_present(self, start, length):
        """For each page of a part, whether it is in the page cache."""
        pages = (length + PAGE - 1) // PAGE
        states = ctypes.create_string_buffer(pages)
        _check(_libc.mincore(self.address + start, length, states), "mincore")
        return [bool(state & 1) for state in states.raw[:pages]]
