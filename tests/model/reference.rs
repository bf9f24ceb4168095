//! The pure reference: a tid maps to files, a file to bytes. No blocks, packs or index.
//!
//! Invariant: nothing here calls the store's code, so that both cannot be wrong in the same way.

use std::collections::{BTreeMap, BTreeSet};

use revfs::protocol::{FileId, Tid};

/// Block size of all files of the model, bytes.
pub const BLOCK: u64 = 4096;

/// Files by name.
pub type State = BTreeMap<Vec<u8>, (FileId, Vec<u8>)>;

/// A deterministic source of choices (xorshift64*).
pub struct Rng(u64);

impl Rng {
    /// From a seed that is printed when a test fails.
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound.max(1)
    }

    /// Bytes: noise, one value, or zeros.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        match self.below(4) {
            0 => vec![0; len],
            1 => vec![self.below(255) as u8 + 1; len],
            _ => (0..len).map(|_| self.below(256) as u8).collect(),
        }
    }
}

/// One edit of a transaction, by name.
#[derive(Clone, Debug)]
pub enum Edit {
    /// A new file with these bytes.
    Create(Vec<u8>, Vec<u8>),
    /// Bytes at an offset.
    Write(Vec<u8>, u64, Vec<u8>),
    /// A size.
    Resize(Vec<u8>, u64),
    /// Another name.
    Rename(Vec<u8>, Vec<u8>),
    /// Gone.
    Delete(Vec<u8>),
}

/// Whether a name can be given in a state: free, no directory, no file on the way.
pub fn is_free(state: &State, name: &[u8]) -> bool {
    let below = [name, b"/"].concat();
    let on_the_way = (0..name.len()).filter(|i| name[*i] == b'/').any(|i| state.contains_key(&name[..i]));
    !on_the_way && !state.keys().any(|other| other == name || other.starts_with(&below))
}

/// Draws an edit that is possible in `state`.
pub fn draw(rng: &mut Rng, state: &State) -> Edit {
    const NAMES: [&str; 9] = ["a", "b", "c", "d/x", "d/y", "d/e/z", "d", "b/k", "e/f/g/h"];
    let fresh = NAMES[rng.below(NAMES.len() as u64) as usize].as_bytes().to_vec();
    let names: Vec<&Vec<u8>> = state.keys().collect();
    if names.is_empty() || (rng.below(4) == 0 && is_free(state, &fresh)) {
        let len = rng.below(5 * BLOCK) as usize;
        let name = if is_free(state, &fresh) { fresh } else { b"only".to_vec() };
        return Edit::Create(name, rng.bytes(len));
    }
    let name = names[rng.below(names.len() as u64) as usize].clone();
    let size = state[&name].1.len() as u64;
    match rng.below(10) {
        0 => Edit::Delete(name),
        1 if is_free(state, &fresh) => Edit::Rename(name, fresh),
        2 | 3 => {
            let size = rng.below(6 * BLOCK);
            Edit::Resize(name, size)
        }
        4 => Edit::Write(name, size, {
            let len = rng.below(2 * BLOCK) as usize + 1;
            rng.bytes(len)
        }),
        _ => {
            let at = rng.below(size + BLOCK / 2);
            let len = rng.below(2 * BLOCK) as usize + 1;
            Edit::Write(name, at, rng.bytes(len))
        }
    }
}

/// What an edit does.
pub fn apply(state: &mut State, edit: &Edit, file_of_new: FileId) {
    match edit {
        Edit::Create(name, bytes) => {
            state.insert(name.clone(), (file_of_new, bytes.clone()));
        }
        Edit::Write(name, at, bytes) => {
            let file = &mut state.get_mut(name).expect("drawn from the state").1;
            let end = *at as usize + bytes.len();
            if file.len() < end {
                file.resize(end, 0);
            }
            file[*at as usize..end].copy_from_slice(bytes);
        }
        Edit::Resize(name, size) => {
            state.get_mut(name).expect("drawn from the state").1.resize(*size as usize, 0);
        }
        Edit::Rename(name, to) => {
            let file = state.remove(name).expect("drawn from the state");
            state.insert(to.clone(), file);
        }
        Edit::Delete(name) => {
            state.remove(name);
        }
    }
}

