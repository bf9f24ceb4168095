//! Random schedules of READs, commits, invalidations, set-ups and clients around real links, checked by brute force.
//!
//! The harness is the server and the kernel in small, in steps that may interleave as they do there; the links are
//! the real ones. Rules that were broken on purpose, here or in the links, and what then failed:
//!
//! | rule | done wrong | fails |
//! |---|---|---|
//! | 4 | a READ asks the links before it tracks | a pin of a block that was never read |
//! | 5 | `read_pin` does not look whether the watch moved | isolation |
//! | 6 | a READ of a block whose pin is on its way does not wait | isolation |
//! | 6, 7 | `acked` releases all who wait, or none whose target was replaced | `frames::a_block_has_one_pin...` |
//! | 7 | `aim` compares with what was acked last | a block is pinned twice |
//! | 9 | `setup_pin` takes back what a READ pinned after the move, or takes nothing back | isolation |
//! | 10 | `ok` before the acks; a second set-up is forgotten | isolation; a request without answer |
//! | 13 | a dropped watch leaves its READs, what it owes, or its queued pins | a READ waits for ever; an innocent is killed; a late pin |

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use revfs_protocol::{BlockIndex, BlockSpan, FileId, PinTo, ServerMessage, StreamKind, Tid};

use super::*;

mod frames;
mod noise;
mod runs;

const BLOCKS: usize = 8;
/// Pages of a block: another READ may ask for the other one while the first waits.
const BLOCK_PAGES: usize = 2;
const PAGES: usize = BLOCKS * BLOCK_PAGES;
const REVISIONS: usize = 6;
const FILE: FileId = FileId::from_raw(0xf);
const STEPS: usize = 600;

/// xorshift64*, as deterministic as the seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
    fn once_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }
}

/// A page in the kernel: content by revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Absent,
    Locked,
    Present(usize),
}

#[derive(Debug)]
enum Read {
    Track,
    TakeHead,
    Ask { head: usize, link: usize },
    Pin { head: usize, link: usize, need: ReadNeed, targets: Vec<(BlockSpan, Tid)> },
    Wait { head: usize },
}

#[derive(Debug)]
struct ReadTask {
    pages: Vec<usize>,
    blocks: Vec<usize>,
    wait: WaitId,
    acks: i64,
    at: Read,
}

#[derive(Debug)]
enum SetUp {
    Waiting,
    Move,
    Load,
    Pin(Vec<(BlockSpan, Tid)>),
}

/// A client as it should be.
struct Client {
    link: Link,
    map: [PinTo; BLOCKS],
    /// The state that an `ok` promised.
    promised: Option<usize>,
    /// What it asked for and has no answer to yet.
    asked: VecDeque<(u64, usize)>,
    dropping: bool,
    /// Pins that may still come for what it gave up: the one that it has read a part of.
    late_pins: usize,
    /// It hears, and it acks, at one in so many chances.
    deaf: usize,
    lazy: usize,
    watching: bool,
    newest: usize,
    stream: u64,
    line: Vec<u8>,
    acks: Vec<String>,
}

struct World {
    random: Random,
    /// For each revision, the blocks that it changed.
    history: Vec<BTreeSet<usize>>,
    published: usize,
    shown: usize,
    invals: BTreeSet<(usize, usize)>,
    pages: [Page; PAGES],
    /// Blocks that anything happens to.
    active: usize,
    tracked: BTreeSet<usize>,
    reads: Vec<ReadTask>,
    setups: Vec<(usize, SetupRequest, SetUp)>,
    clients: Vec<Client>,
    waits: u64,
    log: Vec<String>,
}

