//! Runs each command: opens the store, resolves revisions, calls `ops`, prints.
//!
//! Invariant: nothing is decided here that `ops` could decide; no command prints data before it is known that
//! its arguments mean something.

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use revfs_protocol::{RevSpec, Tid};
use serde::Serialize;

use crate::env::SystemClock;
use crate::ops;
use crate::ops::commit::{CommitRequest, Committed};
use crate::ops::edit::Note;
use crate::ops::log::LogQuery;
use crate::store::native::{FORMAT_VERSION, InitOptions, NativeStore, VerifyOptions, VerifyReport};
use crate::store::zodb::{DatabaseReport, Oid};
use crate::store::{Codec, ReadError, ReadTxn, Store};
use crate::view;

use super::args::{
    CatArgs, Command, CommitArgs, CompletionsArgs, Compress, DiffArgs, DuArgs, InitArgs, LogArgs, LsArgs,
    MvArgs, NoteArgs, RmArgs, TagArgs, TagsArgs, VerifyArgs,
};
use super::mount::MountPlan;
use super::open::Opened;
use super::output::{Output, RawStdout, say};
use super::progress::Bar;
use super::{CliError, ExitCode, ServeError, definition, open, render, serve, status, watch};

/// Threads of the runtime that does the writing.
const RUNTIME_THREADS: usize = 2;
/// Who made a commit, if no option says it.
const AUTHOR_VARIABLES: [&str; 3] = ["REVFS_AUTHOR", "LOGNAME", "USER"];

/// Runs a command.
pub(super) fn run(command: Command) -> Result<ExitCode, CliError> {
    let done = match command {
        Command::Init(args) => init(&args),
        Command::Commit(args) => commit(args),
        Command::Import(args) => return super::import::import(&args),
        Command::Mv(args) => mv(&args),
        Command::Rm(args) => rm(args),
        Command::Tag(args) => tag(&args),
        Command::Log(args) => log(args),
        Command::Tags(args) => tags(&args),
        Command::Du(args) => return du(&args),
        Command::Ls(args) => return ls(&args),
        Command::Cat(args) => cat(&args),
        Command::Diff(args) => return diff(&args),
        Command::Verify(args) => return verify(&args),
        Command::Mount(args) => {
            let plan = MountPlan::new(&args).map_err(|source| ServeError::Start { source })?;
            return serve::mount(&plan);
        }
        Command::Umount(args) => return status::umount(&args),
        Command::Status(args) => return status::status(&args),
        Command::Watch(args) => return watch::watch(&args),
        Command::Completions(args) => completions(&args),
    };
    done.map(|()| ExitCode::Ok)
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(RUNTIME_THREADS).thread_name("revfs-rt").enable_time();
    builder.build().map_err(|source| CliError::Runtime { source })
}

fn at(store: &Arc<dyn Store>, rev: &RevSpec) -> Result<Tid, CliError> {
    Ok(view::resolve(store, rev, SystemClock::shared().now_unix_ns())?)
}

fn txn_at(store: &Arc<dyn Store>, rev: &RevSpec) -> Result<ReadTxn, CliError> {
    Ok(ReadTxn::new(store, at(store, rev)?)?)
}

fn author(given: Option<&String>) -> String {
    let of_environment = || {
        let values = AUTHOR_VARIABLES.iter().filter_map(std::env::var_os);
        values.map(|value| value.to_string_lossy().into_owned()).find(|value| !value.is_empty())
    };
    let of_user = || name_of_user(rustix::process::getuid().as_raw());
    given.cloned().or_else(of_environment).unwrap_or_else(of_user)
}

/// The name that the passwd database has for a user, or else the number.
fn name_of_user(uid: u32) -> String {
    let found = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid));
    // A database that cannot be read is no reason to refuse a commit: the number says who it was as well.
    let known = found.map_err(|error| ::log::debug!("the name of user {uid}: {error}")).ok().flatten();
    known.map(|user| user.name).filter(|name| !name.is_empty()).unwrap_or_else(|| format!("uid {uid}"))
}

fn note(args: &NoteArgs) -> Note {
    Note { message: args.message.clone(), author: author(args.author.as_ref()) }
}

/// Prints the tid of a commit, and on stderr what else the writer should know.
fn committed(done: &Committed, json: bool) -> Result<(), CliError> {
    for warning in &done.warnings {
        say(&format!("warning: {warning}"));
    }
    if !done.changed {
        say("note: nothing changed, no commit was made");
    }
    let mut output = Output::new(json);
    output.put(done, |done| format!("{}\n", done.tid))?;
    output.finish()
}

#[derive(Serialize)]
struct Made {
    store: String,
    block_size: u64,
    format_version: u32,
}

