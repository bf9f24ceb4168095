"""Reads the first blocks of a file through ZODB, and prints how many seconds that took and a sum over the bytes.

usage: zodb_read.py FIXTURE DATABASE OID BLOCKS; FIXTURE is the folder of the classes. The sum is that of the first eight
bytes of each page of 4 KiB, as a little-endian number, modulo 2**64. Opening the database is not timed.
"""

import struct
import sys
import time

sys.dont_write_bytecode = True
FIXTURE, DATABASE, OID, BLOCKS = sys.argv[1:]
sys.path.insert(0, FIXTURE)

import objects  # noqa: E402, F401
import ZODB  # noqa: E402
from ZODB.FileStorage import FileStorage  # noqa: E402
from ZODB.utils import p64  # noqa: E402

PAGE = 4096

db = ZODB.DB(FileStorage(DATABASE, read_only=True))
connection = db.open()
file = connection.get(p64(int(OID)))
file._p_activate()
total = 0
start = time.monotonic()
for number in range(int(BLOCKS)):
    block = file.block(number)
    for at in range(0, len(block), PAGE):
        total += struct.unpack_from("<Q", block, at)[0]
print(time.monotonic() - start, total % 2**64)
db.close()
