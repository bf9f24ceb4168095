//! What a client does when something breaks: it faults or fails, and never shows other bytes.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

use crate::fake::{BLOCK, FILE, Fake, Plan, blocks, tid};
use crate::{access_of, map_blocks, shown};
use revfs_client::{ClientError, Conn, DownCause, FileId, Mapping};
use revfs_protocol::PinTo;
use rustix::process::{Pid, Signal, WaitOptions, waitpid};
use std::sync::Arc;

fn one_mapping(fake: &Fake) -> (Arc<Conn>, Mapping) {
    fake.write_head(FILE, &blocks(b"ab"));
    fake.plan(FILE, tid(10), Plan::size(2 * BLOCK));
    let conn = fake.connect(tid(10));
    let mapping = map_blocks(&conn.file_by_id(FILE).unwrap(), 2);
    assert_eq!(shown(&mapping), blocks(b"ab"));
    (conn, mapping)
}

/// Checks that a connection is down, and its mapping faults.
fn assert_down(conn: &Arc<Conn>, mapping: &Mapping, cause: &DownCause) {
    let down = ClientError::Down(cause.clone());
    assert_eq!(conn.resync(tid(99)).unwrap_err(), down);
    assert_eq!(conn.file_by_id(FILE).unwrap_err(), down);
    assert_eq!(mapping.with_bytes(|_| ()).unwrap_err(), down);
    assert_eq!(mapping.read(0, &mut [0]).unwrap_err(), down);
    assert_eq!(mapping.file().map(0, 1).unwrap_err(), down);
    assert_eq!(access_of(mapping.as_ptr()), "---p");
}

/// Waits until the connection is down.
fn wait_down(fake: &Fake, conn: &Arc<Conn>) {
    fake.plan(FILE, tid(20), Plan::size(2 * BLOCK));
    // A request that is never answered ends with the link.
    assert!(matches!(conn.resync(tid(20)).unwrap_err(), ClientError::Down(_)));
}

#[test]
fn a_lost_server_takes_the_connection_down() {
    let fake = Fake::new();
    let (conn, mapping) = one_mapping(&fake);
    fake.die();
    wait_down(&fake, &conn);
    assert_down(&conn, &mapping, &DownCause::ServerGone);
}

#[test]
fn a_server_that_ends_the_link_is_quoted() {
    let fake = Fake::new();
    let (conn, mapping) = one_mapping(&fake);
    fake.say(b"0 error: shutting down\n");
    fake.wait_said("bye");
    assert_down(&conn, &mapping, &DownCause::ByServer("shutting down".into()));
}