fn init(args: &InitArgs) -> Result<(), CliError> {
    let path = open::local_path(&args.store)?;
    let codec = match args.compress {
        Compress::None => Codec::Raw,
        Compress::Zstd => Codec::Zstd,
    };
    let options = InitOptions { block_size: args.block_size, codec, sync: !args.no_sync };
    NativeStore::init(&path, &options, &*SystemClock::shared())?;
    let store = path.display().to_string();
    let made = Made { store, block_size: args.block_size.bytes(), format_version: FORMAT_VERSION };
    let mut output = Output::new(args.json.json);
    output.put(&made, |made| format!("{}: made a store with blocks of {}\n", made.store, args.block_size))?;
    output.finish()
}

fn commit(args: CommitArgs) -> Result<(), CliError> {
    let store = open::open(&args.store)?;
    let base = args.base.as_ref().map(|rev| at(&store.as_store(), rev)).transpose()?;
    let Note { message, author } = note(&args.note);
    let request = CommitRequest {
        files: args.files,
        message,
        author,
        base,
        merge: args.merge,
        tag: args.tag,
        block_size: args.block_size,
        allow_empty: args.allow_empty,
    };
    let bar = Bar::bytes("committing");
    let progress = |done, total| bar.show(done, total);
    let result = runtime()?.block_on(ops::commit::commit_files(&store, &request, &progress));
    bar.clear();
    let done = result?;
    if request.merge && done.changed {
        say("note: --merge: blocks of different writers may have been merged into one file");
    }
    committed(&done, args.json.json)
}

fn mv(args: &MvArgs) -> Result<(), CliError> {
    let store = open::open(&args.store)?;
    let note = note(&args.note);
    let done = runtime()?.block_on(ops::edit::rename(&store, &args.old.0, &args.new.0, &note))?;
    committed(&done, args.json.json)
}

fn rm(args: RmArgs) -> Result<(), CliError> {
    let store = open::open(&args.store)?;
    let names: Vec<Vec<u8>> = args.names.into_iter().map(|name| name.0).collect();
    let note = note(&args.note);
    let done = runtime()?.block_on(ops::edit::remove(&store, &names, args.recursive, &note))?;
    committed(&done, args.json.json)
}

fn tag(args: &TagArgs) -> Result<(), CliError> {
    let store = open::open(&args.store)?;
    let note = note(&args.note);
    let done = if args.delete {
        runtime()?.block_on(ops::edit::delete_tag(&store, &args.tag, &note))?
    } else {
        let target = at(&store.as_store(), &args.rev)?;
        runtime()?.block_on(ops::edit::set_tag(&store, &args.tag, target, args.force, &note))?
    };
    committed(&done, args.json.json)
}

