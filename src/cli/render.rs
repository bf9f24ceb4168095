//! Answers as text for people: aligned tables, sizes and times with units.
//!
//! Invariant: pure; each function makes whole lines. Names come last in a line, for they may be long.

use revfs_protocol::{BlockSize, format_size};

use crate::ops::data::shown;
use crate::ops::diff::{Change, DiffEntry};
use crate::ops::import::Imported;
use crate::ops::log::{LogEntry, LogFile, TagEntry};
use crate::ops::ls::{Du, LsEntry};
use crate::store::Finding;
use crate::store::native::VerifyReport;
use crate::store::zodb::DatabaseReport;

/// A table: cells are aligned by their columns, but for the last one.
struct Table {
    /// For each column but the last: whether it is aligned to the right.
    right: &'static [bool],
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(right: &'static [bool], head: &[&str]) -> Table {
        Table { right, rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    fn lines(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            for ((cell, width), right) in row.iter().zip(&widths).zip(self.right) {
                text.push_str(&match right {
                    true => format!("{cell:>width$}  "),
                    false => format!("{cell:<width$}  "),
                });
            }
            text.push_str(row.get(self.right.len()).map_or("", String::as_str));
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }
}

/// How many things of a kind, in words: one is singular.
pub(super) fn count(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// A moment without its fraction, for people.
fn seconds(time: &str) -> String {
    match time.split_once('.') {
        Some((whole, _)) => format!("{whole}Z"),
        None => time.to_owned(),
    }
}

fn seconds_or_dash(time: Option<&String>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| seconds(time))
}

/// The files of a revision.
pub(super) fn ls(entries: &[LsEntry]) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let with_paths = entries.iter().any(|entry| entry.root_path.is_some());
    let headings = ["SIZE", "STORED", "FILE", "REV", "TIME", "NAME", "ROOT PATH"];
    let mut table = match with_paths {
        true => Table::new(&[true, true, false, false, false, false], &headings),
        false => Table::new(&[true, true, false, false, false], &headings[..6]),
    };
    for entry in entries {
        let mut row = vec![
            format_size(entry.size),
            format_size(entry.stored),
            entry.file.to_string(),
            entry.rev.to_string(),
            seconds_or_dash(entry.time.as_ref()),
            entry.name.to_string(),
        ];
        if with_paths {
            row.push(entry.root_path.as_ref().map_or_else(|| "-".to_owned(), |path| shown(path.as_bytes())));
        }
        table.rows.push(row);
    }
    table.lines()
}

/// Room that files take.
pub(super) fn du(du: &Du) -> String {
    let mut table = Table::new(&[true, true], &["SIZE", "STORED", "NAME"]);
    for file in &du.files {
        table.rows.push(vec![format_size(file.size), format_size(file.stored), file.name.to_string()]);
    }
    let total = format!("in all, {}", count(du.files.len() as u64, "file"));
    table.rows.push(vec![format_size(du.size), format_size(du.stored), total]);
    let mut text = table.lines();
    if let Some(disk) = &du.disk {
        text.push_str(&format!(
            "on disk, all revisions: {} (packs {}, commits {}, index {})\n",
            format_size(disk.total),
            format_size(disk.packs),
            format_size(disk.commits),
            format_size(disk.index)
        ));
    }
    text
}

/// Tags and what they mean.
pub(super) fn tags(tags: &[TagEntry]) -> String {
    if tags.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[false, false], &["REV", "TIME", "TAG"]);
    for tag in tags {
        table.rows.push(vec![tag.tid.to_string(), seconds_or_dash(tag.time.as_ref()), tag.tag.clone()]);
    }
    table.lines()
}

/// One commit.
pub(super) fn log(entry: &LogEntry) -> String {
    let mut text = format!("{}  {}  {}", entry.tid, seconds(&entry.time), one_line(&entry.author));
    text.truncate(text.trim_end().len());
    text.push('\n');
    for line in entry.message.lines() {
        text.push_str(&format!("    {}\n", one_line(line)));
    }
    for file in &entry.files {
        text.push_str(&format!("  {}\n", log_file(file)));
    }
    for tag in &entry.tags {
        text.push_str(&match tag.tid {
            Some(tid) => format!("  tag {} -> @{tid}\n", tag.tag),
            None => format!("  tag {} deleted\n", tag.tag),
        });
    }
    text
}

