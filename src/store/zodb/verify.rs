//! Whether a database is whole, as far as its files need it to be.
//!
//! Each transaction is walked through, each record of the classes that files are made of is read as it is when it is
//! served, and of the newest state each file is walked through to its last block. Invariant: a finding names the object and its
//! state; one that harms nobody else ends nothing. Left out on purpose: records of other classes (ZODB's own tools check those) and
//! checksums, which the format has not: a flipped bit in the bytes of a block is not noticed.

use revfs_protocol::Tid;

use super::Oid;
use super::database::Database;
use super::error::ZodbError;
use super::objects::{self, Class};
use super::storage::Transaction;
use crate::store::{Finding, Store};

/// Most findings that are listed; the others are counted.
const FINDINGS_MAX: usize = 1000;

/// What was found.
#[derive(Clone, Debug)]
pub struct DatabaseReport {
    /// The newest state.
    pub head: Tid,
    /// Transactions.
    pub transactions: u64,
    /// Records that were looked at.
    pub records: u64,
    /// Files of the newest state.
    pub files: u64,
    /// Bytes of records that were read.
    pub bytes: u64,
    /// What is wrong, in the order of the file; the first of them.
    pub findings: Vec<Finding>,
    /// Findings that are not listed.
    pub more: u64,
}

impl DatabaseReport {
    /// Whether anything is wrong.
    pub fn is_damaged(&self) -> bool {
        !self.findings.is_empty()
    }

    fn add(&mut self, object: String, what: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { object, what, damage: true });
        } else {
            self.more += 1;
        }
    }

    /// Notes an error, unless it is one of the storage that keeps the rest from being looked at.
    fn note(&mut self, oid: Oid, at: Tid, result: Result<(), ZodbError>) -> Result<(), ZodbError> {
        match result {
            Err(error) if error.is_damage() => {
                self.add(format!("object {oid} @{at}"), error.to_string());
                Ok(())
            }
            other => other,
        }
    }
}

impl Database {
    /// Checks it. `quick`: transactions, trees and headers only. `sample_percent`: of the records and blocks, 0 to 100.
    /// `progress` is told how many bytes of the file are done, of how many.
    ///
    /// # Errors
    /// The storage does not answer.
    pub fn verify(
        &self,
        quick: bool,
        sample_percent: f64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<DatabaseReport, ZodbError> {
        let head = self.head();
        let mut report = DatabaseReport {
            head,
            transactions: 0,
            records: 0,
            files: 0,
            bytes: 0,
            findings: Vec::new(),
            more: 0,
        };
        if let Some(trouble) = self.storage().trouble() {
            report.add(self.info().url.clone(), trouble);
        }
        let total = self.storage().extent()?;
        for transaction in self.storage().transactions(Tid::ZERO, head)? {
            let transaction = match transaction {
                Ok(transaction) => transaction,
                Err(error) if error.is_damage() => {
                    report.add(self.info().url.clone(), error.to_string());
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            progress(transaction.done, total);
            report.transactions += 1;
            report.records += transaction.records.len() as u64;
            if !quick {
                self.verify_records(&transaction, sample_percent, &mut report)?;
            }
        }
        self.verify_files(quick, sample_percent, &mut report)?;
        progress(total, total);
        Ok(report)
    }

    fn verify_records(
        &self,
        transaction: &Transaction,
        sample_percent: f64,
        report: &mut DatabaseReport,
    ) -> Result<(), ZodbError> {
        for record in &transaction.records {
            let (oid, at) = (record.oid, transaction.tid);
            if !is_sampled(oid.raw().rotate_left(32) ^ at.raw(), sample_percent) {
                continue;
            }
            let loaded = match self.storage().load(oid, at) {
                Ok(Some(loaded)) => loaded,
                // A deletion, as an undo of the creation is.
                Ok(None) => continue,
                Err(error) => {
                    report.note(oid, at, Err(error.into()))?;
                    continue;
                }
            };
            report.bytes += loaded.data.len() as u64;
            let serial = loaded.serial;
            let decoded = match objects::class_of_start(&loaded.data) {
                // What other classes keep is theirs.
                Ok(Class::Other) => Ok(()),
                Ok(_) => objects::decode(&loaded.data).map(drop),
                Err(source) => Err(source),
            };
            let decoded = decoded.map_err(|source| ZodbError::Object { oid, serial, source });
            report.note(oid, at, decoded)?;
        }
        Ok(())
    }

    /// Walks through all files of the newest state.
    fn verify_files(
        &self,
        quick: bool,
        sample_percent: f64,
        report: &mut DatabaseReport,
    ) -> Result<(), ZodbError> {
        let at = report.head;
        for oid in self.files()? {
            let file = match self.nodes().file(oid, at) {
                Ok(Some(file)) => file,
                Ok(None) => continue,
                Err(error) => {
                    report.note(oid, at, Err(error))?;
                    continue;
                }
            };
            report.files += 1;
            let mut blocks = Vec::new();
            let walked = self.nodes().walk(
                (file.tree, oid, file.serial),
                Class::LongTree,
                at,
                i64::MIN..=i64::MAX,
                &mut |leaf| {
                    blocks.extend(leaf.entries.iter().map(|(_, block)| block.oid));
                    Ok(())
                },
            );
            report.note(oid, at, walked)?;
            let block_size = usize::try_from(file.block_size.bytes()).unwrap_or(usize::MAX);
            let mut buffer = vec![0; if quick { 0 } else { block_size }];
            for block in blocks.into_iter().filter(|block| is_sampled(block.raw(), sample_percent)) {
                // Without bytes to fill it still looks whether the block is there and is one.
                let read = self.nodes().read_block(block, at, (0, block_size), &mut buffer);
                report.note(block, at, read)?;
            }
        }
        Ok(())
    }
}

/// Whether something with this number is one of so many per cent, spread evenly and the same at each run.
fn is_sampled(number: u64, percent: f64) -> bool {
    let hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (hash as f64) < percent / 100.0 * f64::from(u32::MAX) || percent >= 100.0
}
