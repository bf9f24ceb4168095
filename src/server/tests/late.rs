//! Who is late with an ack because another client is, and who owes one when the server stops.

use super::people::Everybody;
use super::*;

/// It obeys, if it can: a page fault of it may keep it from mapping anything.
const GOOD: u32 = 2;
/// It never answers.
const BAD: u32 = 3;
const READER: u32 = 9;

struct Scene {
    server: Arc<Server>,
    threads: ServerThreads,
    everybody: Everybody,
    clock: Arc<ManualClock>,
    good: Arc<WatchLink>,
    file: FileId,
    answered: Receiver<u8>,
    _runtime: tokio::runtime::Runtime,
}

impl Scene {
    /// Both owe a pin of block 0, of which a READ waits. If `faults`, so does a READ of block 1 by the one that obeys.
    fn new(faults: bool) -> Scene {
        Scene::with(faults, Duration::MAX)
    }

    /// The same of a server that counts no more time between two looks than so.
    fn with(faults: bool, look_gap_max: Duration) -> Scene {
        let store = ScriptedStore::new();
        store.commit(10, &[Edit::Put("a", blocks(1, 4))]);
        let _ = store.refresh();
        let (runtime, clock, everybody) = (runtime(), ManualClock::at(START), Everybody::default());
        let options =
            ServerOptions { look_gap_max, ..options(&runtime, &clock, Some(Arc::new(everybody.clone()))) };
        let server = Server::new(Arc::clone(&store) as Arc<dyn Store>, options);
        let threads = server.start().unwrap();
        let file = store.file_id("a");
        let links = [GOOD, BAD].map(|thread| server.open_link(thread).unwrap());
        for (link, thread) in links.iter().zip([GOOD, BAD]) {
            let watch = format!("1 watch {file} @{}\n", Tid::from_raw(10));
            server.write_link(link, thread, watch.as_bytes()).unwrap();
            assert_eq!(hear(&server, link, thread), "1 ok\n");
        }
        store.commit(20, &[Edit::Write("a", 0, blocks(2, 2))]);
        assert!(server.wait_shown(Tid::from_raw(20), PATIENCE));
        let (sender, answered) = channel();
        let faulted = if faults { &[(READER, 0), (GOOD, 1)][..] } else { &[(READER, 0)] };
        for (thread, block) in faulted {
            let sender = sender.clone();
            server.read_head(file, (block * BLOCK, 1), *thread, move |bytes| {
                let _ = sender.send(bytes.map_or(0, |bytes| bytes[0]));
            });
        }
        let [good, _bad] = links;
        let scene = Scene { server, threads, everybody, clock, good, file, answered, _runtime: runtime };
        // From the first look on time is judged.
        scene.pass(Duration::ZERO);
        scene
    }

    fn wait_until(&self, what: &str, until: impl Fn(&people::Known) -> bool) {
        wait_for(what, || until(&self.everybody.0.lock().unwrap()));
    }

    /// Lets time pass, and the watchdog look at everybody twice.
    fn pass(&self, time: Duration) {
        self.clock.advance(time);
        let looks = |known: &people::Known| known.looks.get(&GOOD).copied().unwrap_or(0);
        let before = looks(&self.everybody.0.lock().unwrap());
        let looked = |known: &people::Known| looks(known) >= before + 3;
        self.wait_until("a look", looked);
    }

    fn signalled(&self) -> Vec<u32> {
        self.everybody.0.lock().unwrap().signalled.iter().copied().collect()
    }
}

fn wait_for(what: &str, until: impl Fn() -> bool) {
    let clock = env::SystemClock::shared();
    let end = clock.monotonic() + PATIENCE;
    while !until() {
        assert!(clock.monotonic() < end, "{what}: never");
        std::thread::yield_now();
    }
}

/// What a link says next.
fn hear(server: &Arc<Server>, link: &Arc<WatchLink>, thread: u32) -> String {
    let (sender, heard) = channel();
    server.read_link(link, thread, 4096, Box::new(move |read| sender.send(read).unwrap()));
    match heard.recv_timeout(PATIENCE).unwrap() {
        LinkRead::Bytes(bytes) => String::from_utf8(bytes).unwrap(),
        LinkRead::Interrupted => panic!("no signal was sent"),
    }
}

