//! The arguments of each command, and `--help`.
//!
//! Invariant: what is accepted here is well-formed: names, tags, sizes, ranges and revisions are checked while
//! they are parsed, so wrong ones are a usage error before anything is opened. Names are bytes, not text.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use revfs_protocol::{BlockSize, ByteRange, RevSpec, TagName, parse_range};

use crate::ops::commit::{CommitFile, Source};
use crate::store::check_path;
use crate::store::native::FORMAT_VERSION;

use super::exit::ExitCode;
use super::import::ImportArgs;
use super::mount::{MountArgs, StatusArgs, UmountArgs};
use super::watch::WatchArgs;

static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (store format {FORMAT_VERSION})", env!("CARGO_PKG_VERSION")));
static EXIT_STATUS: LazyLock<String> = LazyLock::new(ExitCode::help);
static AFTER_HELP: LazyLock<String> =
    LazyLock::new(|| format!("{REVISIONS}\n{OUTPUT}\n{EXAMPLES}\n{}", *EXIT_STATUS));

const REVISIONS: &str = "\
REVISIONS
  Wherever a revision (REV) is asked for, with or without a leading @:
    head                   the newest revision
    03f2a4c81be00000       a transaction id, 16 hex digits: that very state
    2026-11-21             the newest commit of that day; also 2026-11, 2026-11-21T10:15, ...T10:15:30.5Z (UTC)
    -5min  -2h30m          the newest commit so long ago (units s m h d w)
    release-1              a tag
";
const OUTPUT: &str = "\
OUTPUT
  Data goes to stdout, all else to stderr. With --json each line of stdout is one JSON object; sizes are bytes,
  `tid` and `file` 16 hex digits, times UTC; a name that is not UTF-8 has its bytes in `name_hex` too.
";
const EXAMPLES: &str = "\
EXAMPLES
  revfs init /data/store
  revfs commit /data/store prices.bin=/tmp/prices.bin -m 'first import'
  revfs ls /data/store
  revfs diff /data/store -1d head
  revfs cat /data/store prices.bin --at 2026-11-21 -o prices-then.bin
";

/// Keep every committed revision of big files, and read any of them.
///
/// A store is a directory that revfs owns. Each commit changes any number of files at once, atomically; only
/// blocks that differ take room. Several programs may read and commit at the same time.
#[derive(Debug, Parser)]
#[command(name = "revfs", version = VERSION.as_str(), after_long_help = AFTER_HELP.as_str(), after_help = EXIT_HINT)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_HINT: &str =
    "`revfs --help` explains revisions and lists the exit codes; `revfs COMMAND --help` all options.";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new, empty store
    Init(InitArgs),
    /// Commit files, all at once or none
    Commit(CommitArgs),
    /// Copy the history of files of a ZODB database into a store
    Import(ImportArgs),
    /// Rename a file or directory of a store
    Mv(MvArgs),
    /// Remove files from the newest revision
    Rm(RmArgs),
    /// Give a revision a name, or move or delete one
    Tag(TagArgs),
    /// List commits, newest first
    Log(LogArgs),
    /// List tags
    Tags(TagsArgs),
    /// Show the room that files take
    Du(DuArgs),
    /// List the files of a revision
    Ls(LsArgs),
    /// Write the bytes of a file as of a revision
    Cat(CatArgs),
    /// Show which files and bytes differ between two revisions
    Diff(DiffArgs),
    /// Check that a store is whole
    Verify(VerifyArgs),
    /// Serve a store as a filesystem
    Mount(MountArgs),
    /// Stop the server of a mount point and unmount it
    Umount(UmountArgs),
    /// Show the revfs servers of this machine
    Status(StatusArgs),
    #[allow(missing_docs)]
    Watch(WatchArgs),
    /// Write completions for a shell to stdout
    Completions(CompletionsArgs),
}

/// `--json`.
#[derive(Args, Clone, Copy, Debug)]
pub struct JsonArg {
    /// Print one JSON object a line instead of text
    #[arg(long)]
    pub json: bool,
}

/// What is said of a commit.
#[derive(Args, Clone, Debug)]
pub struct NoteArgs {
    /// Say why, for `revfs log`
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub message: String,
    /// Say who, for `revfs log` [default: $REVFS_AUTHOR, or the name of the user]
    #[arg(long, value_name = "TEXT")]
    pub author: Option<String>,
}

