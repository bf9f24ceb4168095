//! What the page cache has, at head and at revisions; holes; the end of a file.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::mapping::{Mapping, PAGE};
use crate::stage::{BLOCK, Kind, PAGES, Reading, Stage, filled};

pub fn a_commit_drops_the_changed_block_of_head_and_nothing_of_revisions(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1, 1, 1]);
    let head = Mapping::new(&stage.head("a"), 4 * BLOCK);
    let old = Mapping::new(&stage.rev(&t1, "a"), 4 * BLOCK);
    assert!(head.bytes() == filled(&[1, 1, 1, 1]) && old.bytes() == filled(&[1, 1, 1, 1]));
    let t2 = stage.commit(&[1, 2, 1, 1]);
    assert_eq!(head.blocks_not_cached(PAGES), [1], "unchanged blocks stay");
    assert_eq!(old.blocks_not_cached(PAGES), [0usize; 0]);
    let new = Mapping::new(&stage.rev(&t2, "a"), 4 * BLOCK);
    assert_eq!(new.blocks_not_cached(PAGES), [0, 1, 2, 3], "another version, which nobody has read");
    assert!(head.bytes() == filled(&[1, 2, 1, 1]) && new.bytes() == filled(&[1, 2, 1, 1]));
    assert!(old.bytes() == filled(&[1, 1, 1, 1]));
    assert_eq!(head.blocks_not_cached(PAGES), [0usize; 0]);
    // Growth keeps all, also through an open file, which sees the new blocks.
    let open = File::open(stage.head("a")).unwrap();
    stage.commit(&[1, 2, 1, 1, 5]);
    assert_eq!(head.blocks_not_cached(PAGES), [0usize; 0]);
    let mut byte = [0];
    open.read_exact_at(&mut byte, 4 * BLOCK as u64).unwrap();
    assert_eq!((byte[0], fs::metadata(stage.rev(&t2, "a")).unwrap().len()), (5, 4 * BLOCK as u64));
    drop((head, old, new, open));
    stage.end();
}

pub fn a_hole_that_becomes_data_is_all_that_leaves_the_page_cache(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 0, 0, 1]);
    let head = Mapping::new(&stage.head("a"), 4 * BLOCK);
    assert!(head.bytes() == filled(&[1, 0, 0, 1]));
    let mut link = stage.watching(&t1);
    stage.commit(&[1, 0, 2, 1]);
    assert_eq!(head.blocks_not_cached(PAGES), [2]);
    // Its own hole is a block as any: pinned to where the file was made.
    let reading = stage.reading(2);
    let pin = link.hear();
    assert_eq!(pin, format!("2 pin {} #2 @{t1}", stage.file()));
    link.say("2 ack");
    assert_eq!(reading.value(), 2);
    assert!(head.bytes() == filled(&[1, 0, 2, 1]));
    assert!(fs::read(stage.rev(&t1, "a")).unwrap() == filled(&[1, 0, 0, 1]));
    link.expect_quiet();
    drop((head, link));
    stage.end();
}

pub fn reads_at_and_behind_the_end_are_short_or_empty_and_pin_nothing(kind: Kind) {
    let (stage, _) = Stage::on(kind, &[1, 1]);
    let (size, t2) = match kind {
        Kind::Native => {
            let size = BLOCK + PAGE + 10;
            fs::write(stage.place.path("source"), &filled(&[1, 1])[..size]).unwrap();
            (size, stage.place.ok(&["commit", "s", "a=source"]))
        }
        // It has whole blocks only.
        Kind::Zodb => (BLOCK, stage.commit_to("a", &[1])),
    };
    stage.live.wait(&t2);
    let mut link = stage.watching(&t2);
    let tail = |path: &std::path::Path, offset: usize| Reading::start(path, offset, 2 * PAGE).bytes();
    let check = |size: usize| {
        for path in [stage.head("a"), stage.rev(&t2, "a")] {
            assert_eq!(tail(&path, size - 1), [1]);
            for beyond in [size, size + 1, size.next_multiple_of(PAGE), size.next_multiple_of(BLOCK), 1 << 40]
            {
                assert_eq!(tail(&path, beyond), [0u8; 0], "{}, {beyond}", path.display());
            }
            // The rest of the page in which it ends is zeros for who maps it.
            let mapping = Mapping::new(&path, size.next_multiple_of(PAGE));
            assert_eq!(mapping.at(size - 1), 1, "{}", path.display());
            if !size.is_multiple_of(PAGE) {
                assert_eq!(mapping.at(size), 0, "{}", path.display());
            }
        }
    };
    check(size);
    // It grows by what the kernel had zeros for, and by blocks that were asked for in vain.
    let t3 = stage.commit(&[1, 1, 3]);
    let mut heard = std::collections::BTreeMap::new();
    for (offset, value) in [(size, 1), (2 * BLOCK, 3)] {
        let reading = Reading::start(&stage.head("a"), offset, 1);
        let pin = link.hear();
        assert!(reading.waits(), "{pin}");
        link.ack(&pin, &mut heard);
        assert_eq!(reading.value(), value);
    }
    assert_eq!(heard.keys().copied().collect::<Vec<_>>(), [1, 2]);
    let rev = stage.rev(&t2, "a");
    assert_eq!((tail(&rev, size - 1), tail(&rev, size)), (vec![1], vec![]), "as before @{t3}");
    link.expect_quiet();
    drop(link);
    stage.end();
}
