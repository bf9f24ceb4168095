//! The client library through a real mount.

use crate::child::ClientChild;
use crate::live::wait_until;
use crate::stage::{BLOCK, Kind, Stage, filled};
use revfs::protocol::Tid;
use revfs_client::{ClientError, Conn, FileHandle, Mapping};
use rustix::process::Signal;
use std::sync::Arc;

fn tid(text: &str) -> Tid {
    text.parse().unwrap()
}

/// What a mapping shows; the same by both ways to look.
fn shown(mapping: &Mapping) -> Vec<u8> {
    let mut read = vec![0xee; mapping.len()];
    mapping.read(0, &mut read).unwrap();
    assert!(mapping.with_bytes(|bytes| *bytes == *read).unwrap(), "read and with_bytes differ");
    read
}

fn file(stage: &Stage, conn: &Arc<Conn>) -> Arc<FileHandle> {
    conn.file(stage.name("a").as_bytes()).unwrap()
}

fn mapped(stage: &Stage, conn: &Arc<Conn>, first: usize, blocks: usize) -> Mapping {
    let file = file(stage, conn);
    file.map((first * BLOCK) as u64, (blocks * BLOCK) as u64).unwrap()
}

pub fn mappings_stay_as_the_file_grows_and_shrinks_until_a_resync(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1, 0]);
    let conn = Conn::open(stage.live.root(), Some(tid(&t1))).unwrap();
    let all = mapped(&stage, &conn, 0, 7);
    let beyond = mapped(&stage, &conn, 4, 2);
    let far = mapped(&stage, &conn, 1000, 1);
    let at_t1 = filled(&[1, 1, 0, 0, 0, 0, 0]);
    assert!(shown(&all) == at_t1 && shown(&beyond) == filled(&[0, 0]) && shown(&far) == filled(&[0]));
    // A hole becomes data, a block changes, and the file grows; others read all of it.
    let t2 = stage.commit(&[1, 2, 2, 2, 2]);
    assert!(stage.read() == filled(&[1, 2, 2, 2, 2]));
    assert!(shown(&all) == at_t1 && shown(&beyond) == filled(&[0, 0]), "growth is of a later revision");
    conn.resync(tid(&t2)).unwrap();
    assert_eq!(file(&stage, &conn).size_at(), 5 * BLOCK as u64);
    let at_t2 = filled(&[1, 2, 2, 2, 2, 0, 0]);
    assert!(shown(&all) == at_t2 && shown(&beyond) == filled(&[2, 0]) && shown(&far) == filled(&[0]));
    // It shrinks, and grows again by something else.
    let t3 = stage.commit(&[1, 2]);
    assert!(shown(&all) == at_t2 && shown(&beyond) == filled(&[2, 0]));
    let t4 = stage.commit(&[1, 2, 4, 4, 4, 4]);
    assert!(shown(&all) == at_t2 && shown(&beyond) == filled(&[2, 0]));
    conn.resync(tid(&t3)).unwrap();
    assert!(shown(&all) == filled(&[1, 2, 0, 0, 0, 0, 0]) && shown(&beyond) == filled(&[0, 0]));
    let back = conn.resync(tid(&t2)).unwrap_err();
    assert_eq!(back, ClientError::GoingBack { at: tid(&t2), current: tid(&t3) });
    conn.resync(tid(&t4)).unwrap();
    assert!(shown(&all) == filled(&[1, 2, 4, 4, 4, 4, 0]) && shown(&beyond) == filled(&[4, 4]));
    assert_eq!(stage.live.stat("links"), 1, "going back is no reason to go down");
    drop((all, beyond, far, conn));
    stage.end();
}

pub fn who_closes_disturbs_nobody_else(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1]);
    let [one, other] = [0, 1].map(|_| Conn::open(stage.live.root(), Some(tid(&t1))).unwrap());
    let (first, second) = (mapped(&stage, &one, 0, 2), mapped(&stage, &other, 0, 2));
    let again = file(&stage, &one);
    let handle = file(&stage, &one);
    assert!(Arc::ptr_eq(&again, &handle));
    drop(handle);
    stage.commit(&[2, 1]);
    assert!(stage.read() == filled(&[2, 1]));
    for mapping in [&first, &second] {
        assert!(shown(mapping) == filled(&[1, 1]), "one handle is left, and the mapping");
    }
    one.close().unwrap();
    assert!(matches!(first.with_bytes(|_| ()).unwrap_err(), ClientError::Down(_)));
    wait_until("its watch is gone", || stage.live.stat("watches") == 1);
    stage.commit(&[2, 3]);
    assert!(stage.read() == filled(&[2, 3]) && shown(&second) == filled(&[1, 1]));
    let new = Conn::open(stage.live.root(), None).unwrap();
    let fresh = mapped(&stage, &new, 0, 2);
    assert!(shown(&fresh) == filled(&[2, 3]));
    drop((first, second, again, fresh, one, other, new));
    stage.end();
}