/// Make a new, empty store.
///
/// The directory is made if absent; one that is not empty is refused and not touched.
#[derive(Args, Debug)]
#[command(
    after_long_help = "EXAMPLES\n  revfs init /data/store\n  revfs init /data/small --block-size 64K --compress zstd"
)]
pub struct InitArgs {
    /// Directory of the store
    #[arg(value_name = "STORE")]
    pub store: OsString,
    /// Block size of new files: a power of two from 4K to 16M. A block is the smallest change that is stored
    #[arg(long, value_name = "SIZE", default_value = "2M")]
    pub block_size: BlockSize,
    /// How blocks are stored. Raw ones (none) are read fastest, and can be mapped as they are
    #[arg(long, value_name = "HOW", default_value = "none")]
    pub compress: Compress,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub json: JsonArg,
    /// Do not wait for the disk: for fixtures that can be made again
    #[arg(long, hide = true)]
    pub no_sync: bool,
}

/// How blocks are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Compress {
    /// As they are.
    None,
    /// One zstd frame a block.
    Zstd,
}

/// Commit files, all at once or none.
///
/// Each NAME in the store gets the bytes of PATH; `-` is the standard input. Only blocks that differ from the
/// newest revision are stored, and holes stay holes. If nothing differs there is no commit. The transaction id
/// of the commit, or of the unchanged head, is printed to stdout, and nothing else.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLES
  revfs commit STORE a.bin=/tmp/a.bin dir/b.bin=/tmp/b.bin -m 'both at once'
  pg_dump db | revfs commit STORE dump.sql=- --tag nightly-7
  tid=$(revfs log STORE --limit 1 --json | jq -r .tid)
  revfs commit STORE state.bin=new.bin --base $tid     # fails if state.bin changed after $tid")]
pub struct CommitArgs {
    /// Directory of the store
    #[arg(value_name = "STORE")]
    pub store: OsString,
    /// Name in the store, and the file to read; split at the first `=`. PATH `-` is the standard input
    #[arg(value_name = "NAME=PATH", required = true, value_parser = OsStringValueParser::new().try_map(commit_file))]
    pub files: Vec<CommitFile>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub note: NoteArgs,
    /// Revision that the new bytes were made from: if a file changed after it, the commit is a conflict.
    /// By default head as the commit starts
    #[arg(long, value_name = "REV", allow_hyphen_values = true)]
    pub base: Option<RevSpec>,
    /// Conflict only if the same blocks were changed; changes of different blocks of a file land together.
    /// For files that are written in place, as arrays are; merging versions of a database or an archive by
    /// blocks gives garbage
    #[arg(long)]
    pub merge: bool,
    /// Give the new commit this tag, which must be new
    #[arg(long, value_name = "TAG")]
    pub tag: Option<TagName>,
    /// Block size of files that are new to the store: a power of two from 4K to 16M [default: the store's]
    #[arg(long, value_name = "SIZE")]
    pub block_size: Option<BlockSize>,
    /// Make a commit even if nothing differs
    #[arg(long)]
    pub allow_empty: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub json: JsonArg,
}

/// Rename a file or directory of a store.
///
/// All files below a directory are renamed in one commit. They keep their identity and history. NEW is the full
/// new name, and must be free. The transaction id of the commit is printed.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLES\n  revfs mv STORE a.bin old/a.bin\n  revfs mv STORE 2025 archive/2025")]
pub struct MvArgs {
    /// Directory of the store
    #[arg(value_name = "STORE")]
    pub store: OsString,
    /// Name of the file or directory
    #[arg(value_name = "OLD", value_parser = OsStringValueParser::new().try_map(name))]
    pub old: Name,
    /// Its new name
    #[arg(value_name = "NEW", value_parser = OsStringValueParser::new().try_map(name))]
    pub new: Name,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub note: NoteArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub json: JsonArg,
}