#[test]
fn a_server_that_breaks_the_protocol_is_left() {
    let beyond = format!("2 pin {FILE} #0 @{}\n", tid(11));
    for (bytes, why) in [
        (&b"hello\n"[..], r#"invalid frame: "hello\n""#),
        (b"2 pin x #0 @head\n", "\"pin x #0 @head\" on stream 2"),
        (b"99 ok\n", "99: reply on unexpected stream"),
        (&[b'x'; 200], "line of more than 144 bytes"),
        (beyond.as_bytes(), "that state was not asked for"),
    ] {
        let fake = Fake::new();
        let (conn, mapping) = one_mapping(&fake);
        fake.say(bytes);
        fake.wait_said("bye");
        let error = conn.resync(tid(99)).unwrap_err();
        let ClientError::Down(cause @ DownCause::Protocol(_)) = error else {
            panic!("{error}");
        };
        assert!(cause.to_string().contains(why), "{cause}");
        assert_down(&conn, &mapping, &cause);
        assert!(!fake.said().iter().any(|said| said.ends_with(" ack")), "nothing was acked");
    }
}

#[test]
fn a_pin_that_cannot_be_shown_shows_nothing_and_is_acked() {
    let fake = Fake::new();
    let (conn, mapping) = one_mapping(&fake);
    fake.pin(FILE, 1, 1, PinTo::Rev(tid(9)));
    let lost = mapping.with_bytes(|_| ()).unwrap_err();
    assert!(matches!(lost, ClientError::Remap { file: FILE, .. }), "{lost}");
    assert_eq!(access_of(mapping.as_ptr()), "---p");
    assert_eq!(access_of(mapping.as_ptr().wrapping_add(BLOCK)), "---p");
    mapping.file().close().unwrap();
    fake.write_rev(FILE, tid(9), &blocks(b"AB"));
    fake.plan(FILE, tid(10), Plan::size(2 * BLOCK).pin(1, 1, PinTo::Rev(tid(9))));
    let again = map_blocks(&conn.file_by_id(FILE).unwrap(), 2);
    assert_eq!(shown(&again), blocks(b"aB"));
}

#[test]
fn a_pin_of_a_file_that_is_not_open_is_acked() {
    let fake = Fake::new();
    let (_conn, mapping) = one_mapping(&fake);
    mapping.file().close().unwrap();
    fake.pin(FILE, 0, 0, PinTo::Rev(tid(9)));
    fake.pin(FileId::from_raw(1), 0, 9, PinTo::Head);
}

#[test]
fn a_refused_file_leaves_the_others_alone() {
    let gone = FileId::from_raw(7);
    let fake = Fake::new();
    let (conn, mapping) = one_mapping(&fake);
    fake.write_head(gone, &blocks(b"x"));
    let refuse = |text: &str| Plan { reply: Err(text.to_owned()), ..Plan::size(0) };
    fake.plan(gone, tid(10), refuse("file epoch detected"));
    let refused = |at, text: &str| ClientError::Refused { file: gone, at: tid(at), text: text.into() };
    assert_eq!(conn.file_by_id(gone).unwrap_err(), refused(10, "file epoch detected"));
    fake.plan(gone, tid(10), Plan::size(BLOCK));
    let other = map_blocks(&conn.file_by_id(gone).unwrap(), 1);
    fake.plan(FILE, tid(20), Plan::size(2 * BLOCK));
    fake.plan(gone, tid(20), refuse("deleted"));
    assert_eq!(conn.resync(tid(20)).unwrap_err(), refused(20, "deleted"));
    assert_eq!(conn.at(), tid(20));
    assert_eq!(shown(&mapping), blocks(b"ab"));
    assert_eq!(other.with_bytes(|_| ()).unwrap_err(), refused(20, "deleted"));
    assert_eq!(access_of(other.as_ptr()), "---p");
    fake.wait_said(&format!("watch {gone} -"));
}

#[test]
fn a_closed_connection_faults_and_says_bye_once() {
    let fake = Fake::new();
    let (conn, mapping) = one_mapping(&fake);
    conn.close().unwrap();
    fake.wait_end();
    conn.close().unwrap();
    assert_down(&conn, &mapping, &DownCause::Closed);
    drop((conn, mapping));
    assert_eq!(fake.said().iter().filter(|said| *said == "bye").count(), 1);
    assert!(!fake.said().contains(&format!("watch {FILE} -")), "bye says it all");
}

#[test]
fn a_dropped_connection_says_bye() {
    let fake = Fake::new();
    let (conn, mapping) = one_mapping(&fake);
    drop(conn);
    assert_eq!(shown(&mapping), blocks(b"ab"), "a mapping keeps its connection");
    drop(mapping);
    fake.wait_end();
    assert_eq!(fake.said()[2..], [format!("watch {FILE} -"), "bye".to_owned()]);
}

unsafe extern "C" {
    fn fork() -> i32;
    fn _exit(code: i32) -> !;
}

/// Runs `body` in a fork; how it ended: its code, or the signal that killed it.
fn in_fork(body: impl FnOnce() -> i32) -> Result<i32, i32> {
    // SAFETY: the child runs `body`, which takes no lock that another thread may have held, and then exits.
    match unsafe { fork() } {
        0 => {
            let code = body();
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { _exit(code) }
        }
        pid => {
            let pid = Pid::from_raw(pid).filter(|_| pid > 0).unwrap();
            let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
            status.exit_status().ok_or_else(|| status.terminating_signal().unwrap())
        }
    }
}

#[test]
fn a_fork_has_no_mapping_and_does_not_disturb_its_parent() {
    let fake = Fake::new();
    let (conn, mapping) = one_mapping(&fake);
    let anonymous = mapping.file().map(2 * BLOCK as u64, 10).unwrap();
    fake.write_rev(FILE, tid(9), &blocks(b"AB"));
    fake.pin(FILE, 1, 1, PinTo::Rev(tid(9)));
    for address in [mapping.as_ptr(), mapping.as_ptr().wrapping_add(BLOCK), anonymous.as_ptr()] {
        // SAFETY: in the child there is nothing at the address; that it faults is what is tested.
        let ended = in_fork(|| unsafe { address.read_volatile() }.into());
        assert_eq!(ended, Err(Signal::SEGV.as_raw()));
    }
    let before = fake.said();
    let calls = in_fork(|| {
        let forked = Err(ClientError::Forked);
        let all = [
            mapping.with_bytes(|_| ()) == forked,
            mapping.read(0, &mut [0]) == forked,
            conn.resync(tid(20)) == forked,
            mapping.file().close() == forked,
            conn.close() == forked,
            conn.file_by_id(FILE).map(drop) == forked,
        ];
        let mask = all.iter().enumerate().map(|(bit, ok)| i32::from(!ok) << bit).sum();
        // What the child owns goes as in a normal end.
        // SAFETY: the child has copies of its own, and drops each once.
        unsafe {
            drop(std::ptr::read(&raw const anonymous));
            drop(std::ptr::read(&raw const mapping));
            drop(std::ptr::read(&raw const conn));
        }
        mask
    });
    assert_eq!(calls, Ok(0));
    assert_eq!(fake.said(), before, "the child said nothing");
    assert_eq!(shown(&mapping), blocks(b"aB"));
    fake.plan(FILE, tid(20), Plan::size(2 * BLOCK).pin(1, 1, PinTo::Head));
    conn.resync(tid(20)).unwrap();
    assert_eq!(shown(&mapping), blocks(b"ab"));
}
