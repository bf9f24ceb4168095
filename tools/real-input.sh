#!/usr/bin/env bash
# Tries revfs on real input: a shared library of five releases of numpy, and a SQLite database that is edited between
# commits. Mounts the store and compares each revision with what was committed. Exit code 0 if all of it agrees.
#
#   tools/real-input.sh             builds revfs and uses it
#   REVFS=/usr/bin/revfs tools/real-input.sh
#
# Needs python3 with venv, pip's package index and /dev/fuse. Wheels and the venv stay in target/real-input; the rest goes
# away at the end, whatever the end is.
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C

VERSIONS=(1.26.0 1.26.1 1.26.2 1.26.3 1.26.4)
KEPT=${CARGO_TARGET_DIR:-target}/real-input
LIBRARY=numpy/core/_multiarray_umath
NAME=numpy/_multiarray_umath.so

say() { printf '\n== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

WORK=
clean_up() {
    local code=$?
    trap - EXIT
    if [ -n "$WORK" ]; then
        if mountpoint -q "$WORK/mnt"; then
            "$REVFS" umount "$WORK/mnt" --timeout 20s || umount -l "$WORK/mnt" || fusermount3 -uz "$WORK/mnt" || true
        fi
        # Never into a tree that is still mounted.
        rm -rf --one-file-system "$WORK"
    fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

find_revfs() {
    if [ -z "${REVFS:-}" ]; then
        cargo build --quiet --release --bin revfs
        REVFS=${CARGO_TARGET_DIR:-target}/release/revfs
    fi
    REVFS=$(realpath "$REVFS")
    "$REVFS" --version
}

fetch() {
    local version
    mkdir -p "$KEPT/wheels"
    KEPT=$(realpath "$KEPT")
    PYTHON=$KEPT/venv/bin/python
    "$PYTHON" -m pip --version >/dev/null 2>&1 || python3 -m venv --clear "$KEPT/venv"
    for version in "${VERSIONS[@]}"; do
        compgen -G "$KEPT/wheels/numpy-$version-*.whl" >/dev/null && continue
        "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-input --no-deps --only-binary=:all: \
            --platform manylinux2014_x86_64 --python-version 311 --dest "$KEPT/wheels" "numpy==$version"
    done
}

# Bytes of the commits and packs of the store, which is all that a backup needs.
stored() {
    find "$STORE/commits" "$STORE/packs" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }'
}

# room NAME TOOK FILES...: what the store took for all these versions of a file.
room() {
    local name=$1 took=$2 sum
    shift 2
    sum=$(cat "$@" | wc -c)
    awk -v name="$name" -v took="$took" -v sum="$sum" -v count=$# 'BEGIN {
        printf "%s: %d versions have %d bytes, the store took %d (%.1f %%)\n", name, count, sum, took, 100 * took / sum }'
}

commit_numpy() {
    local version wheel tid
    for version in "${VERSIONS[@]}"; do
        wheel=$(compgen -G "$KEPT/wheels/numpy-$version-*.whl" | head -n 1)
        "$PYTHON" - "$wheel" "$LIBRARY" "$WORK/numpy-$version.so" <<'PYTHON'
import shutil, sys, zipfile
wheel, library, to = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    [name] = [n for n in archive.namelist() if n.startswith(library + ".") and n.endswith(".so")]
    with archive.open(name) as source, open(to, "wb") as target:
        shutil.copyfileobj(source, target)
PYTHON
        tid=$("$REVFS" commit "$STORE" "$NAME=$WORK/numpy-$version.so" --block-size 4K -m "numpy $version" \
            --tag "numpy-$version")
        printf '%s  @%s  %d bytes\n' "$version" "$tid" "$(stat -c %s "$WORK/numpy-$version.so")"
    done
}

# Edits the database in place and prints how many rows it has then.
edit_db() {
    "$PYTHON" - "$WORK/db" "$1" <<'PYTHON'
import random, sqlite3, sys
path, step = sys.argv[1], int(sys.argv[2])
chance = random.Random(step)
db = sqlite3.connect(path)
with db:
    if step == 1:
        db.execute("create table trade (id integer primary key, symbol text, price real, note text)")
    rows = [(f"S{chance.randrange(500)}", chance.random() * 100, "x" * chance.randrange(80))
            for _ in range(100_000 if step == 1 else 1_000)]
    db.executemany("insert into trade (symbol, price, note) values (?, ?, ?)", rows)
    for _ in range(20 if step > 1 else 0):
        db.execute("update trade set price = price + 1 where id = ?", (chance.randrange(1, 100_000),))
print(db.execute("select count(*) from trade").fetchone()[0])
db.close()
PYTHON
}