/// Remove files from the newest revision.
///
/// All in one commit, whose transaction id is printed. Earlier revisions keep them.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLES\n  revfs rm STORE a.bin b.bin\n  revfs rm -r STORE 2024")]
pub struct RmArgs {
    /// Remove directories too, with all files below them
    #[arg(short, long)]
    pub recursive: bool,
    /// Directory of the store
    #[arg(value_name = "STORE")]
    pub store: OsString,
    /// Names of files, or with -r of directories
    #[arg(value_name = "NAME", required = true, value_parser = OsStringValueParser::new().try_map(name))]
    pub names: Vec<Name>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub note: NoteArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub json: JsonArg,
}

/// Give a revision a name, or move or delete one.
///
/// Tags are part of the history: setting one is a commit, whose transaction id is printed. A tag has 1 to 128 of
/// A-Z a-z 0-9 . _ - and looks like no transaction id, time or span.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLES
  revfs tag STORE release-1
  revfs tag STORE latest-good 2026-11-20 --force
  revfs tag STORE release-1 --delete")]
pub struct TagArgs {
    /// Directory of the store
    #[arg(value_name = "STORE")]
    pub store: OsString,
    /// The tag
    #[arg(value_name = "TAG")]
    pub tag: TagName,
    /// What it shall mean
    #[arg(value_name = "REV", default_value = "head", allow_hyphen_values = true)]
    pub rev: RevSpec,
    /// Move the tag if it means something else now
    #[arg(long)]
    pub force: bool,
    /// Delete the tag
    #[arg(long, conflicts_with_all = ["force", "rev"])]
    pub delete: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub note: NoteArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub json: JsonArg,
}

/// List commits, newest first.
///
/// With NAME, those that touched that file, or a file below that directory; a file is followed through renames.
/// --json shows all of each commit record.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLES
  revfs log STORE --limit 10
  revfs log STORE a.bin --since -7d
  revfs log STORE --json | jq -r 'select(.author == \"etl\") | .tid'")]
pub struct LogArgs {
    /// Directory of the store, or the Data.fs of a ZODB database
    #[arg(value_name = "STORE")]
    pub store: OsString,
    /// A file or directory
    #[arg(value_name = "NAME", value_parser = OsStringValueParser::new().try_map(name))]
    pub name: Option<Name>,
    /// Show at most so many commits
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Show commits after this revision only
    #[arg(long, value_name = "REV", allow_hyphen_values = true)]
    pub since: Option<RevSpec>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub json: JsonArg,
}

/// List tags.
#[derive(Args, Debug)]
pub struct TagsArgs {
    /// Directory of the store, or the Data.fs of a ZODB database
    #[arg(value_name = "STORE")]
    pub store: OsString,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub json: JsonArg,
}

/// Show the room that files take.
///
/// SIZE is what a reader sees, STORED what is kept for it without holes and zero tails, both in the newest
/// revision. Without NAME also what the store takes on its disk, with all revisions.
#[derive(Args, Debug)]
pub struct DuArgs {
    /// Directory of the store, or the Data.fs of a ZODB database
    #[arg(value_name = "STORE")]
    pub store: OsString,
    /// A file, or a directory for all files below it
    #[arg(value_name = "NAME", value_parser = OsStringValueParser::new().try_map(name))]
    pub name: Option<Name>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub json: JsonArg,
}

/// List the files of a revision.
#[derive(Args, Debug)]
#[command(
    after_long_help = "EXAMPLES\n  revfs ls STORE\n  revfs ls STORE 2026-11-21\n  revfs ls STORE -2h --json"
)]
pub struct LsArgs {
    /// Directory of the store, or the Data.fs of a ZODB database
    #[arg(value_name = "STORE")]
    pub store: OsString,
    /// The revision
    #[arg(value_name = "REV", default_value = "head", allow_hyphen_values = true)]
    pub rev: RevSpec,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub json: JsonArg,
}

/// Write the bytes of a file as of a revision.
///
/// To stdout, or with -o to a file, which appears whole or not at all and keeps holes.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLES
  revfs cat STORE a.bin > a.bin
  revfs cat STORE a.bin --at release-1 -o a-then.bin
  revfs cat STORE a.bin --range 1M..2M | xxd")]
