//! Servers that lie: an error for what was asked, no panic, bounded memory, and a good server is served from afterwards.

use std::sync::Arc;
use std::time::Duration;

use revfs::env::SystemClock;
use revfs::store::zodb::Oid;
use revfs::store::zodb::storage::Storage;
use revfs::store::zodb::zeo::{MESSAGE_BYTES_MAX, ZeoOptions, ZeoStorage};
use revfs_protocol::Tid;

use crate::fake::{Fake, Request, Script, bytes, frame, id, invalidation, reply};
use crate::live::wait_until;

const SHORT: Duration = Duration::from_millis(700);
const LAST: u64 = 1000;

fn open(fake: &Fake) -> Result<ZeoStorage, String> {
    let options = ZeoOptions { wait_limit: SHORT, cache_bytes: 1 << 20, ..ZeoOptions::default() };
    ZeoStorage::open(&fake.url(), options).map_err(|error| error.to_string())
}

/// What a good server says.
fn good(request: &Request) -> Vec<u8> {
    match request.method.as_str() {
        "register" | "lastTransaction" => reply(request.id, 0, &id(LAST)),
        "loadBefore" => {
            let value = [&[0x93][..], &bytes(b"data"), &id(7), &[0xc0]].concat();
            reply(request.id, 0, &value)
        }
        _ => reply(request.id, 0, &[0xc0]),
    }
}

/// A server that is good but for one method.
fn wrong_for(
    method: &'static str,
    says: impl Fn(&Request) -> Option<Vec<u8>> + Send + Sync + 'static,
) -> Arc<Script> {
    Arc::new(move |request| if request.method == method { says(request) } else { Some(good(request)) })
}

#[test]
fn what_greets_wrongly_is_no_server() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&[u8], &str); 6] = [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "more than"),
        (&frame(b"Z4"), "protocol 5"),
        (&frame(b""), "protocol 5"),
        (&frame(&[0xff; 3000]), "protocol 5"),
        (b"\x00\x00", "does not answer"),
        (b"", "does not answer"),
    ];
    for (greeting, text) in cases {
        let fake = Fake::start(&dir.path().join("s"), greeting.to_vec(), Arc::new(|_| None));
        let error = open(&fake).unwrap_err();
        assert!(error.contains(text) && error.contains(&fake.url()), "{greeting:?}: {error}");
    }
}

#[test]
fn wrong_answers_are_errors_of_what_was_asked() {
    let dir = tempfile::tempdir().unwrap();
    type Says = fn(&Request) -> Option<Vec<u8>>;
    let cases: [(&str, Says); 14] = [
        ("no list", |r| Some(reply(r.id, 0, &[0x05]))),
        ("two parts", |r| Some(reply(r.id, 0, &[&[0x92][..], &bytes(b"data"), &id(7)].concat()))),
        ("data that is a number", |r| Some(reply(r.id, 0, &[&[0x93, 0x01][..], &id(7), &[0xc0]].concat()))),
        ("a tid of 3 bytes", |r| {
            Some(reply(r.id, 0, &[&[0x93][..], &bytes(b"data"), &bytes(b"abc"), &[0xc0]].concat()))
        }),
        ("a later state", |r| {
            Some(reply(r.id, 0, &[&[0x93][..], &bytes(b"data"), &id(LAST + 1), &[0xc0]].concat()))
        }),
        ("an older state", |r| {
            Some(reply(r.id, 0, &[&[0x93][..], &bytes(b"data"), &id(7), &id(8)].concat()))
        }),
        ("an exception", |r| Some(reply(r.id, 2, b"\x92\xa8ab.Error\x91\xa4\x1b[0m"))),
        ("an exception that is none", |r| Some(reply(r.id, 2, &[0x05]))),
        ("an answer to another question", |r| Some(reply(r.id + 77, 0, &[0xc0]))),
        ("no message", |_| Some(frame(b"garbage"))),
        ("an endless length", |_| Some(vec![0xff; 100])),
        ("the longest length, and no bytes", |_| {
            Some(u32::try_from(MESSAGE_BYTES_MAX).unwrap().to_be_bytes().to_vec())
        }),
        ("half a frame", |r| {
            let whole = good(r);
            Some(whole[..whole.len() / 2].to_vec())
        }),
        ("its end", |_| None),
    ];
    for (what, says) in cases {
        let fake = Fake::start(&dir.path().join("s"), frame(b"M5"), wrong_for("loadBefore", says));
        let storage = open(&fake).unwrap();
        let clock = SystemClock::shared();
        let started = clock.monotonic();
        let error = storage.load(Oid::ROOT, Tid::from_raw(LAST)).unwrap_err().to_string();
        assert!(error.contains(&fake.url()), "{what}: {error}");
        assert!(!error.contains('\x1b'), "{what}: {error:?}");
        assert!(clock.monotonic() - started < SHORT * 10, "{what}");
        drop(fake);
        // In its place a good one.
        let fake = Fake::start(&dir.path().join("s"), frame(b"M5"), Arc::new(|request| Some(good(request))));
        wait_until("a good server is found", || storage.load(Oid::ROOT, Tid::from_raw(LAST)).is_ok());
        assert_eq!(&storage.load(Oid::ROOT, Tid::from_raw(LAST)).unwrap().unwrap().data[..], b"data");
        drop(fake);
    }
}