commit_db() {
    local step tid rows
    for step in 1 2 3 4 5; do
        rows=$(edit_db "$step")
        cp "$WORK/db" "$WORK/db-$step"
        tid=$("$REVFS" commit "$STORE" "db=$WORK/db" --block-size 4K -m "step $step" --tag "db-$step")
        printf '%s\n' "$rows" >"$WORK/rows-$step"
        printf 'step %d  @%s  %d bytes, %d rows\n' "$step" "$tid" "$(stat -c %s "$WORK/db")" "$rows"
    done
}

# same TAG NAME ORIGINAL: the file at the tag, through the mount, has the bytes of the original.
same() {
    local sum want
    sum=$(sha256sum <"$WORK/mnt/@$1/bigfile/$2")
    want=$(sha256sum <"$3")
    [ "$sum" = "$want" ] || die "@$1/bigfile/$2: sha256 is ${sum%% *}, that of the original is ${want%% *}"
    printf '@%-13s %s  same as the original\n' "$1" "${sum%% *}"
}

# changed FROM TO ORIGINAL1 ORIGINAL2: which ranges changed, and that those are all of the blocks that differ.
changed() {
    "$REVFS" diff "$STORE" "$1" "$2" --json >"$WORK/diff"
    "$PYTHON" - "$WORK/diff" "$@" <<'PYTHON'
import json, sys
diff, before, after, *originals = sys.argv[1:]
old, new = (open(path, "rb").read() for path in originals)
[entry] = map(json.loads, open(diff))
said = {block for r in entry["ranges"] for block in range(r["start"] // 4096, -(-r["end"] // 4096))}
# What a shrink cut off shows in the size alone.
blocks = range(-(-len(new) // 4096))
differ = {block for block in blocks if old[block * 4096:][:4096] != new[block * 4096:][:4096]}
assert said == differ, (entry["name"], len(said), len(differ))
count, changed = len(entry["ranges"]), sum(r["end"] - r["start"] for r in entry["ranges"])
print(f"@{before} -> @{after}  {count} range{'s' * (count != 1)}, {changed} of {entry['size']} bytes")
PYTHON
}

query_db() {
    local step rows want
    for step in 1 2 3 4 5; do
        want=$(cat "$WORK/rows-$step")
        rows=$("$PYTHON" - "$WORK/mnt/@db-$step/bigfile/db" <<'PYTHON'
import sqlite3, sys
db = sqlite3.connect(f"file:{sys.argv[1]}?immutable=1", uri=True)
[[check]] = db.execute("pragma integrity_check").fetchall()
assert check == "ok", check
print(db.execute("select count(*) from trade").fetchone()[0])
PYTHON
        )
        [ "$rows" = "$want" ] || die "@db-$step/bigfile/db: count(*) is $rows, it was $want when it was committed"
        printf 'file:mnt/@db-%d/bigfile/db?immutable=1  count(*) = %s, integrity_check ok\n' "$step" "$rows"
    done
}

find_revfs
fetch
WORK=$(mktemp -d)
STORE=$WORK/real.revfs
"$REVFS" init "$STORE" >/dev/null
empty=$(stored)

say "commit $NAME of five releases of numpy"
commit_numpy
with_numpy=$(stored)
say "commit a SQLite database after each of five edits"
commit_db
with_both=$(stored)

"$REVFS" mount "$STORE" "$WORK/mnt"
say "sha256 of each revision through the mount"
for version in "${VERSIONS[@]}"; do
    same "numpy-$version" "$NAME" "$WORK/numpy-$version.so"
done
for step in 1 2 3 4 5; do
    same "db-$step" db "$WORK/db-$step"
done

say "what changed, in blocks of 4 KiB"
for i in 1 2 3 4; do
    from=numpy-${VERSIONS[i - 1]} to=numpy-${VERSIONS[i]}
    changed "$from" "$to" "$WORK/$from.so" "$WORK/$to.so"
done
for i in 1 2 3 4; do
    changed "db-$i" "db-$((i + 1))" "$WORK/db-$i" "$WORK/db-$((i + 1))"
done
# No pipe to head: it would end revfs early.
"$REVFS" diff "$STORE" db-4 db-5 >"$WORK/diff"
echo "the first ranges of the last one:"
head -n 5 "$WORK/diff"

say "SQLite on each revision"
query_db

say "room"
room "$NAME" $((with_numpy - empty)) "$WORK"/numpy-*.so
room db $((with_both - with_numpy)) "$WORK"/db-?
"$REVFS" verify "$STORE"
"$REVFS" umount "$WORK/mnt"
say "all agrees"