pub struct CatArgs {
    /// Directory of the store, or the Data.fs of a ZODB database
    #[arg(value_name = "STORE")]
    pub store: OsString,
    /// The file
    #[arg(value_name = "NAME", value_parser = OsStringValueParser::new().try_map(name))]
    pub name: Name,
    /// The revision
    #[arg(long, value_name = "REV", default_value = "head", allow_hyphen_values = true)]
    pub at: RevSpec,
    /// Only bytes A to B, B excluded; either may be left out, and what is beyond the end is not there.
    /// Units K M G T are powers of 1024
    #[arg(long, value_name = "A..B", value_parser = parse_range, default_value = "..", hide_default_value = true)]
    pub range: ByteRange,
    /// Write to this file, atomically
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Show which files and bytes differ between two revisions.
///
/// Ranges are bytes of the second revision, the end excluded. What is not shown is equal; the unit is the block,
/// so a range may contain equal bytes. If a file shrank, what was cut off is shown too, in bytes of the first
/// revision. Differences do not change the exit code.
#[derive(Args, Debug)]
#[command(
    after_long_help = "EXAMPLES\n  revfs diff STORE -1d head\n  revfs diff STORE release-1 release-2 --json"
)]
pub struct DiffArgs {
    /// Directory of the store, or the Data.fs of a ZODB database
    #[arg(value_name = "STORE")]
    pub store: OsString,
    /// The first revision
    #[arg(value_name = "REV1", allow_hyphen_values = true)]
    pub rev1: RevSpec,
    /// The second revision
    #[arg(value_name = "REV2", allow_hyphen_values = true)]
    pub rev2: RevSpec,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub json: JsonArg,
}

/// Check that a store is whole.
///
/// Reads the commit log and every pack, checks each checksum and reference, and lists what nothing refers to.
/// Exits with 7 if data is damaged.
#[derive(Args, Debug)]
#[command(
    after_long_help = "EXAMPLES\n  revfs verify STORE\n  revfs verify STORE --quick\n  revfs verify STORE --sample 5%"
)]
pub struct VerifyArgs {
    /// Directory of the store, or the Data.fs of a ZODB database
    #[arg(value_name = "STORE")]
    pub store: OsString,
    /// Check records and references only, no bytes of blocks
    #[arg(long)]
    pub quick: bool,
    /// Read only so many per cent of the packs
    #[arg(long, value_name = "N%", value_parser = percent, default_value = "100%", conflicts_with = "quick")]
    pub sample: f64,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub json: JsonArg,
}

/// Write completions for a shell to stdout.
#[derive(Args, Debug)]
#[command(
    after_long_help = "EXAMPLES\n  revfs completions bash > ~/.local/share/bash-completion/completions/revfs"
)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// A name in a store, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(pub Vec<u8>);

/// Why an argument is refused.
pub(super) type Refused = Box<dyn std::error::Error + Send + Sync>;

fn name(text: OsString) -> Result<Name, Refused> {
    let bytes = text.into_vec();
    check_path(&bytes)?;
    Ok(Name(bytes))
}

fn commit_file(text: OsString) -> Result<CommitFile, Refused> {
    let bytes = text.as_bytes();
    let Some(at) = bytes.iter().position(|byte| *byte == b'=') else {
        return Err(
            "it has no '=': give the name in the store and the file to read, as in data.bin=/tmp/data.bin"
                .into(),
        );
    };
    let (name, path) = (&bytes[..at], &bytes[at + 1..]);
    check_path(name)?;
    let source = match path {
        b"" => return Err("there is no path after '=': name the file to read, or - for stdin".into()),
        b"-" => Source::Stdin,
        path => Source::Path(PathBuf::from(OsStr::from_bytes(path))),
    };
    Ok(CommitFile { name: name.to_vec(), source })
}

