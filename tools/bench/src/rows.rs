//! All rows of the table, in groups that share what they read, and how a row is measured.
//!
//! Invariant: a row that fails takes no other with it; a group whose files cannot be made fails as a whole.

mod changes;
mod commits;
mod index;
mod isolation;
mod latency;
mod reads;
mod small;
mod zodb;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::args::Args;
use crate::data::BLOCK;
use crate::driver::Revfs;
use crate::error::{BenchError, Result};
use crate::report::{Measured, Report};
use crate::scratch::{self, Folder, Scratch};
use crate::stats::{Pair, RowSpec};
use crate::system::{self, Environment};

/// Exit status for wrong usage, and for a disk without room.
const USAGE: u8 = 2;

/// Rows that share files.
struct Group {
    name: &'static str,
    rows: &'static [RowSpec],
    /// What its files take at most, GiB, with nine pairs.
    disk_gib: f64,
    run: fn(&mut Bench, &Folder) -> Result<()>,
}

const GROUPS: [Group; 8] = [
    Group { name: "reads", rows: &reads::ROWS, disk_gib: 9.0, run: reads::run },
    Group { name: "commits", rows: &commits::ROWS, disk_gib: 22.0, run: commits::run },
    Group { name: "small", rows: &small::ROWS, disk_gib: 1.0, run: small::run },
    Group { name: "index", rows: &index::ROWS, disk_gib: 4.0, run: index::run },
    Group { name: "changes", rows: &changes::ROWS, disk_gib: 0.1, run: changes::run },
    Group { name: "isolation", rows: &isolation::ROWS, disk_gib: 2.5, run: isolation::run },
    Group { name: "latency", rows: &latency::ROWS, disk_gib: 0.5, run: latency::run },
    Group { name: "zodb", rows: &zodb::ROWS, disk_gib: 3.0, run: zodb::run },
];

/// A run of this tool.
pub struct Bench<'a> {
    args: &'a Args,
    revfs: &'a Revfs,
    measured: Vec<Measured>,
}

/// Which half of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// revfs.
    Ours,
    /// What it is held against.
    Baseline,
}

impl Bench<'_> {
    /// Whether a row was chosen.
    fn wants(&self, spec: &RowSpec) -> bool {
        is_chosen(self.args, spec)
    }

    /// `blocks` blocks of bulk data, scaled; at least two.
    fn blocks(&self, bytes: u64) -> u64 {
        ((bytes as f64 * self.args.scale / BLOCK as f64).round() as u64).max(2)
    }

    /// A count of small things, scaled; at least one.
    fn count(&self, count: u64) -> u64 {
        ((count as f64 * self.args.scale).round() as u64).max(1)
    }

    /// Measures a row if it was chosen.
    fn row(&mut self, spec: &RowSpec, measure: impl FnOnce(&mut Row) -> Result<Vec<Pair>>) {
        if !self.wants(spec) {
            return;
        }
        eprintln!("bench: {}: {}", spec.key, spec.what);
        let mut row = Row { spec, pairs: self.args.pairs, notes: Vec::new() };
        let pairs = measure(&mut row).map_err(|error| error.to_string());
        scratch::check_not_stopping();
        if let Err(why) = &pairs {
            eprintln!("bench: {}: not measured: {why}", spec.key);
        }
        self.measured.push(Measured { spec: *spec, pairs, notes: row.notes });
    }
}

/// A row that is being measured.
pub struct Row<'s> {
    spec: &'s RowSpec,
    pairs: u32,
    notes: Vec<String>,
}

impl Row<'_> {
    /// Says something under the table.
    fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// Measures all pairs. `half` answers a value in the row's unit; the two sides take turns in being first.
    fn interleave(&self, mut half: impl FnMut(Side, u32) -> Result<f64>) -> Result<Vec<Pair>> {
        let mut pairs = Vec::new();
        for number in 0..self.pairs {
            let (ours, baseline) = if number % 2 == 0 {
                let ours = half(Side::Ours, number)?;
                (ours, half(Side::Baseline, number)?)
            } else {
                let baseline = half(Side::Baseline, number)?;
                (half(Side::Ours, number)?, baseline)
            };
            let unit = self.spec.unit.symbol();
            eprintln!(
                "bench:   {}/{}: ours {ours:.4} {unit}, baseline {baseline:.4} {unit}",
                number + 1,
                self.pairs
            );
            pairs.push(Pair { ours, baseline: Some(baseline) });
        }
        Ok(pairs)
    }

    /// Measures what has no baseline, as often as a row has pairs.
    fn repeat(&self, mut measure: impl FnMut(u32) -> Result<f64>) -> Result<Vec<Pair>> {
        let mut pairs = Vec::new();
        for number in 0..self.pairs {
            let ours = measure(number)?;
            eprintln!("bench:   {}/{}: {ours:.4} {}", number + 1, self.pairs, self.spec.unit.symbol());
            pairs.push(Pair { ours, baseline: None });
        }
        Ok(pairs)
    }
}

/// Refuses a sum that is not that of the same bytes read before.
#[derive(Debug, Default)]
struct SameSum(Option<u64>);

impl SameSum {
    fn check(&mut self, sum: u64) -> Result<()> {
        if *self.0.get_or_insert(sum) == sum {
            return Ok(());
        }
        Err(BenchError::Wrong("the mount and the plain file do not have the same bytes".to_owned()))
    }
}