/// What a list of edits touches, for the rules of conflict.
#[derive(Debug, Default)]
pub struct Touched {
    /// Blocks written, by file; a size change writes [min(old, new), infinity), as blocks up to 1000.
    pub blocks: BTreeMap<FileId, BTreeSet<u64>>,
    /// Files that were deleted or renamed.
    pub moved: BTreeSet<FileId>,
    /// Names that were given.
    pub given: BTreeSet<Vec<u8>>,
}

/// Follows the edits through the states, block by block.
pub fn touched(base: &State, edits: &[Edit], end: &State) -> Touched {
    let mut touched = Touched::default();
    let mut state = base.clone();
    for edit in edits {
        let file = |state: &State, name: &Vec<u8>| state[name].0;
        match edit {
            Edit::Create(..) => {}
            Edit::Write(name, at, bytes) => {
                let blocks = touched.blocks.entry(file(&state, name)).or_default();
                blocks.extend(at / BLOCK..(at + bytes.len() as u64).div_ceil(BLOCK));
            }
            Edit::Resize(name, size) => {
                let old = state[name].1.len() as u64;
                let blocks = touched.blocks.entry(file(&state, name)).or_default();
                // A shrink inside a block rewrites it if there was anything to clear.
                if *size < old && size % BLOCK != 0 {
                    let cut = &state[name].1[*size as usize..old.min(size.next_multiple_of(BLOCK)) as usize];
                    if cut.iter().any(|byte| *byte != 0) {
                        blocks.insert(size / BLOCK);
                    }
                }
                // What is cut off is zero if the file grows again.
                blocks.extend(size.div_ceil(BLOCK)..old.div_ceil(BLOCK));
            }
            Edit::Rename(name, _) | Edit::Delete(name) => {
                touched.moved.insert(file(&state, name));
            }
        }
        apply(&mut state, edit, FileId::from_raw(0));
    }
    let by_file = |state: &State| -> BTreeMap<FileId, (Vec<u8>, u64)> {
        state.iter().map(|(name, (file, bytes))| (*file, (name.clone(), bytes.len() as u64))).collect()
    };
    let (before, after) = (by_file(base), by_file(end));
    for (file, (name, size)) in &after {
        match before.get(file) {
            Some((old_name, old_size)) => {
                if let Some(blocks) = touched.blocks.get_mut(file) {
                    blocks.retain(|block| *block < size.div_ceil(BLOCK));
                }
                if old_size != size {
                    let from = old_size.min(size) / BLOCK;
                    touched.blocks.entry(*file).or_default().extend(from..1000);
                }
                if old_name == name {
                    touched.moved.remove(file); // renamed there and back
                } else {
                    touched.given.insert(name.clone());
                }
            }
            None => {
                touched.given.insert(name.clone());
            }
        }
    }
    touched.blocks.retain(|file, blocks| before.contains_key(file) && !blocks.is_empty());
    touched.moved.retain(|file| before.contains_key(file));
    touched
}

/// Whether a commit with `ours` can stand on `head`, after one with `theirs`, both made on one state.
pub fn conflicts(ours: &Touched, theirs: &Touched, head: &State) -> bool {
    let any = |t: &Touched, file: &FileId| t.blocks.contains_key(file) || t.moved.contains(file);
    let files: BTreeSet<FileId> = ours
        .blocks
        .keys()
        .chain(&ours.moved)
        .chain(theirs.blocks.keys())
        .chain(&theirs.moved)
        .copied()
        .collect();
    for file in &files {
        if !any(ours, file) || !any(theirs, file) {
            continue;
        }
        if ours.moved.contains(file) || theirs.moved.contains(file) {
            return true;
        }
        if !ours.blocks[file].is_disjoint(&theirs.blocks[file]) {
            return true;
        }
    }
    let mut left = head.clone();
    left.retain(|_, (file, _)| !ours.moved.contains(file));
    ours.given.iter().any(|name| !is_free(&left, name))
}

/// All states by tid.
#[derive(Default)]
pub struct Model {
    /// State from each tid on.
    pub states: BTreeMap<Tid, State>,
}

impl Model {
    /// State as of `at`.
    pub fn at(&self, at: Tid) -> State {
        self.states.range(..=at).next_back().map(|(_, state)| state.clone()).unwrap_or_default()
    }

    /// Newest tid.
    pub fn head(&self) -> Tid {
        self.states.keys().next_back().copied().unwrap_or_default()
    }
}