fn log_file(file: &LogFile) -> String {
    if file.deleted {
        return format!("deleted  {}", file.name);
    }
    if file.created {
        return format!("created  {}  {}", file.name, format_size(file.size));
    }
    let mut parts = Vec::new();
    if file.size != file.old_size {
        parts.push(format!("{} -> {}", format_size(file.old_size), format_size(file.size)));
    }
    let blocks: u64 = file.blocks.iter().map(|run| run.end - run.start).fold(0, u64::saturating_add);
    if blocks > 0 {
        let size = BlockSize::new(file.block_size).map_or_else(|_| String::new(), |size| size.to_string());
        parts.push(format!("{} of {size}", count(blocks, "block")));
    }
    let what = match &file.renamed_from {
        Some(old) => format!("renamed  {old} -> {}", file.name),
        None => format!("changed  {}", file.name),
    };
    if parts.is_empty() { what } else { format!("{what}  {}", parts.join(", ")) }
}

/// Text of others, without what could move the cursor.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Files that differ.
pub(super) fn diff(entries: &[DiffEntry]) -> String {
    entries.iter().map(diff_entry).collect()
}

fn diff_entry(entry: &DiffEntry) -> String {
    let sizes = match entry.size == entry.old_size {
        true => format_size(entry.size),
        false => format!("{} -> {}", format_size(entry.old_size), format_size(entry.size)),
    };
    let mut text = match (entry.change, &entry.renamed_from) {
        (Change::Created, _) => format!("created  {}  {}\n", entry.name, format_size(entry.size)),
        (Change::Deleted, _) => format!("deleted  {}  {}\n", entry.name, format_size(entry.old_size)),
        (_, Some(old)) => format!("renamed  {old} -> {}  {sizes}\n", entry.name),
        (_, None) => format!("changed  {}  {sizes}\n", entry.name),
    };
    if entry.change != Change::Created {
        for range in &entry.ranges {
            let len = format_size(range.end - range.start);
            text.push_str(&format!("    {}..{}  {len}\n", range.start, range.end));
        }
    }
    if let Some(range) = &entry.cut_off {
        let len = format_size(range.end - range.start);
        text.push_str(&format!("    {}..{}  {len} cut off\n", range.start, range.end));
    }
    text
}

/// What a check found.
pub(super) fn verify(report: &VerifyReport) -> String {
    let what = format!("{} and {}", count(report.records, "commit record"), count(report.packs, "pack"));
    let read = format!("{} of blocks read", format_size(report.bytes));
    verified(&report.findings, 0, &format!("{what} up to @{}, {read}", report.head))
}

/// What was imported.
pub(super) fn imported(done: &Imported) -> String {
    let made = count(done.commits, "commit");
    let before = match done.commits_before {
        0 => String::new(),
        known => format!(" after {known} that were there"),
    };
    let lost = match done.not_verified {
        0 => String::new(),
        lost => format!("; {lost} from before a pack of the source cannot be compared any more"),
    };
    let (bytes, verified) = (format_size(done.bytes), count(done.verified, "commit"));
    format!("imported {made}{before}, {bytes} of blocks, up to @{}; {verified} compared{lost}\n", done.tid)
}

pub(super) fn verify_database(report: &DatabaseReport) -> String {
    let records =
        format!("{} and {}", count(report.transactions, "transaction"), count(report.records, "record"));
    let files = format!("{} at @{}", count(report.files, "file"), report.head);
    let read = format!("{} of records read", format_size(report.bytes));
    verified(&report.findings, report.more, &format!("{records}, {files}, {read}"))
}