pub fn what_was_closed_faults_and_the_rest_of_the_process_goes_on(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1, 1, 1]);
    for (what, error) in
        [("close", "error the connection is down: it was closed"), ("close-file", "error file ")]
    {
        let mut child = ClientChild::start(&stage);
        for _ in 0..2 {
            assert_eq!(child.ask(&format!("open {t1}")), "sees 1 1 1 1");
        }
        assert_eq!(child.ask("touch 0 2"), "touched 1");
        assert_eq!(child.ask(&format!("{what} 0")), "done");
        let looked = child.ask("look 0");
        assert!(looked.starts_with(error), "{what}: {looked}");
        assert_eq!(child.ask("look 1"), "sees 1 1 1 1", "{what}");
        assert_eq!(child.ask(&format!("open {t1}")), "sees 1 1 1 1", "{what}");
        assert_eq!(child.ask("touch 1 2"), "touched 1", "{what}");
        assert_eq!(child.ask("touch 0 2"), "gone", "{what}");
        assert_eq!(child.ended_by(), Some(Signal::SEGV.as_raw()), "{what}");
    }
    stage.end();
}

pub fn a_fork_faults_and_its_parent_goes_on(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1, 1, 1]);
    let mut child = ClientChild::start(&stage);
    assert_eq!(child.ask(&format!("open {t1}")), "sees 1 1 1 1");
    let segv = format!("signal {}", Signal::SEGV.as_raw());
    assert_eq!(child.ask("fork 0 1"), segv);
    let t2 = stage.commit(&[1, 2, 1, 2]);
    assert!(stage.read() == filled(&[1, 2, 1, 2]));
    assert_eq!(child.ask("look 0"), "sees 1 1 1 1", "pins were heard and obeyed");
    assert_eq!(child.ask("fork 0 3"), segv, "also of a pinned block");
    assert_eq!(child.ask(&format!("resync 0 {t2}")), "done");
    assert_eq!(child.ask("look 0"), "sees 1 2 1 2");
    assert_eq!(child.ask("close 0"), "done");
    drop(child);
    stage.end();
}

pub fn a_killed_server_takes_its_clients_down_and_the_next_one_serves_new_ones(kind: Kind) {
    let (stage, t1) = Stage::on(kind, &[1, 1, 1, 1]);
    let mut child = ClientChild::start(&stage);
    assert_eq!(child.ask(&format!("open {t1}")), "sees 1 1 1 1");
    let t2 = stage.commit(&[1, 2, 1, 1]);
    let server = stage.live.pid();
    stage.live.signal(Signal::KILL);
    let is_down = |answer: &str| answer.starts_with("error the connection is down");
    // Not by a look, which may be a fault until then.
    wait_until("the connection is down", || is_down(&child.ask("is-up 0")));
    let refused = child.ask("open");
    assert!(refused.starts_with("error "), "{refused}");
    let live = stage.mount_again();
    assert_ne!(live.pid(), server);
    assert_eq!(child.ask(&format!("open {t1}")), "sees 1 1 1 1");
    assert_eq!(child.ask("open"), "sees 1 2 1 1");
    let t3 = stage.commit(&[3, 3, 3, 3]);
    assert!(stage.read() == filled(&[3, 3, 3, 3]));
    assert_eq!((child.ask("look 1"), child.ask("look 2")), ("sees 1 1 1 1".into(), "sees 1 2 1 1".into()));
    assert_eq!(
        (child.ask(&format!("resync 1 {t3}")), child.ask("look 1")),
        ("done".into(), "sees 3 3 3 3".into())
    );
    let looked = child.ask("look 0");
    assert!(is_down(&looked), "what is lost stays lost: {looked} @{t2}");
    assert_eq!(child.ask("touch 0 0"), "gone");
    assert_eq!(child.ended_by(), Some(Signal::SEGV.as_raw()));
    stage.end();
}
