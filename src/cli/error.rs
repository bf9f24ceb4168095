//! Why a command failed, and the exit code of each reason.
//!
//! Invariant: each table below is exhaustive, without `_`: a new error of a lower module is given its code here
//! before it compiles.

use std::io;

use crate::ops::LookError;
use crate::ops::cat::CatError;
use crate::ops::commit::{CommitFilesError, SourceError};
use crate::ops::edit::EditError;
use crate::ops::import::ImportError;
use crate::store::ReadError;
use crate::store::native::{CommitError, OpenError};
use crate::view::ResolveError;

use super::exit::ExitCode;
use super::fstab::HelperError;
use super::serve::ServeError;
use super::watch::WatchError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The store cannot be made or opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// STORE is of a kind that is not served.
    #[error(
        "{store}: is {kind}, which this version of revfs does not serve yet: name a directory made by `revfs init`"
    )]
    Unserved {
        /// As given.
        store: String,
        /// What it is.
        kind: String,
    },
    /// STORE is written by something else.
    #[error(
        "{store}: is a ZODB database, which is written through ZODB, and revfs reads it only: commit with ZODB, or copy it into a store with `revfs import`"
    )]
    WrittenElsewhere {
        /// As given.
        store: String,
    },
    /// STORE is none that the program `wcfs` serves.
    #[error(
        "{store}: is no ZODB database, which is all that wcfs serves: give the URL of one, as in file:///data/1.fs; a store of revfs is mounted by `revfs mount`"
    )]
    NotADatabase {
        /// As given.
        store: String,
    },
    /// STORE is a file that is no store.
    #[error(
        "{store}: is a file, and not a store: name a directory made by `revfs init`, or the Data.fs of a ZODB"
    )]
    NotAStore {
        /// As given.
        store: String,
    },
    /// A revision means nothing.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Something cannot be shown.
    #[error(transparent)]
    Look(#[from] LookError),
    /// Bytes cannot be copied out.
    #[error(transparent)]
    Cat(#[from] CatError),
    /// Files were not committed.
    #[error(transparent)]
    CommitFiles(#[from] CommitFilesError),
    /// A history was not imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// No such file to import.
    #[error(
        "{name}: is no ZBigFile of {store}, and no keys of its root lead to one: `revfs ls {store}` lists those there are"
    )]
    NoSuchSource {
        /// As given.
        name: String,
        /// The database.
        store: String,
    },
    /// Something that is no database is to be imported.
    #[error(
        "{store}: is no ZODB database: name the Data.fs of one; a store of revfs is copied as a directory, with `cp -a`"
    )]
    NotImportable {
        /// As given.
        store: String,
    },
    /// Names were not changed.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// The store could not be checked.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Stdout cannot be written.
    #[error("stdout: cannot be written: {source}: check what it is redirected to")]
    Stdout {
        /// Why.
        source: io::Error,
    },
    /// A store is not served, or its server not stopped.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A file of a mount cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The arguments of mount(8) mean nothing.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// The runtime cannot be started.
    #[error("no thread can be started: {source}: raise the limit of processes (ulimit -u)")]
    Runtime {
        /// Why.
        source: io::Error,
    },
}

impl CliError {
    /// Whether the reader of stdout went away, which is no error.
    pub fn is_closed_pipe(&self) -> bool {
        match self {
            CliError::Stdout { source } | CliError::Cat(CatError::Write { source, .. }) => {
                source.kind() == io::ErrorKind::BrokenPipe
            }
            _ => false,
        }
    }

    /// The code that the command exits with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            CliError::Open(error) => of_open(error),
            CliError::Unserved { .. }
            | CliError::NotAStore { .. }
            | CliError::NotADatabase { .. }
            | CliError::NotImportable { .. }
            | CliError::WrittenElsewhere { .. } => ExitCode::NotAStore,
            CliError::Import(error) => of_import(error),
            CliError::NoSuchSource { .. } => ExitCode::NotFound,
            CliError::Resolve(error) => of_resolve(error),
            CliError::Look(error) | CliError::Cat(CatError::Look(error)) => of_look(error),
            CliError::Cat(CatError::Write { source, .. }) | CliError::Stdout { source } => of_io(source),
            CliError::CommitFiles(error) => of_commit_files(error),
            CliError::Edit(error) => of_edit(error),
            CliError::Read(error) => of_read(error),
            CliError::Serve(error) => error.exit_code(),
            CliError::Watch(error) => error.exit_code(),
            CliError::Helper(_) => ExitCode::Usage,
            CliError::Runtime { .. } => ExitCode::Failure,
        }
    }
}

fn of_io(error: &io::Error) -> ExitCode {
    match error.kind() {
        io::ErrorKind::NotFound => ExitCode::NotFound,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ExitCode::DiskFull,
        _ => ExitCode::Failure,
    }
}

