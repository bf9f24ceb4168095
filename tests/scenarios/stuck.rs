//! One client is stuck in a pin for the whole pin timeout; everything else goes on as usual.
//!
//! Invariant: times are compared with those of the same things just before, in turns, and never with a number but the
//! pin timeout, which is how long whatever waits for the pin would take.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use crate::live::wait_until;
use crate::mapping::PAGE;
use crate::puppet::Puppet;
use crate::stage::{Kind, PAGES, Reading, Stage};
use revfs::env::{Clock, SystemClock};
use rustix::fs::{Advice, fadvise};
use rustix::process::Signal;

const ROUNDS: usize = 3;
/// Looks at each thing in a calm part of a round.
const CALM: usize = 12;
const PIN_TIMEOUT: Duration = Duration::from_secs(2);
/// What a busy machine may add: much less than a wait for the pin.
const NOISE: Duration = Duration::from_millis(700);
/// The stuck client is told of the first block, so all of its pages wait. Blocks of the middle never change.
/// Each commit changes the last one.
const BLOCKS: usize = 16;

type Times = BTreeMap<&'static str, Vec<Duration>>;

struct Looker<'a> {
    stage: &'a Stage,
    file: String,
    clock: Arc<dyn Clock>,
    values: Vec<u8>,
    next_page: usize,
}

impl Looker<'_> {
    /// Does each thing once.
    fn look(&mut self, times: &mut Times) {
        let live = &self.stage.live;
        let head = live.at();
        let page = self.next_page;
        self.next_page += 1;
        // Of the blocks in the middle, and not from the page cache.
        let offset = (PAGES + page % ((BLOCKS - 2) * PAGES)) * PAGE;
        let open = File::open(self.stage.head("a")).unwrap();
        fadvise(&open, 0, None, Advice::Random).unwrap();
        fadvise(&open, offset as u64, NonZeroU64::new(PAGE as u64), Advice::DontNeed).unwrap();
        let clock = Arc::clone(&self.clock);
        let mut time = |what, run: &mut dyn FnMut()| {
            let start = clock.monotonic();
            run();
            times.entry(what).or_default().push(clock.monotonic() - start);
        };
        time("read", &mut || {
            let mut bytes = [0; PAGE];
            open.read_exact_at(&mut bytes, offset as u64).unwrap();
            assert_eq!(bytes, [1; PAGE]);
        });
        time("lookup", &mut || {
            assert!(fs::metadata(live.head(&format!("none{page}"))).is_err());
            fs::metadata(live.path(&format!("@{head}/by-id/{}", self.file))).unwrap();
        });
        time("set-up", &mut || drop(self.stage.watching(&head)));
        time("status", &mut || drop(self.stage.place.ok(&["status", "m"])));
        time("commit", &mut || {
            let last = self.values.last_mut().unwrap();
            *last = last.wrapping_add(1).max(1);
            live.wait(&self.stage.commit_to("a", &self.values));
        });
    }
}

/// The time that one in a hundred takes longer than; of few, the longest.
fn p99(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[(sorted.len() * 99).div_ceil(100) - 1]
}

pub fn nothing_waits_for_a_client_that_is_stuck_in_a_pin(kind: Kind) {
    let mut values = vec![1; BLOCKS];
    // Fewer threads serve the kernel than READs wait.
    let timeout = format!("{}s", PIN_TIMEOUT.as_secs());
    let (stage, _) = Stage::on_with(kind, &["--pin-timeout", &timeout, "--threads", "2"], &[&values]);
    let (mut calm, mut stuck) = (Times::new(), Times::new());
    let clock: Arc<dyn Clock> = SystemClock::shared();
    let mut looker =
        Looker { stage: &stage, file: stage.file(), clock, values: values.clone(), next_page: 0 };
    for round in 0..ROUNDS {
        (0..CALM).for_each(|_| looker.look(&mut calm));
        let mut mute = Puppet::start_on(&stage.live, &stage.name("a"), ("mute", &stage.live.at()));
        mute.until("heard 1 ok");
        values.clone_from(&looker.values);
        values[0] += 1;
        looker.values.clone_from(&values);
        stage.commit(&values);
        let waiting: Vec<Reading> =
            (0..PAGES).map(|page| Reading::start(&stage.head("a"), page * PAGE, PAGE)).collect();
        mute.until("heard 2 pin");
        wait_until("all wait", || stage.live.stat("reads_waiting") == PAGES as u64);
        let before = stuck.get("read").map_or(0, Vec::len);
        while waiting[0].waits() {
            looker.look(&mut stuck);
        }
        assert!(stuck["read"].len() > before, "it was stuck for a while");
        assert_eq!(mute.ended_by(), Some(Signal::BUS.as_raw()));
        waiting.into_iter().skip(1).for_each(|reading| assert_eq!(reading.value(), values[0]));
        assert_eq!(stage.live.stat("kills"), round as u64 + 1);
    }
    for (what, times) in &stuck {
        let (usual, now) = (p99(&calm[what]), p99(times));
        println!("{what}: p99 {usual:?} of {}, stuck {now:?} of {}", calm[what].len(), times.len());
        assert!(now <= 2 * usual + NOISE, "{what}: {now:?} while a client is stuck, {usual:?} else");
    }
    stage.end_after(ROUNDS as u64);
}