fn verified(findings: &[Finding], more: u64, what: &str) -> String {
    let mut text = String::new();
    for finding in findings {
        let word = if finding.damage { "damaged" } else { "left over" };
        text.push_str(&format!("{word}  {}: {}\n", finding.object, finding.what));
    }
    if more > 0 {
        text.push_str(&format!("damaged  and {more} more\n"));
    }
    let verdict = match findings.iter().filter(|finding| finding.damage).count() as u64 + more {
        0 => "whole".to_owned(),
        damaged => format!("DAMAGED ({})", count(damaged, "finding")),
    };
    text.push_str(&format!("{verdict}: {what}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::data::{Name, Range};
    use crate::ops::log::LogTag;
    use crate::ops::ls::DiskUse;
    use revfs_protocol::{FileId, Tid};

    const TID: Tid = Tid::from_raw(0x03ca_a842_75fc_1166);

    fn file(name: &[u8], size: u64) -> LsEntry {
        LsEntry {
            name: Name::new(name),
            file: FileId::from_raw(0x2a),
            size,
            stored: size / 2,
            block_size: 4096,
            rev: TID,
            time: Some("2018-10-01T16:34:27.652650Z".to_owned()),
            root_path: None,
        }
    }

    #[test]
    fn files_are_a_table_with_the_name_last() {
        let expected = "   SIZE   STORED  FILE              REV               TIME                  NAME
   10 B      5 B  000000000000002a  03caa84275fc1166  2018-10-01T16:34:27Z  a
1.5 GiB  768 MiB  000000000000002a  03caa84275fc1166  2018-10-01T16:34:27Z  dir/b\\xff
";
        assert_eq!(ls(&[file(b"a", 10), file(b"dir/b\xff", 3 << 29)]), expected);
        assert_eq!(ls(&[]), "");
    }

    #[test]
    fn room_is_told_for_each_file_and_in_all() {
        let files = vec![file(b"a", 4096)];
        let disk = DiskUse { commits: 4096, packs: 8192, index: 1 << 20, total: 2 << 20 };
        let expected = " SIZE  STORED  NAME
4 KiB   2 KiB  a
4 KiB   2 KiB  in all, 1 file
on disk, all revisions: 2 MiB (packs 8 KiB, commits 4 KiB, index 1 MiB)
";
        let damaged = Vec::new();
        assert_eq!(du(&Du { files, size: 4096, stored: 2048, disk: Some(disk), damaged }), expected);
    }

    #[test]
    fn a_commit_tells_what_it_did_to_each_file_and_tag() {
        let changed = |name: &[u8]| LogFile {
            name: Name::new(name),
            file: FileId::from_raw(1),
            created: false,
            deleted: false,
            renamed_from: None,
            old_size: 4096,
            size: 4096,
            block_size: 4096,
            blocks: Vec::new(),
        };
        let blocks = vec![Range { start: 0, end: 2 }];
        let entry = LogEntry {
            tid: TID,
            seq: 7,
            time: "2018-10-01T16:34:27.652650Z".to_owned(),
            base: Tid::ZERO,
            author: "etl\x1b[1m".to_owned(),
            message: "one\ntwo".to_owned(),
            commit_uuid: uuid::Uuid::nil(),
            files: vec![
                LogFile { created: true, ..changed(b"new") },
                LogFile { size: 8192, blocks, ..changed(b"b") },
                LogFile { renamed_from: Some(Name::new(b"old")), ..changed(b"c") },
                LogFile { deleted: true, ..changed(b"d") },
            ],
            tags: vec![LogTag { tag: "t".to_owned(), tid: None }],
            pack_bytes: 0,
        };
        let expected = "\
03caa84275fc1166  2018-10-01T16:34:27Z  etl [1m
    one
    two
  created  new  4 KiB
  changed  b  4 KiB -> 8 KiB, 2 blocks of 4K
  renamed  old -> c
  deleted  d
  tag t deleted
";
        assert_eq!(log(&entry), expected);
    }

    #[test]
    fn differences_are_ranges_of_bytes() {
        let entry = |change, renamed_from| DiffEntry {
            name: Name::new(b"f"),
            file: FileId::from_raw(1),
            change,
            renamed_from,
            old_size: 100,
            size: 8192,
            block_size: 4096,
            ranges: vec![Range { start: 4096, end: 8192 }],
            cut_off: None,
        };
        let renamed = entry(Change::Renamed, Some(Name::new(b"e")));
        let expected = "\
created  f  8 KiB
changed  f  100 B -> 8 KiB
    4096..8192  4 KiB
renamed  e -> f  100 B -> 8 KiB
    4096..8192  4 KiB
";
        assert_eq!(diff(&[entry(Change::Created, None), entry(Change::Changed, None), renamed]), expected);
    }

    #[test]
    fn one_thing_is_singular() {
        let report =
            |number, findings| VerifyReport { findings, records: number, packs: number, bytes: 0, head: TID };
        let of = |number| verify(&report(number, Vec::new()));
        assert_eq!(of(1), format!("whole: 1 commit record and 1 pack up to @{TID}, 0 B of blocks read\n"));
        assert_eq!(of(2), format!("whole: 2 commit records and 2 packs up to @{TID}, 0 B of blocks read\n"));
        assert!(of(0).starts_with("whole: 0 commit records and 0 packs "));
        let finding = || Finding { object: "o".to_owned(), what: "w".to_owned(), damage: true };
        assert!(verify(&report(1, vec![finding()])).contains("DAMAGED (1 finding): "));
        assert!(verify(&report(1, vec![finding(), finding()])).contains("DAMAGED (2 findings): "));
    }

    #[test]
    fn tags_are_a_table() {
        let tag = |tag: &str, tid, time: Option<&str>| TagEntry {
            tag: tag.to_owned(),
            tid,
            time: time.map(str::to_owned),
        };
        let expected = "\
REV               TIME                  TAG
03caa84275fc1166  2018-10-01T16:34:27Z  a
0000000000000000  -                     empty
";
        let tags_of = [tag("a", TID, Some("2018-10-01T16:34:27.652650Z")), tag("empty", Tid::ZERO, None)];
        assert_eq!(tags(&tags_of), expected);
    }
}