#[test]
fn who_is_late_is_accused() {
    let scene = Scene::new(false);
    scene.pass(PATIENCE - Duration::from_secs(1));
    assert_eq!(scene.signalled(), [] as [u32; 0]);
    scene.clock.advance(Duration::from_secs(1));
    scene.wait_until("both are", |known| known.signalled.contains(&GOOD) && known.signalled.contains(&BAD));
    scene.everybody.0.lock().unwrap().dead.extend([GOOD, BAD]);
    assert_eq!(scene.answered.recv_timeout(PATIENCE), Ok(2));
    scene.threads.stop();
}

/// Time in which a client found this server busy, in looks of the watchdog.
fn pass_behind(scene: &Scene, time: Duration, is_behind: impl Fn(Duration)) {
    const STEPS: u32 = 8;
    for _ in 0..STEPS {
        is_behind(time / STEPS);
        scene.pass(time / STEPS);
    }
}

fn accused_in_the_end(scene: Scene) {
    scene.wait_until("both are", |known| known.signalled.contains(&GOOD) && known.signalled.contains(&BAD));
    scene.everybody.0.lock().unwrap().dead.extend([GOOD, BAD]);
    assert_eq!(scene.answered.recv_timeout(PATIENCE), Ok(2));
    scene.threads.stop();
}

#[test]
fn who_owes_an_ack_to_a_server_that_finds_no_processor_has_four_times_the_time() {
    let scene = Scene::new(false);
    let waits = |part: u32| {
        let everybody = scene.everybody.clone();
        move |time: Duration| {
            let waited = u64::try_from((time * part / 100).as_nanos()).unwrap();
            *everybody.0.lock().unwrap().own_waits.entry(7).or_default() += waited;
        }
    };
    pass_behind(&scene, PATIENCE * 3, waits(60));
    assert_eq!(scene.signalled(), [] as [u32; 0]);
    // What is left is a quarter, and a wait now and then is no trouble.
    pass_behind(&scene, PATIENCE / 5, waits(40));
    assert_eq!(scene.signalled(), [] as [u32; 0]);
    scene.clock.advance(PATIENCE / 10);
    let told = Duration::from_millis(scene.server.stats().behind_ms.load(Ordering::Relaxed));
    let behind = PATIENCE * 9 / 4;
    assert!(behind >= told && behind - told < Duration::from_millis(10), "{told:?}");
    accused_in_the_end(scene);
}

#[test]
fn who_owes_an_ack_to_a_server_that_does_not_take_its_requests_has_four_times_the_time() {
    let scene = Scene::new(false);
    let cache = Arc::new(RecordingCache::new(channel().0));
    scene.server.set_kernel_cache(Arc::clone(&cache) as Arc<dyn KernelCache>);
    cache.crowded.store(true, Ordering::SeqCst);
    // It was not at the looks before.
    scene.pass(Duration::from_millis(250));
    pass_behind(&scene, PATIENCE * 3, |_| ());
    assert_eq!(scene.signalled(), [] as [u32; 0]);
    pass_behind(&scene, PATIENCE / 5, |_| cache.crowded.store(false, Ordering::SeqCst));
    assert_eq!(scene.signalled(), [] as [u32; 0]);
    scene.clock.advance(PATIENCE / 10);
    accused_in_the_end(scene);
}

#[test]
fn time_in_which_the_server_does_not_run_counts_for_nobody() {
    let scene = Scene::with(false, PATIENCE / 4);
    for _ in 0..3 {
        scene.pass(PATIENCE * 5);
        assert_eq!(scene.signalled(), [] as [u32; 0]);
    }
    scene.clock.advance(PATIENCE / 4);
    accused_in_the_end(scene);
}