fn percent(text: &str) -> Result<f64, Refused> {
    match text.strip_suffix('%').unwrap_or(text).parse() {
        Ok(number) if number > 0.0 && number <= 100.0 => Ok(number),
        _ => Err("give a number over 0 and up to 100, as in 5%".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Result<Command, clap::Error> {
        Cli::try_parse_from([&["revfs"], args].concat()).map(|cli| cli.command)
    }

    fn refused(args: &[&str]) -> String {
        let error = parse(args).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        error.to_string()
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_commit_splits_at_the_first_equals_sign() {
        let Ok(Command::Commit(args)) = parse(&["commit", "s", "a/b=x=y", "c=-"]) else { panic!() };
        let file = |name: &[u8], source| CommitFile { name: name.to_vec(), source };
        assert_eq!(args.files, [file(b"a/b", Source::Path("x=y".into())), file(b"c", Source::Stdin)]);
        assert!(refused(&["commit", "s", "a"]).contains("it has no '='"));
        assert!(refused(&["commit", "s", "=x"]).contains("at least one byte"));
        assert!(refused(&["commit", "s", "a="]).contains("no path after"));
        assert!(refused(&["commit", "s", "../a=x"]).contains("no component is '.' or '..'"));
        assert!(refused(&["commit", "s"]).contains("NAME=PATH"));
    }

    #[test]
    fn names_need_not_be_utf8() {
        let raw = OsString::from_vec(b"a\xff=b\xfe".to_vec());
        let args = ["revfs".into(), "commit".into(), "s".into(), raw];
        let Command::Commit(args) = Cli::try_parse_from(args).unwrap().command else { panic!() };
        let path = PathBuf::from(OsString::from_vec(b"b\xfe".to_vec()));
        assert_eq!(args.files, [CommitFile { name: b"a\xff".to_vec(), source: Source::Path(path) }]);
    }

    #[test]
    fn a_revision_may_start_with_a_hyphen_and_options_are_still_options() {
        let span = RevSpec::Span { ns: 300_000_000_000 };
        for rev in ["-5min", "@-5min"] {
            let Ok(Command::Ls(args)) = parse(&["ls", "s", rev, "--json"]) else { panic!("{rev}") };
            assert_eq!((args.rev, args.json.json), (span.clone(), true));
            let Ok(Command::Cat(args)) = parse(&["cat", "s", "n", "--at", rev, "-o", "f"]) else { panic!() };
            assert_eq!((args.at, args.output), (span.clone(), Some("f".into())));
            let Ok(Command::Diff(args)) = parse(&["diff", "s", rev, "head"]) else { panic!() };
            assert_eq!((args.rev1, args.rev2), (span.clone(), RevSpec::Head));
        }
        let Ok(Command::Ls(args)) = parse(&["ls", "s", "--json"]) else { panic!() };
        assert_eq!((args.rev, args.json.json), (RevSpec::Head, true));
        assert!(refused(&["ls", "s", "2026-13"]).contains("is not a time"));
    }

    #[test]
    fn what_excludes_each_other_is_refused() {
        refused(&["tag", "s", "t", "--force", "--delete"]);
        refused(&["tag", "s", "t", "head", "--delete"]);
        assert!(matches!(
            parse(&["tag", "s", "t", "--delete"]),
            Ok(Command::Tag(TagArgs { delete: true, .. }))
        ));
        assert!(refused(&["tag", "s", "2026"]).contains("looks like a time"));
        refused(&["verify", "s", "--quick", "--sample", "5%"]);
        for sample in ["0%", "101", "x", "NaN", "-1"] {
            refused(&["verify", "s", &format!("--sample={sample}")]);
        }
    }

    #[test]
    fn sizes_and_ranges_are_checked() {
        assert!(refused(&["init", "s", "--block-size", "3M"]).contains("power of two"));
        assert!(refused(&["cat", "s", "n", "--range", "5..1"]).contains("ends before it starts"));
        let Ok(Command::Cat(args)) = parse(&["cat", "s", "n", "--range", "4K..1M"]) else { panic!() };
        assert_eq!(args.range, ByteRange { start: 4096, end: Some(1 << 20) });
        refused(&["log", "s", "--limit", "0"]);
    }

    #[test]
    fn help_lists_exit_codes_and_each_option_is_explained() {
        let help = Cli::command().render_long_help().to_string();
        assert!(
            help.contains("EXIT STATUS")
                && help.contains("EXAMPLES")
                && help.contains("\n   4  another commit")
        );
        for command in Cli::command().get_subcommands() {
            for arg in command.get_arguments().filter(|arg| arg.get_id() != "help") {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
        }
    }

    #[test]
    fn version_names_program_and_format() {
        let version = Cli::try_parse_from(["revfs", "--version"]).unwrap_err().to_string();
        assert_eq!(version, format!("revfs {} (store format {FORMAT_VERSION})\n", env!("CARGO_PKG_VERSION")));
    }
}