#[test]
fn wrong_tidings_of_commits_move_nothing_wrongly() {
    let dir = tempfile::tempdir().unwrap();
    let oids = [&[0x91][..], &id(0)].concat();
    let tidings: Vec<(&str, Vec<u8>, u64)> = vec![
        ("no list", vec![0x05], LAST),
        ("no oids", [&[0x92][..], &id(LAST + 1), &[0xc0]].concat(), LAST),
        ("an oid of 1 byte", [&[0x92][..], &id(LAST + 1), &[0x91], &bytes(b"x")].concat(), LAST),
        ("a tid of 2 bytes", [&[0x92][..], &bytes(b"xy"), &oids].concat(), LAST),
        ("an older tid", [&[0x92][..], &id(LAST - 5), &oids].concat(), LAST),
        ("the same tid", [&[0x92][..], &id(LAST), &oids].concat(), LAST),
        ("a good one", [&[0x92][..], &id(LAST + 9), &oids].concat(), LAST + 9),
    ];
    for (what, args, head) in tidings {
        let said = wrong_for("get_info", move |request| {
            Some([invalidation(&args), reply(request.id, 0, b"\x81\xa4size\x05")].concat())
        });
        let fake = Fake::start(&dir.path().join("s"), frame(b"M5"), said);
        let storage = open(&fake).unwrap();
        drop(storage.extent());
        storage.refresh().unwrap();
        assert_eq!(storage.last_tid(), Tid::from_raw(head), "{what}");
    }
}

/// A generator of numbers that gives the same for a seed.
struct Noise(u64);

impl Noise {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below.max(1)
    }
}

#[test]
fn damaged_messages_are_errors_or_answers() {
    let seed = std::env::var("REVFS_ZEO_SEED").ok().map_or(1, |seed| seed.parse().unwrap());
    eprintln!("REVFS_ZEO_SEED={seed}");
    let dir = tempfile::tempdir().unwrap();
    let noise = std::sync::Mutex::new(Noise(seed));
    let script: Arc<Script> = Arc::new(move |request| {
        let mut bytes = good(request);
        let mut noise = noise.lock().unwrap();
        if request.method == "register" && noise.next(4) > 0 {
            return Some(bytes);
        }
        for _ in 0..noise.next(4) {
            let at = noise.next(bytes.len());
            bytes[at] = noise.next(256) as u8;
        }
        if noise.next(5) == 0 {
            bytes.truncate(noise.next(bytes.len()));
        }
        Some(bytes)
    });
    let fake = Fake::start(&dir.path().join("s"), frame(b"M5"), script);
    let options = ZeoOptions { wait_limit: Duration::from_millis(60), ..ZeoOptions::default() };
    let mut answered = 0;
    for _ in 0..20 {
        let Ok(storage) = ZeoStorage::open(&fake.url(), options.clone()) else { continue };
        for oid in 0..10 {
            let at = storage.last_tid();
            // An answer is one that fits the question, whatever it is.
            if let Ok(Some(loaded)) = storage.load(Oid::from_raw(oid), at) {
                assert!(loaded.serial <= at);
                answered += 1;
            }
            drop(storage.oldest_serial(Oid::from_raw(oid)));
            drop(storage.transactions_back(Tid::ZERO, at).take(3).collect::<Vec<_>>());
            drop(storage.oids().take(3).collect::<Vec<_>>());
        }
    }
    assert!(answered > 0);
}