#[test]
fn time_before_the_first_look_in_which_the_server_does_not_run_counts_for_nobody() {
    let store = ScriptedStore::new();
    store.commit(10, &[Edit::Put("a", blocks(1, 4))]);
    store.commit(20, &[Edit::Write("a", 0, blocks(2, 2))]);
    let _ = store.refresh();
    let (runtime, clock, everybody) = (runtime(), ManualClock::at(START), Everybody::default());
    let options = ServerOptions {
        look_gap_max: PATIENCE / 4,
        ..options(&runtime, &clock, Some(Arc::new(everybody.clone())))
    };
    let server = Server::new(Arc::clone(&store) as Arc<dyn Store>, options);
    let file = store.file_id("a");
    let (sender, read) = channel();
    server.read_head(file, (0, 1), READER, move |bytes| sender.send(bytes.unwrap()[0]).unwrap());
    assert_eq!(read.recv_timeout(PATIENCE), Ok(2));
    let link = server.open_link(GOOD).unwrap();
    server.write_link(&link, GOOD, format!("1 watch {file} @{}\n", Tid::from_raw(10)).as_bytes()).unwrap();
    assert_eq!(hear(&server, &link, GOOD), format!("2 pin {file} #0 @{}\n", Tid::from_raw(10)));
    // It was told, but its watchdog has not run yet.
    clock.advance(PATIENCE * 5);
    let threads = server.start().unwrap();
    let count = || everybody.0.lock().unwrap().looks.get(&GOOD).copied().unwrap_or(0);
    let looks = |more: u32| {
        let before = count();
        wait_for("a look", || count() >= before + more);
    };
    looks(3);
    // Of that a quarter counts, and now another two.
    for _ in 0..2 {
        assert_eq!(everybody.0.lock().unwrap().signalled.len(), 0);
        clock.advance(PATIENCE / 4);
        looks(3);
    }
    assert_eq!(everybody.0.lock().unwrap().signalled.len(), 0);
    clock.advance(PATIENCE / 4);
    wait_for("it is late now", || everybody.0.lock().unwrap().signalled.contains(&GOOD));
    everybody.0.lock().unwrap().dead.insert(GOOD);
    threads.stop();
}

#[test]
fn who_is_late_because_its_page_fault_waits_for_another_client_gets_time_until_that_is_dead() {
    let scene = Scene::new(true);
    scene.clock.advance(PATIENCE);
    scene.wait_until("it is", |known| known.signalled.contains(&BAD));
    scene.pass(PATIENCE / 6);
    assert_eq!(scene.signalled(), [BAD]);
    // Its end lets the page fault go, but for the pins of the one that could not map.
    scene.everybody.0.lock().unwrap().dead.insert(BAD);
    scene.wait_until("its end is seen", |_| scene.server.kills() == 1);
    scene.pass(PATIENCE / 7);
    assert_eq!(hear(&scene.server, &scene.good, GOOD).lines().count(), 2);
    scene.server.write_link(&scene.good, GOOD, b"2 ack\n4 ack\n").unwrap();
    assert_eq!([scene.answered.recv_timeout(PATIENCE), scene.answered.recv_timeout(PATIENCE)], [Ok(2); 2]);
    scene.pass(PATIENCE * 9);
    assert_eq!((scene.signalled(), scene.server.kills()), (vec![BAD], 1));
    scene.threads.stop();
}

#[test]
fn who_is_late_although_nobody_holds_it_any_more_is_accused() {
    let scene = Scene::new(true);
    scene.clock.advance(PATIENCE);
    scene.wait_until("it is", |known| known.signalled.contains(&BAD));
    scene.everybody.0.lock().unwrap().dead.insert(BAD);
    scene.wait_until("its end is seen", |_| scene.server.kills() == 1);
    scene.clock.advance(PATIENCE / 5);
    scene.wait_until("it is, too", |known| known.signalled.contains(&GOOD));
    scene.everybody.0.lock().unwrap().dead.insert(GOOD);
    scene.threads.stop();
}

#[test]
fn two_that_wait_for_each_other_are_both_accused_in_the_end() {
    let scene = Scene::new(true);
    let file = scene.file;
    scene.server.read_head(file, (BLOCK, 1), BAD, |_| {});
    scene.pass(PATIENCE * 2);
    assert_eq!(scene.signalled(), [] as [u32; 0], "each is held by the other one");
    scene.clock.advance(PATIENCE / 2);
    scene.wait_until("both are", |known| known.signalled.contains(&GOOD) && known.signalled.contains(&BAD));
    scene.everybody.0.lock().unwrap().dead.extend([GOOD, BAD]);
    scene.threads.stop();
}

/// A READ that went on would fill a page that the mapping of who owes the ack may be waiting for.
#[test]
fn what_an_abandoned_client_must_not_see_is_answered_to_nobody() {
    let scene = Scene::new(true);
    scene.server.close_links("shutting down");
    assert_eq!([scene.answered.recv_timeout(PATIENCE), scene.answered.recv_timeout(PATIENCE)], [Ok(0); 2]);
    let read = |block: u64| {
        let (sender, answered) = channel();
        scene.server.read_head(scene.file, (block * BLOCK, 1), READER, move |bytes| {
            let _ = sender.send(bytes.map_or(0, |bytes| bytes[0]));
        });
        answered.recv_timeout(PATIENCE).unwrap()
    };
    let found: Vec<u8> = (0..4).map(read).collect();
    assert_eq!(found, [0, 0, 1, 1], "only what did not change under them is read");
    scene.threads.stop();
}