fn tid(revision: usize) -> Tid {
    Tid::from_raw(revision as u64)
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut history = vec![BTreeSet::new()];
        for _ in 0..REVISIONS {
            history.push((0..BLOCKS).filter(|_| random.once_in(3)).collect());
        }
        let active = 1 + random.below(BLOCKS);
        let clients = (0..2 + random.below(2))
            .map(|_| Client::new(random.once_in(2), 1 + random.below(9), 1 + random.below(6)));
        let clients = clients.collect();
        World {
            random,
            history,
            published: 0,
            shown: 0,
            invals: BTreeSet::new(),
            pages: [Page::Absent; PAGES],
            active,
            tracked: BTreeSet::new(),
            reads: Vec::new(),
            setups: Vec::new(),
            clients,
            waits: 0,
            log: Vec::new(),
        }
    }

    /// Brute force: the last revision up to `at` that changed a block.
    fn rev(&self, block: usize, at: usize) -> usize {
        (0..=at).rev().find(|rev| self.history[*rev].contains(&block)).unwrap_or(0)
    }

    fn act(&mut self, client: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Readable | Action::Unregister { .. } | Action::Acked(_) => {}
                Action::Setup(request) => self.setups.push((client, request, SetUp::Waiting)),
                Action::GiveUp(given_up) => {
                    self.setups.retain(|(of, request, _)| (*of, *request) != (client, given_up))
                }
                Action::Release(wait) => {
                    if let Some(read) = self.reads.iter_mut().find(|read| read.wait == wait) {
                        read.acks -= 1;
                    }
                }
                Action::Unwatch { .. } => panic!("this link does not ask"),
                Action::Kill(fault) => panic!("S4: client {client} is innocent: {fault:?}"),
            }
        }
    }

    fn step(&mut self) {
        match self.random.below(12) {
            0 if self.published < REVISIONS => self.commit(),
            1 | 2 => self.invalidate(),
            3 => self.new_read(),
            4 | 5 if !self.reads.is_empty() => {
                let read = self.random.below(self.reads.len());
                self.step_read(read);
            }
            6 if !self.setups.is_empty() => {
                let setup = self.random.below(self.setups.len());
                self.step_setup(setup);
            }
            7 => {
                let client = self.random.below(self.clients.len());
                self.client_speaks(client);
            }
            8..=10 => {
                let client = self.random.below(self.clients.len());
                if self.random.once_in(self.clients[client].deaf) {
                    self.client_hears(client);
                }
            }
            11 if self.random.once_in(4) => {
                // The kernel evicts what it likes.
                let page = self.random.below(PAGES);
                if let Page::Present(_) = self.pages[page] {
                    self.pages[page] = Page::Absent;
                }
            }
            _ => {}
        }
        self.check();
    }

    fn commit(&mut self) {
        self.published += 1;
        self.log.push(format!("commit {}", self.published));
        let at = self.published;
        let changed = (0..PAGES).filter(|page| self.history[at].contains(&(page / BLOCK_PAGES)));
        self.invals.extend(changed.map(|page| (at, page)));
    }

    fn invalidate(&mut self) {
        let free = |page: &usize| self.pages[*page] != Page::Locked;
        let ready: Vec<_> = self.invals.iter().filter(|(_, page)| free(page)).copied().collect();
        if !ready.is_empty() {
            let (at, page) = ready[self.random.below(ready.len())];
            self.pages[page] = Page::Absent;
            self.invals.remove(&(at, page));
        }
        while self.shown < self.published && !self.invals.iter().any(|(at, _)| *at == self.shown + 1) {
            self.shown += 1;
        }
    }

    fn new_read(&mut self) {
        let first = self.random.below(self.active * BLOCK_PAGES);
        let last = (first + self.random.below(4)).min(self.active * BLOCK_PAGES - 1);
        if (first..=last).any(|page| self.pages[page] != Page::Absent) {
            return;
        }
        (first..=last).for_each(|page| self.pages[page] = Page::Locked);
        self.waits += 1;
        let wait = WaitId(self.waits);
        let blocks = (first / BLOCK_PAGES..=last / BLOCK_PAGES).collect();
        self.reads.push(ReadTask { pages: (first..=last).collect(), blocks, wait, acks: 0, at: Read::Track });
    }

    fn step_read(&mut self, index: usize) {
        let mut read = self.reads.remove(index);
        match std::mem::replace(&mut read.at, Read::Track) {
            Read::Track => {
                self.tracked.extend(read.blocks.iter().copied());
                read.at = Read::TakeHead;
            }
            Read::TakeHead => read.at = Read::Ask { head: self.published, link: 0 },
            Read::Ask { head, link } if link == self.clients.len() => read.at = Read::Wait { head },
            Read::Ask { head, link } => {
                let revs: Vec<_> = read.blocks.iter().map(|b| (one(*b), tid(self.rev(*b, head)))).collect();
                let need = self.clients[link].link.read_begin(FILE, &revs, read.wait);
                read.at = match need {
                    Some(need) => {
                        read.acks += need.waits as i64;
                        let at = need.at.raw() as usize;
                        let unknown = need.unknown.iter().flat_map(|span| span.blocks());
                        let targets =
                            unknown.map(|b| (BlockSpan::one(b), tid(self.rev(b.raw() as usize, at))));
                        let targets = targets.collect();
                        Read::Pin { head, link, need, targets }
                    }
                    None => Read::Ask { head, link: link + 1 },
                };
            }
            Read::Pin { head, link, need, targets } => {
                let mut actions = Vec::new();
                let key = (FILE, need.serial);
                let client = &mut self.clients[link];
                let pinned = match targets.is_empty() {
                    true => Ok(0),
                    false => client.link.read_pin(Duration::ZERO, key, &targets, read.wait, &mut actions),
                };
                read.at = match pinned {
                    Ok(acks) => {
                        read.acks += acks as i64;
                        Read::Ask { head, link: link + 1 }
                    }
                    Err(Moved) => Read::Ask { head, link },
                };
                self.reads.push(read);
                return self.act(link, actions);
            }
            Read::Wait { head } if read.acks == 0 => {
                for page in read.pages {
                    self.pages[page] = Page::Present(self.rev(page / BLOCK_PAGES, head));
                }
                return;
            }
            Read::Wait { head } => read.at = Read::Wait { head },
        }
        self.reads.push(read);
    }

    fn pins(&self, at: usize) -> Vec<(BlockSpan, Tid)> {
        let changed = self.tracked.iter().filter(|block| self.rev(**block, self.published) > at);
        changed.map(|block| (one(*block), tid(self.rev(*block, at)))).collect()
    }

    fn step_setup(&mut self, index: usize) {
        let (client, request, state) = self.setups.remove(index);
        let mut actions = Vec::new();
        let at = request.at.raw() as usize;
        let next = match state {
            SetUp::Waiting if at > self.shown => Some(SetUp::Waiting),
            SetUp::Waiting => match self.clients[client].link.setup_start(&request, &mut actions) {
                SetupStart::Go => Some(SetUp::Move),
                SetupStart::Over => None,
            },
            SetUp::Move => self.clients[client].link.setup_move(&request, 0).map(|_| SetUp::Load),
            SetUp::Load => Some(SetUp::Pin(self.pins(at))),
            SetUp::Pin(pins) => {
                self.clients[client].link.setup_pin(Duration::ZERO, &request, &pins, &mut actions);
                None
            }
        };
        if let Some(next) = next {
            self.setups.push((client, request, next));
        }
        self.act(client, actions);
    }

    fn client_writes(&mut self, client: usize, frame: &str) {
        self.log.push(format!("C{client}: {frame}"));
        let mut actions = Vec::new();
        // Cut anywhere.
        let bytes = format!("{frame}\n").into_bytes();
        let (a, b) = bytes.split_at(self.random.below(bytes.len()));
        self.clients[client].link.write(Duration::ZERO, a, false, &mut actions);
        self.clients[client].link.write(Duration::ZERO, b, false, &mut actions);
        self.act(client, actions);
    }

    fn client_speaks(&mut self, index: usize) {
        let (choice, ahead) = (self.random.below(8), self.random.below(3));
        let acks = self.clients[index].acks.len();
        if choice < 5 && acks > 0 && self.random.once_in(self.clients[index].lazy) {
            // In any order.
            let ack = self.random.below(acks);
            let ack = self.clients[index].acks.remove(ack);
            return self.client_writes(index, &ack);
        }
        let give_up = self.random.once_in(3);
        let client = &mut self.clients[index];
        match choice {
            5 | 6 if client.asked.len() < 3 && !client.dropping => {
                let at = (client.newest + ahead).min(REVISIONS);
                if !client.watching {
                    client.map = [PinTo::Head; BLOCKS];
                }
                client.stream += 2;
                client.asked.push_back((client.stream, at));
                (client.promised, client.watching, client.newest) = (None, true, at);
                let frame = format!("{} watch {FILE} @{}", client.stream, tid(at));
                self.client_writes(index, &frame);
            }
            7 if client.watching && !client.dropping && give_up => {
                (client.dropping, client.watching, client.promised) = (true, false, None);
                client.map = [PinTo::Head; BLOCKS];
                client.newest = 0;
                client.stream += 2;
                client.late_pins = usize::from(!client.line.is_empty());
                let frame = format!("{} watch {FILE} -", client.stream);
                self.client_writes(index, &frame);
            }
            _ => {}
        }
    }

    fn client_hears(&mut self, index: usize) {
        let most = 1 + self.random.below(80);
        let client = &mut self.clients[index];
        let bytes = client.link.read(most);
        client.line.extend(bytes);
        while let Some(end) = client.line.iter().position(|byte| *byte == b'\n') {
            let rest = client.line.split_off(end + 1);
            let line = std::mem::replace(&mut client.line, rest);
            let text = String::from_utf8(line[..end].to_vec()).unwrap();
            self.log.push(format!("S{index}: {text}"));
            client.hear(&text, &self.tracked);
        }
    }

    /// S1: who was promised a state sees it in every block.
    fn check(&self) {
        for (index, client) in self.clients.iter().enumerate() {
            let Some(at) = client.promised else { continue };
            for page in 0..PAGES {
                let block = page / BLOCK_PAGES;
                let seen = match (client.map[block], self.pages[page]) {
                    (PinTo::Rev(rev), _) => self.rev(block, rev.raw() as usize),
                    (PinTo::Head, Page::Present(rev)) => rev,
                    (PinTo::Head, Page::Absent | Page::Locked) => continue,
                };
                assert_eq!(
                    seen,
                    self.rev(block, at),
                    "client {index} @{at}, block {block}: {:?}",
                    client.map[block]
                );
            }
        }
        for page in 0..PAGES {
            if let Page::Present(rev) = self.pages[page] {
                let needed = self.rev(page / BLOCK_PAGES, self.shown);
                assert!(rev >= needed, "S2: head/at is {}, page {page} has {rev}", self.shown);
            }
        }
    }

    /// S3: everybody does what is to be done, and then nothing waits.
    fn finish(&mut self) {
        for _ in 0..20_000 {
            let idle = self.reads.is_empty()
                && self.invals.is_empty()
                && self.setups.iter().all(|(_, request, _)| request.at > tid(self.shown))
                && self.clients.iter().all(|client| client.acks.is_empty() && !client.link.is_readable());
            if idle {
                let answered = |client: &Client| {
                    client.asked.front().is_none_or(|(_, at)| *at > self.shown) && !client.dropping
                };
                assert!(self.clients.iter().all(answered), "S3: a request is never answered");
                return self.check();
            }
            self.invalidate();
            if !self.reads.is_empty() {
                let read = self.random.below(self.reads.len());
                self.step_read(read);
            }
            if !self.setups.is_empty() {
                let setup = self.random.below(self.setups.len());
                self.step_setup(setup);
            }
            for index in 0..self.clients.len() {
                self.client_hears(index);
                if let Some(ack) = self.clients[index].acks.pop() {
                    self.client_writes(index, &ack);
                }
            }
            self.check();
        }
        panic!("S3: something waits for ever: {:?}, {:?}", self.reads, self.setups);
    }
}

