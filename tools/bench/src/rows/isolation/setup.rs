//! Set-ups of a watch whose blocks have all changed since, against the mapping alone.

use std::fs::File;

use revfs::protocol::BlockSize;

use super::link::Link;
use super::writer::{Change, Written};
use super::{Place, read_words};
use crate::clock::timed;
use crate::driver::Mounted;
use crate::error::{BenchError, Named, Result};
use crate::map::Movable;
use crate::rows::{Row, Side};
use crate::stats::Pair;

/// `range`: pins may have several blocks. `(count, step)`: so many blocks change, each `step` after the other.
pub fn measure(
    row: &mut Row,
    (place, mounted): (&Place, &Mounted),
    name: &str,
    (count, step): (u64, u64),
    range: bool,
) -> Result<Vec<Pair>> {
    let mut written = place.writer.create(name, BlockSize::MIN, (count, step))?;
    let old = place.change(mounted, &mut written)?;
    let new = place.change(mounted, &mut written)?;
    // Only what was read is pinned.
    let path = mounted.join("head/bigfile").join(name);
    read_words(&path, &written, new)?;
    let head = File::open(&path).named(path.display())?;
    let open_rev = || {
        let path = mounted.join(&format!("@{}/by-id/{}", old.tid, written.file));
        File::open(&path).named(path.display())
    };
    let mut pinned = 0;
    let pairs = row.interleave(|side, _| {
        let mapping = Movable::new(&head, written.size())?;
        let rev = open_rev()?;
        let (took, result) = match side {
            Side::Ours => {
                let mut link = Link::open(mounted)?;
                if range {
                    link.hello_range()?;
                }
                let timed = timed(|| {
                    link.watch((written.file, old.tid), |span, _| {
                        let blocks = span.first.raw()..span.last.raw() + 1;
                        mapping.remap(bytes_of(&written, blocks), &rev)
                    })
                });
                // While it is watched: after its bye nobody promises anything any more.
                check(&mapping, &written, old)?;
                timed
            }
            Side::Baseline => timed(|| {
                let map = |block: &u64| mapping.remap(bytes_of(&written, *block..*block + 1), &rev);
                written.blocks.iter().try_for_each(map).map(|()| count)
            }),
        };
        let done = result?;
        check(&mapping, &written, old)?;
        if side == Side::Ours {
            pinned = done;
        }
        Ok(took.as_secs_f64() * 1e3)
    })?;
    let expected = if range && step == 1 { 1 } else { count };
    if pinned != expected {
        return Err(BenchError::Wrong(format!("there were {pinned} pins, {expected} were to be")));
    }
    row.note(format!("{pinned} pins of {count} blocks of 4 KiB, one mmap and one write of its ack for each"));
    Ok(pairs)
}

fn bytes_of(written: &Written, blocks: std::ops::Range<u64>) -> std::ops::Range<u64> {
    written.start(blocks.start)..written.start(blocks.end)
}

fn check(mapping: &Movable, written: &Written, seen: Change) -> Result<()> {
    written.blocks.iter().try_for_each(|block| seen.check(*block, mapping.word(written.start(*block))?))
}