fn is_chosen(args: &Args, spec: &RowSpec) -> bool {
    let has = |part: &String| spec.key.contains(part.as_str()) || spec.what.contains(part.as_str());
    args.only.is_empty() || args.only.iter().any(has)
}

fn list() {
    for group in &GROUPS {
        println!("{} (up to {} GiB on disk)", group.name, group.disk_gib);
        for row in group.rows {
            println!("  {:22} {}; against: {}", row.key, row.what, row.against);
        }
    }
}

/// Does what the command line says.
pub fn run(args: &Args) -> ExitCode {
    if args.list {
        list();
        return ExitCode::SUCCESS;
    }
    let chosen: Vec<&Group> =
        GROUPS.iter().filter(|group| group.rows.iter().any(|row| is_chosen(args, row))).collect();
    if chosen.is_empty() {
        eprintln!("error: --only names no row: see --list");
        return ExitCode::from(USAGE);
    }
    scratch::clean_on_signals();
    let measured = measure(args, &chosen);
    scratch::check_not_stopping();
    match measured {
        Ok(report) => {
            if args.json {
                println!("{:#}", report.json());
            } else {
                print!("{}", if args.markdown { report.markdown() } else { report.text() });
            }
            let all = report.rows.iter().all(|row| row.pairs.is_ok());
            if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(USAGE)
        }
    }
}

fn measure(args: &Args, chosen: &[&Group]) -> Result<Report> {
    let beside = || std::env::current_exe().ok().and_then(|own| own.parent().map(PathBuf::from));
    let dir = args.dir.clone().or_else(beside).unwrap_or_else(|| PathBuf::from("."));
    let scratch = Scratch::new(&dir, args.keep)?;
    check_room(args, chosen, &scratch)?;
    if args.keep {
        eprintln!("bench: files are left in {}", scratch.root().display());
    }
    let revfs = Revfs::new(scratch.root());
    if let Err(error) = revfs.check() {
        // Not the end: there are rows that use the library alone.
        eprintln!("bench: {error}");
    }
    let environment = Environment::here(scratch.root(), revfs.version())?;
    let mut bench = Bench { args, revfs: &revfs, measured: Vec::new() };
    for group in chosen {
        let result = scratch.folder(group.name).and_then(|folder| (group.run)(&mut bench, &folder));
        scratch::check_not_stopping();
        let Err(error) = result else { continue };
        eprintln!("bench: {}: {error}", group.name);
        for spec in group.rows.iter().filter(|spec| is_chosen(args, spec)) {
            if bench.measured.iter().all(|row| row.spec.key != spec.key) {
                let (pairs, notes) = (Err(error.to_string()), Vec::new());
                bench.measured.push(Measured { spec: *spec, pairs, notes });
            }
        }
    }
    Ok(Report {
        environment,
        pairs: args.pairs as usize,
        scale: args.scale,
        seed: args.seed,
        rows: bench.measured,
    })
}

/// Groups run one after the other, and with `--keep` all their files stay.
fn check_room(args: &Args, chosen: &[&Group], scratch: &Scratch) -> Result<()> {
    let sizes = chosen.iter().map(|group| group.disk_gib);
    let gib = if args.keep { sizes.sum::<f64>() } else { sizes.fold(0.0, f64::max) };
    // Each pair of a commit row adds to its store.
    let needed = gib * args.scale * f64::from(args.pairs.max(9)) / 9.0;
    let free = system::free_bytes(scratch.root())? as f64 / f64::from(1 << 30);
    eprintln!("bench: {needed:.1} GiB of {free:.1} GiB free on the disk are needed");
    if free > needed {
        return Ok(());
    }
    Err(BenchError::NotPossible {
        what: format!("{} has {free:.1} GiB free, {needed:.1} GiB are needed", scratch.root().display()),
        remedy: "name a folder on a larger disk with --dir, or fewer rows with --only",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::collections::BTreeSet;

    #[test]
    fn keys_are_unique_and_rows_can_be_chosen() {
        let rows: Vec<&RowSpec> = GROUPS.iter().flat_map(|group| group.rows).collect();
        let keys: BTreeSet<&str> = rows.iter().map(|row| row.key).collect();
        assert_eq!(keys.len(), rows.len());
        let args = Args::try_parse_from(["bench", "--only", "lookups", "--only", "2 MiB blocks"]).unwrap();
        let chosen: Vec<&str> = rows.iter().filter(|row| is_chosen(&args, row)).map(|row| row.key).collect();
        assert!(chosen.contains(&"lookups") && chosen.contains(&"cold-mmap-random"), "{chosen:?}");
        assert!(chosen.len() < rows.len());
    }

    #[test]
    fn the_sides_take_turns_in_being_first() {
        let row = Row { spec: &reads::ROWS[0], pairs: 3, notes: Vec::new() };
        let mut order = Vec::new();
        let pairs = row.interleave(|side, number| {
            order.push((side, number));
            Ok(if side == Side::Ours { 2.0 } else { 1.0 })
        });
        let (o, b) = (Side::Ours, Side::Baseline);
        assert_eq!(order, [(o, 0), (b, 0), (b, 1), (o, 1), (o, 2), (b, 2)]);
        assert_eq!(pairs.unwrap()[1], Pair { ours: 2.0, baseline: Some(1.0) });
    }

    #[test]
    fn other_bytes_are_refused() {
        let mut same = SameSum::default();
        assert!(same.check(4).is_ok() && same.check(4).is_ok() && same.check(5).is_err());
    }
}