impl Client {
    fn new(range: bool, deaf: usize, lazy: usize) -> Client {
        let mut client = Client {
            link: Link::new(LinkOptions::default()),
            map: [PinTo::Head; BLOCKS],
            promised: None,
            asked: VecDeque::new(),
            dropping: false,
            late_pins: 0,
            deaf,
            lazy,
            watching: false,
            newest: 0,
            stream: 1,
            line: Vec::new(),
            acks: Vec::new(),
        };
        if range {
            client.link.write(Duration::ZERO, b"1 hello range\n", false, &mut Vec::new());
            assert_eq!(client.link.read(99), b"1 ok range\n");
        }
        client
    }

    fn hear(&mut self, text: &str, tracked: &BTreeSet<usize>) {
        let frame = revfs_protocol::Frame::parse(text.as_bytes()).unwrap();
        match ServerMessage::parse(frame.stream, frame.message).unwrap() {
            ServerMessage::Pin { file, blocks, to } => {
                assert_eq!((file, StreamKind::of(frame.stream)), (FILE, StreamKind::Server));
                if !self.watching {
                    // It has forgotten the file.
                    assert!(self.late_pins > 0, "a pin for a watch that was dropped");
                    self.late_pins -= 1;
                    return self.acks.push(format!("{} nak: what file?", frame.stream));
                }
                for block in blocks.blocks().map(|block| block.raw() as usize) {
                    assert_ne!(self.map[block], to, "block {block} is pinned twice");
                    assert!(tracked.contains(&block), "block {block} was never read");
                    self.map[block] = to;
                }
                self.acks.push(format!("{} ack", frame.stream));
            }
            ServerMessage::Ok(_) if frame.stream == self.stream && self.dropping => {
                assert!(self.asked.is_empty(), "a request was forgotten: {:?}", self.asked);
                self.dropping = false;
            }
            ServerMessage::Ok(_) => {
                let (stream, at) = self.asked.pop_front().unwrap();
                assert_eq!(frame.stream, stream);
                if self.asked.is_empty() && !self.dropping {
                    self.promised = Some(at);
                }
            }
            ServerMessage::Error(text) => {
                assert!(self.dropping && text.ends_with("the watch was stopped"), "{text}");
                assert_eq!(self.asked.pop_front().unwrap().0, frame.stream);
            }
            ServerMessage::Closing(closing) => panic!("{closing}"),
        }
    }
}

fn one(block: usize) -> BlockSpan {
    BlockSpan::one(BlockIndex::new(block as u64))
}

/// Replays one schedule: `REVFS_WATCH_SEED=<seed> cargo test random_schedules`.
fn run(seed: u64) {
    let mut world = World::new(seed);
    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        (0..STEPS).for_each(|_| world.step());
        world.finish();
    }));
    if let Err(panic) = played {
        println!("seed {seed}:\n{}", world.log.join("\n"));
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn random_schedules_keep_isolation_and_end() {
    if let Some(seed) = std::env::var("REVFS_WATCH_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return run(seed);
    }
    let count = if std::env::var_os("REVFS_SLOW").is_some() { 1_000_000 } else { 8000 };
    (1..=count).for_each(run);
}