fn log(args: LogArgs) -> Result<(), CliError> {
    let opened = open::open_any(&args.store)?;
    let store = opened.as_store();
    let since = args.since.as_ref().map(|rev| at(&store, rev)).transpose()?;
    let name = args.name.map(|name| opened.name(&name.0, store.head())).transpose()?;
    let query = LogQuery { name, limit: args.limit, since: since.unwrap_or(Tid::ZERO) };
    let mut output = Output::new(args.json.json);
    let mut failed = None;
    ops::log::log(&store, &query, &mut |entry| match output.put(&entry, render::log) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    output.finish()?;
    if let Opened::Zodb(database) = &opened {
        let oldest = database.oldest().map_err(ReadError::from)?;
        if oldest > query.since && query.limit.is_none() {
            say(&format!("note: what was committed up to @{oldest} was packed away"));
        }
    }
    Ok(())
}

fn tags(args: &TagsArgs) -> Result<(), CliError> {
    let store = open::open_any(&args.store)?.as_store();
    let mut output = Output::new(args.json.json);
    output.put_all(&ops::log::tags(&store)?, render::tags)?;
    output.finish()
}

fn du(args: &DuArgs) -> Result<ExitCode, CliError> {
    let opened = open::open_any(&args.store)?;
    let txn = ReadTxn::head(&opened.as_store());
    let name = args.name.as_ref().map(|name| opened.name(&name.0, txn.at())).transpose()?;
    let mut output = Output::new(args.json.json);
    let du = ops::ls::du(&txn, name.as_deref())?;
    output.put(&du, render::du)?;
    output.finish()?;
    Ok(told(&du.damaged))
}

/// Says what is wrong with files that are left out.
fn told(damaged: &[ReadError]) -> ExitCode {
    damaged.iter().for_each(|error| say(&format!("error: {error}")));
    if damaged.is_empty() { ExitCode::Ok } else { ExitCode::Damaged }
}

fn ls(args: &LsArgs) -> Result<ExitCode, CliError> {
    let opened = open::open_any(&args.store)?;
    let txn = txn_at(&opened.as_store(), &args.rev)?;
    let ops::ls::Listing { mut files, damaged } = ops::ls::ls(&txn)?;
    if let Opened::Zodb(database) = &opened {
        let mut paths = database.root_paths(txn.at()).map_err(ReadError::from)?;
        for file in &mut files {
            file.root_path = paths.remove(&Oid::from(file.file));
        }
    }
    if files.is_empty() && damaged.is_empty() && opened.native().is_none() {
        let store = ops::data::shown(args.store.as_bytes());
        say(&format!("note: {store}: has no ZBigFile at @{}", txn.at()));
    }
    let mut output = Output::new(args.json.json);
    output.put_all(&files, render::ls)?;
    output.finish()?;
    Ok(told(&damaged))
}

fn cat(args: &CatArgs) -> Result<(), CliError> {
    let opened = open::open_any(&args.store)?;
    let txn = txn_at(&opened.as_store(), &args.at)?;
    let meta = ops::cat::find(&txn, &opened.name(&args.name.0, txn.at())?)?;
    let runtime = runtime()?;
    match &args.output {
        Some(path) => {
            let bar = Bar::bytes("writing");
            let progress = |done, total| bar.show(done, Some(total));
            runtime.block_on(ops::cat::to_file(&txn, &meta, args.range, path, &progress))?;
        }
        None => {
            let mut stdout = RawStdout;
            runtime.block_on(ops::cat::to_stream(&txn, &meta, args.range, &mut stdout, &|_, _| {}))?;
        }
    }
    Ok(())
}

fn diff(args: &DiffArgs) -> Result<ExitCode, CliError> {
    let opened = open::open_any(&args.store)?;
    let store = opened.as_store();
    let (from, to) = (at(&store, &args.rev1)?, at(&store, &args.rev2)?);
    let found = runtime()?.block_on(ops::diff::diff(&store, opened.native(), from, to))?;
    let mut output = Output::new(args.json.json);
    output.put_all(&found.files, render::diff)?;
    output.finish()?;
    Ok(told(&found.damaged))
}

fn verify(args: &VerifyArgs) -> Result<ExitCode, CliError> {
    let bar = Bar::bytes("checking");
    let mut progress = |done, total| bar.show(done, Some(total));
    let mut output = Output::new(args.json.json);
    let damaged = match open::open_any(&args.store)? {
        Opened::Native(store) => {
            let options = VerifyOptions { quick: args.quick, sample_percent: args.sample };
            let report = runtime()?.block_on(store.verify(&options, &mut progress));
            bar.clear();
            let report = report?;
            output.put(&Verified::of(&report), |_| render::verify(&report))?;
            report.is_damaged()
        }
        Opened::Zodb(database) => {
            let report = database.verify(args.quick, args.sample, &mut progress);
            bar.clear();
            let report = report.map_err(ReadError::from)?;
            output.put(&DatabaseVerified::of(&report), |_| render::verify_database(&report))?;
            report.is_damaged()
        }
    };
    output.finish()?;
    Ok(if damaged { ExitCode::Damaged } else { ExitCode::Ok })
}

/// A report as JSON.
#[derive(Serialize)]
struct Verified<'a> {
    tid: String,
    damaged: bool,
    records: u64,
    packs: u64,
    bytes: u64,
    findings: Vec<Found<'a>>,
}

#[derive(Serialize)]
struct Found<'a> {
    object: &'a str,
    what: &'a str,
    damage: bool,
}

impl Verified<'_> {
    fn of(report: &VerifyReport) -> Verified<'_> {
        let found = report.findings.iter();
        Verified {
            tid: report.head.to_string(),
            damaged: report.is_damaged(),
            records: report.records,
            packs: report.packs,
            bytes: report.bytes,
            findings: found.map(|f| Found { object: &f.object, what: &f.what, damage: f.damage }).collect(),
        }
    }
}

/// A report on a database as JSON.
#[derive(Serialize)]
struct DatabaseVerified<'a> {
    tid: String,
    damaged: bool,
    transactions: u64,
    records: u64,
    files: u64,
    bytes: u64,
    findings: Vec<Found<'a>>,
    more: u64,
}

impl DatabaseVerified<'_> {
    fn of(report: &DatabaseReport) -> DatabaseVerified<'_> {
        let found = report.findings.iter();
        DatabaseVerified {
            tid: report.head.to_string(),
            damaged: report.is_damaged(),
            transactions: report.transactions,
            records: report.records,
            files: report.files,
            bytes: report.bytes,
            findings: found.map(|f| Found { object: &f.object, what: &f.what, damage: f.damage }).collect(),
            more: report.more,
        }
    }
}

fn completions(args: &CompletionsArgs) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut definition(), "revfs", &mut script);
    let written = std::io::Write::write_all(&mut RawStdout, &script);
    written.map_err(|source| CliError::Stdout { source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_without_a_name_is_a_number() {
        assert_eq!(name_of_user(0), "root");
        assert_eq!(name_of_user(4_000_000_001), "uid 4000000001");
    }
}
