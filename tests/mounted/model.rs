//! The reference model against a mount: random commits while it serves, and what it then shows.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use revfs::protocol::{FileId, Tid};

use super::live::{Live, Place};
use super::play::{draw_and_play, run};
use super::reference::{Model, Rng, State};

fn id_of(path: &Path) -> FileId {
    let mut value = [0u8; 16];
    let len = rustix::fs::getxattr(path, "user.revfs.file", &mut value[..]).unwrap();
    std::str::from_utf8(&value[..len]).unwrap().parse().unwrap()
}

/// All files below a directory of the mount.
fn state_below(root: &Path) -> State {
    let mut state = State::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().len(), bytes.len() as u64, "{}", path.display());
            let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            state.insert(name, (id_of(&path), bytes));
        }
    }
    state
}

/// Compares `head` or a revision, by name and by id.
fn compare(root: &Path, expected: &State, what: &str) {
    let found = state_below(&root.join("bigfile"));
    let names = |state: &State| state.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(expected), "names, {what}");
    for (name, (file, bytes)) in expected {
        let text = String::from_utf8_lossy(name);
        assert_eq!(found[name].0, *file, "identity of {text}, {what}");
        assert!(found[name].1 == *bytes, "bytes of {text}, {what}");
        assert!(fs::read(root.join(format!("by-id/{file}"))).unwrap() == *bytes, "{text} by id, {what}");
    }
}

/// Files that were opened once and stay open, whatever happens to their names.
#[derive(Default)]
struct Held {
    open: BTreeMap<FileId, File>,
    last: BTreeMap<FileId, Vec<u8>>,
}

impl Held {
    fn follow(&mut self, live: &Live, state: &State, what: &str) {
        for (name, (file, bytes)) in state {
            let name = std::str::from_utf8(name).unwrap();
            self.open.entry(*file).or_insert_with(|| File::open(live.head(name)).unwrap());
            self.last.insert(*file, bytes.clone());
        }
        for (file, open) in &mut self.open {
            let mut found = Vec::new();
            open.rewind().unwrap();
            open.read_to_end(&mut found).unwrap();
            assert!(found == self.last[file], "open file {file}, {what}");
            let links = u64::from(state.values().any(|(other, _)| other == file));
            assert_eq!(open.metadata().unwrap().nlink(), links, "links of {file}, {what}");
        }
    }
}

/// Random commits while the store is mounted; head and a random revision are compared after each.
pub fn scenario(seed: u64, steps: u64) {
    let mut rng = Rng::new(5000 + seed);
    let place = Place::new();
    let mut live = place.mount();
    let store = place.open();
    let mut model = Model::default();
    let mut held = Held::default();
    for step in 0..steps {
        let mut txn = store.begin(None).unwrap();
        let (_, state) = draw_and_play(&mut rng, &mut txn, &model.at(model.head()));
        let done = run(txn.commit()).unwrap();
        if !done.empty {
            model.states.insert(done.tid, state.clone());
        }
        live.wait(&done.tid.to_string());
        let what = format!("seed {seed}, step {step}");
        compare(&live.path("head"), &state, &what);
        held.follow(&live, &state, &what);
        let tids: Vec<Tid> = model.states.keys().copied().collect();
        if let Some(at) = tids.get(rng.below(tids.len() as u64) as usize) {
            for at in [*at, Tid::from_raw(at.raw() - 1)] {
                compare(&live.path(&format!("@{at}")), &model.at(at), &format!("{what}, @{at}"));
            }
        }
        if step == steps / 2 {
            held = Held::default();
            place.ok(&["umount", "m"]);
            live = place.mount();
        }
    }
    for (at, state) in &model.states {
        compare(&live.path(&format!("@{at}")), state, &format!("seed {seed}, in the end, @{at}"));
    }
}