fn of_open(error: &OpenError) -> ExitCode {
    match error {
        OpenError::NotFound { .. } => ExitCode::NotFound,
        OpenError::NotADirectory { .. } | OpenError::NotAStore { .. } => ExitCode::NotAStore,
        OpenError::NotEmpty { .. } | OpenError::AlreadyAStore { .. } => ExitCode::Exists,
        OpenError::Format { source, .. } => match source {
            crate::store::native::FormatError::Damaged { .. } => ExitCode::Damaged,
            crate::store::native::FormatError::Version { .. }
            | crate::store::native::FormatError::NotAStore { .. } => ExitCode::NotAStore,
        },
        OpenError::Io { source, .. } => match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ExitCode::ReadOnly,
            _ => of_io(source),
        },
        OpenError::Index { .. } | OpenError::Object { .. } => ExitCode::Failure,
        OpenError::Log { source, .. } => of_read(source),
    }
}

fn of_resolve(error: &ResolveError) -> ExitCode {
    match error {
        ResolveError::Malformed(_) => ExitCode::Usage,
        ResolveError::NoSuchTag { .. } | ResolveError::InFuture { .. } | ResolveError::AheadOfHead { .. } => {
            ExitCode::NotFound
        }
        ResolveError::Read(error) => of_read(error),
    }
}

fn of_read(error: &ReadError) -> ExitCode {
    match error {
        ReadError::AheadOfHead { .. } | ReadError::NoSuchFile { .. } => ExitCode::NotFound,
        ReadError::Damaged { .. } | ReadError::Missing { .. } => ExitCode::Damaged,
        ReadError::Io { .. } | ReadError::Object { .. } | ReadError::Index { .. } => ExitCode::Failure,
        ReadError::Database(error) if error.is_packed() => ExitCode::NotFound,
        ReadError::Database(error) if error.is_damage() => ExitCode::Damaged,
        ReadError::Database(_) => ExitCode::Failure,
    }
}

fn of_look(error: &LookError) -> ExitCode {
    match error {
        LookError::NotFound { .. } | LookError::NeverExisted { .. } => ExitCode::NotFound,
        LookError::IsDirectory { .. } => ExitCode::Failure,
        LookError::Read(error) => of_read(error),
        LookError::Measure { source, .. } => of_io(source),
    }
}

fn of_commit(error: &CommitError) -> ExitCode {
    match error {
        CommitError::Conflict { .. } | CommitError::CopyTooLate { .. } => ExitCode::Conflict,
        CommitError::Name(_) => ExitCode::Usage,
        CommitError::Exists { .. } | CommitError::IsDirectory { .. } | CommitError::NotADirectory { .. } => {
            ExitCode::Exists
        }
        CommitError::Read(error) => of_read(error),
        CommitError::ReadOnly { .. } => ExitCode::ReadOnly,
        CommitError::DiskFull { .. } => ExitCode::DiskFull,
        CommitError::Unknown { .. } => ExitCode::Unknown,
        CommitError::Broken(_) => ExitCode::Damaged,
        CommitError::FileTooLarge { .. }
        | CommitError::BadRange { .. }
        | CommitError::Index(_)
        | CommitError::Object(_)
        | CommitError::TooOld
        | CommitError::Unreadable { .. }
        | CommitError::RecordTooLarge { .. } => ExitCode::Failure,
    }
}

fn of_commit_files(error: &CommitFilesError) -> ExitCode {
    match error {
        CommitFilesError::Source(SourceError::ChangedWhileRead { .. }) => ExitCode::Changed,
        CommitFilesError::Source(SourceError::NotAFile { .. }) => ExitCode::Usage,
        CommitFilesError::Source(SourceError::Open { source, .. } | SourceError::Read { source, .. }) => {
            of_io(source)
        }
        CommitFilesError::NameTwice { .. }
        | CommitFilesError::StdinTwice
        | CommitFilesError::BlockSize { .. } => ExitCode::Usage,
        CommitFilesError::TagExists { .. } => ExitCode::Exists,
        CommitFilesError::Commit(error) => of_commit(error),
        CommitFilesError::Thread { .. } | CommitFilesError::Internal { .. } => ExitCode::Failure,
    }
}

fn of_import(error: &ImportError) -> ExitCode {
    match error {
        ImportError::Name(_) | ImportError::NameTwice { .. } | ImportError::NotChosen { .. } => {
            ExitCode::Usage
        }
        ImportError::NotOurs { .. } | ImportError::NotABeginning { .. } => ExitCode::Conflict,
        ImportError::Differs { .. } => ExitCode::Damaged,
        ImportError::Source { error, .. } => of_read(error),
        ImportError::Read(error) => of_read(error),
        ImportError::Commit(error) => of_commit(error),
    }
}

fn of_edit(error: &EditError) -> ExitCode {
    match error {
        EditError::NotFound { .. } | EditError::NoSuchTag { .. } => ExitCode::NotFound,
        EditError::IsDirectory { .. } => ExitCode::Failure,
        EditError::SameName { .. } | EditError::BelowItself { .. } => ExitCode::Usage,
        EditError::Exists { .. } | EditError::TagExists { .. } => ExitCode::Exists,
        EditError::Commit(error) => of_commit(error),
    }
}
