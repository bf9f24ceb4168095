//! `import`: the history of files of a database goes into a native store.
//!
//! Invariant: which files are meant is known before anything is written.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use revfs_protocol::FileId;

use crate::ops;
use crate::ops::data::shown;
use crate::ops::import::{Chosen, Import};
use crate::store::zodb::{Database, Oid};
use crate::store::{ReadError, Store, check_path};

use super::args::{JsonArg, Refused};
use super::commands::runtime;
use super::open::{self, Opened};
use super::output::{Output, say};
use super::progress::Bar;
use super::{CliError, ExitCode, render};

/// Copy the history of files of a ZODB database into a store.
///
/// Each transaction that changed one of the files becomes a commit with the same transaction id, user and description, of
/// which only blocks that differ are stored. What is made is compared with the database at once. It may be interrupted at any moment, and
/// run again: it goes on behind the newest commit of STORE, also with what ZODB committed meanwhile. STORE must hold
/// nothing else: a store that was written otherwise, or imported with other files or names, is refused.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLES
  revfs init /data/store && revfs import Data.fs /data/store
  revfs import Data.fs /data/store 000000000000002a --name 000000000000002a=prices.bin
  revfs import Data.fs /data/store arrays/prices arrays/volumes
  revfs import Data.fs /data/store --verify            # all that was ever imported is compared again")]
pub struct ImportArgs {
    /// The Data.fs of a ZODB database, or the URL of its server
    #[arg(value_name = "DATABASE")]
    pub source: OsString,
    /// Directory of the store
    #[arg(value_name = "STORE")]
    pub store: OsString,
    /// Files by their ids, or by the keys that lead to them from the root, as `revfs ls` shows them [default: all]
    #[arg(value_name = "FILE")]
    pub files: Vec<OsString>,
    /// Name in the store of one file [default: its id, 16 hex digits]
    #[arg(long = "name", value_name = "FILE=NAME", value_parser = OsStringValueParser::new().try_map(named))]
    pub names: Vec<(Vec<u8>, Vec<u8>)>,
    /// Compare all commits with the database, and not only those made now
    #[arg(long)]
    pub verify: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub json: JsonArg,
}

fn named(text: OsString) -> Result<(Vec<u8>, Vec<u8>), Refused> {
    let bytes = text.into_vec();
    let Some(at) = bytes.iter().position(|byte| *byte == b'=') else {
        return Err("it has no '=': give the file and its name, as in 000000000000002a=prices.bin".into());
    };
    let (file, name) = (bytes[..at].to_vec(), bytes[at + 1..].to_vec());
    check_path(&name)?;
    Ok((file, name))
}

/// Runs the command.
///
/// # Errors
/// See [`CliError`].
pub(super) fn import(args: &ImportArgs) -> Result<ExitCode, CliError> {
    let store = || shown(args.source.as_bytes());
    let Opened::Zodb(database) = open::open_any(&args.source)? else {
        return Err(CliError::NotImportable { store: store() });
    };
    let target = open::open(&args.store)?;
    let find = |name: &[u8]| find(&database, name, &store());
    let files = args.files.iter().map(|name| find(name.as_bytes())).collect::<Result<Vec<_>, CliError>>()?;
    let mut names = Vec::with_capacity(args.names.len());
    for (file, name) in &args.names {
        names.push((find(file)?, name.clone()));
    }
    let chosen = Chosen::new(&files, &names)?;
    let source = std::sync::Arc::clone(&database) as std::sync::Arc<dyn Store>;
    let oldest = database.oldest().map_err(ReadError::from)?;
    let what = Import { source: &source, oldest, target: &target, chosen: &chosen, verify_all: args.verify };
    let bar = Bar::bytes_without_end("importing");
    let progress = |passed: u64| bar.show(passed, None);
    let done = runtime()?.block_on(ops::import::import(&what, &progress));
    bar.clear();
    let done = done?;
    for warning in &done.warnings {
        say(&format!("warning: {warning}"));
    }
    let mut output = Output::new(args.json.json);
    output.put(&done, render::imported)?;
    output.finish()?;
    Ok(ExitCode::Ok)
}

/// The file that a name means: an id of a file that is or was, or a path from the root of the newest state.
fn find(database: &Database, name: &[u8], store: &str) -> Result<FileId, CliError> {
    let oid = match std::str::from_utf8(name).ok().and_then(|name| name.parse::<Oid>().ok()) {
        Some(oid) => Some(oid).filter(|oid| database.files().is_ok_and(|files| files.contains(oid))),
        None => open::file_at(database, name, database.head())?,
    };
    match oid {
        Some(oid) => Ok(oid.into()),
        None => {
            // A database that cannot be read is another thing than one without the file.
            database.files().map_err(ReadError::from)?;
            Err(CliError::NoSuchSource { name: shown(name), store: store.to_owned() })
        }
    }
}
