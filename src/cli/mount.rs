//! `mount`, `umount` and `status`: their arguments and `--help`, and what each is to do with the machine.
//!
//! Invariant: what is parsed here is plain data; [`MountPlan`] has all that a server needs to start, as absolute
//! paths, so that the process in the background needs neither the arguments nor the directory of its parent.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use revfs_protocol::{parse_duration, parse_size};

use super::args::JsonArg;

/// Serve a store as a filesystem.
///
/// Shows the newest revision in MNT/head and any other in MNT/@REV. MNT is made if absent, and then removed when
/// the server stops. Returns when the tree answers; the server goes on in the background, until `revfs umount`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
EXAMPLES
  revfs mount /data/store /mnt/store
  revfs mount /data/store /mnt/store --allow-other --cache 4G --log /var/log/revfs.log
  sha256sum /mnt/store/@2026-11-21/bigfile/a.bin")]
pub struct MountArgs {
    /// Directory of the store, or the Data.fs of a ZODB database
    #[arg(value_name = "STORE")]
    pub store: OsString,
    /// Directory to mount at
    #[arg(value_name = "MNT")]
    pub mount_point: PathBuf,
    /// Make the store if there is none
    #[arg(long)]
    pub create: bool,
    /// Stay in the foreground and log to stderr
    #[arg(short, long)]
    pub foreground: bool,
    /// Let other users see the files. Without root this needs user_allow_other in /etc/fuse.conf
    #[arg(long)]
    pub allow_other: bool,
    /// Let no program or library below MNT be executed
    #[arg(long)]
    pub noexec: bool,
    /// Most memory for decoded blocks, as in 1G. The page cache of the kernel comes on top
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "1G")]
    pub cache: u64,
    /// How long a client may take to map a block as it is told; after that it is killed
    #[arg(long, value_name = "TIME", value_parser = parse_pin_timeout, default_value = "30s")]
    pub pin_timeout: Duration,
    /// How far back the server keeps in memory what changed. Older revisions are looked up in the store
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10m")]
    pub keep_history: Duration,
    /// Most memory for which blocks under head were read. Beyond it new watches pin more blocks than they need
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "64M")]
    pub tracking: u64,
    /// Most pins with which a watch begins. Beyond it neighbours become one; what still has more is refused
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), default_value = "1048576")]
    pub pins: u32,
    /// Append messages to this file
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Owner of all files [default: who runs the server]
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,
    /// Group of all files [default: that of who runs the server]
    #[arg(long, value_name = "GID")]
    pub gid: Option<u32>,
    /// Threads that serve the kernel [default: two a processor, 4 to 16; of a ZODB twice as many, to 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// How far ahead of a reader the kernel reads; only root can set it
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "16M")]
    pub read_ahead: u64,
    /// Largest read that the kernel asks for, for measurements
    #[arg(long, value_name = "SIZE", value_parser = parse_size, hide = true)]
    pub max_read: Option<u64>,
    /// Adds this to each read of the store, for measurements
    #[arg(long, value_name = "TIME", value_parser = parse_duration, hide = true)]
    pub fault_read_delay: Option<Duration>,
}

/// Shorter than this a client that does all right could be killed on a busy machine.
const PIN_TIMEOUT_MIN: Duration = Duration::from_millis(100);

fn parse_pin_timeout(text: &str) -> Result<Duration, String> {
    let timeout = parse_duration(text).map_err(|error| error.to_string())?;
    match timeout >= PIN_TIMEOUT_MIN {
        true => Ok(timeout),
        false => Err("a client needs at least 100ms to map a block".to_owned()),
    }
}

/// Stop the server of a mount point and unmount it.
///
/// Programs that use it are named, and get up to 15 s (half of --timeout if that is less) to let go of it. Always
/// ends: what does not stop by itself is stopped more and more firmly until the time is up.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "EXAMPLES\n  revfs umount /mnt/store\n  revfs umount /mnt/store --timeout 5s")]
pub struct UmountArgs {
    /// The mount point
    #[arg(value_name = "MNT")]
    pub mount_point: PathBuf,
    /// How long to wait for it in all
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "30s")]
    pub timeout: Duration,
}

/// Show the revfs servers of this machine.
///
/// With MNT, that one in detail.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "EXAMPLES\n  revfs status\n  revfs status /mnt/store --json")]
pub struct StatusArgs {
    /// A mount point
    #[arg(value_name = "MNT")]
    pub mount_point: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub json: JsonArg,
}

/// What a server is to do, ready to be handed to the process that does it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPlan {
    /// The store; absolute, unless it is a URL.
    pub store: OsString,
    /// Where to mount; absolute.
    pub mount_point: PathBuf,
    /// Make the store if there is none.
    pub create: bool,
    /// Do not go to the background.
    pub foreground: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// Let nothing be executed.
    pub noexec: bool,
    /// Bound of the block cache, bytes.
    pub cache_bytes: u64,
    /// How long a client may owe an ack.
    pub pin_timeout: Duration,
    /// How far back the change index reaches.
    pub keep_history: Duration,
    /// Bound of what is remembered of reads, bytes.
    pub tracking_bytes: u64,
    /// Bound of the pins with which a watch begins.
    pub pins: usize,
    /// Where messages go; absolute.
    pub log: Option<PathBuf>,
    /// Owner of all files.
    pub uid: u32,
    /// Group of all files.
    pub gid: u32,
    /// Threads that serve the kernel, if not as many as suit the store.
    pub threads: Option<usize>,
    /// How far ahead of a reader the kernel reads, bytes.
    pub read_ahead_bytes: u64,
    /// Largest READ, bytes, if it is to be smaller than usual.
    pub max_read_bytes: Option<u32>,
    /// Added to each read of the store.
    pub fault_read_delay: Option<Duration>,
    /// Serve in the way of WCFS.
    pub peer: Option<PeerPlan>,
}

/// What the program `wcfs` was told besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPlan {
    /// URL of the database, as it was given.
    pub zurl: String,
    /// Show what tests of clients look at.
    pub debug: bool,
    /// End when no client uses the mount any more.
    pub auto_exit: bool,
    /// End when a file that is in use has an epoch.
    pub epoch_is_fatal: bool,
}

impl MountPlan {
    /// Makes the paths absolute and fills in who runs this.
    ///
    /// # Errors
    /// The current directory is gone.
    pub fn new(args: &MountArgs) -> io::Result<MountPlan> {
        Ok(MountPlan {
            store: absolute_store(&args.store)?,
            mount_point: std::path::absolute(&args.mount_point)?,
            create: args.create,
            foreground: args.foreground,
            allow_other: args.allow_other,
            noexec: args.noexec,
            cache_bytes: args.cache,
            pin_timeout: args.pin_timeout,
            keep_history: args.keep_history,
            tracking_bytes: args.tracking,
            pins: args.pins as usize,
            log: args.log.as_deref().map(std::path::absolute).transpose()?,
            uid: args.uid.unwrap_or_else(|| rustix::process::getuid().as_raw()),
            gid: args.gid.unwrap_or_else(|| rustix::process::getgid().as_raw()),
            threads: args.threads.map(usize::from),
            read_ahead_bytes: args.read_ahead,
            max_read_bytes: args.max_read.map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX)),
            fault_read_delay: args.fault_read_delay,
            peer: None,
        })
    }

    /// Arguments with which this program starts again in the background, without its own name.
    pub fn background_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["mount".into(), "-f".into()];
        let mut option = |name: &str, value: OsString| args.extend([OsString::from(name), value]);
        option("--cache", self.cache_bytes.to_string().into());
        option("--pin-timeout", revfs_protocol::format_duration(self.pin_timeout).into());
        option("--keep-history", revfs_protocol::format_duration(self.keep_history).into());
        option("--tracking", self.tracking_bytes.to_string().into());
        option("--pins", self.pins.to_string().into());
        option("--uid", self.uid.to_string().into());
        option("--gid", self.gid.to_string().into());
        if let Some(threads) = self.threads {
            option("--threads", threads.to_string().into());
        }
        option("--read-ahead", self.read_ahead_bytes.to_string().into());
        if let Some(bytes) = self.max_read_bytes {
            option("--max-read", bytes.to_string().into());
        }
        if let Some(delay) = self.fault_read_delay {
            option("--fault-read-delay", revfs_protocol::format_duration(delay).into());
        }
        if let Some(log) = &self.log {
            option("--log", log.into());
        }
        let flags =
            [("--create", self.create), ("--allow-other", self.allow_other), ("--noexec", self.noexec)];
        for (name, set) in flags {
            args.extend(set.then(|| OsString::from(name)));
        }
        args.push("--".into());
        args.push(self.store.clone());
        args.push(self.mount_point.clone().into());
        args
    }
}

fn absolute_store(store: &OsStr) -> io::Result<OsString> {
    let is_url = store.as_bytes().windows(3).any(|part| part == b"://") && !Path::new(store).exists();
    match is_url {
        true => Ok(store.to_owned()),
        false => Ok(std::path::absolute(store)?.into_os_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Wrapped {
        #[command(subcommand)]
        command: Each,
    }

    #[derive(clap::Subcommand)]
    enum Each {
        Mount(MountArgs),
        Umount(UmountArgs),
        Status(StatusArgs),
    }

    fn parse(args: &[OsString]) -> Each {
        Wrapped::try_parse_from([&["revfs".into()], args].concat()).unwrap_or_else(|e| panic!("{e}")).command
    }

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn plan(args: &[OsString]) -> MountPlan {
        let Each::Mount(args) = parse(args) else { panic!() };
        MountPlan::new(&args).unwrap()
    }

    #[test]
    fn the_process_in_the_background_gets_the_same_plan() {
        for line in [
            "mount s m",
            "mount s m --create --allow-other --noexec --cache 64M --log l --uid 7 --gid 8 --threads 3 --pin-timeout 3s --keep-history 2h --tracking 5M --pins 77 --fault-read-delay 1m30s",
            "mount --read-ahead 128K --max-read 64K -- -s -m",
        ] {
            let first = plan(&words(line));
            let second = plan(&first.background_args());
            assert_eq!(second, MountPlan { foreground: true, ..first }, "{line}");
        }
    }

    #[test]
    fn paths_are_absolute_and_urls_are_left_alone() {
        let plan = plan(&words("mount s3://bucket/x m"));
        assert_eq!(plan.store, "s3://bucket/x");
        assert!(plan.mount_point.is_absolute());
    }

    #[test]
    fn a_pin_timeout_that_nobody_can_keep_to_is_refused() {
        let refused =
            |line: &str| Wrapped::try_parse_from([&["revfs".into()], &words(line)[..]].concat()).err();
        assert!(refused("mount s m --pin-timeout 100ms").is_none());
        for short in ["0s", "99ms"] {
            let error = refused(&format!("mount s m --pin-timeout {short}")).unwrap().to_string();
            assert!(error.contains("at least 100ms"), "{error}");
        }
    }

    #[test]
    fn what_is_left_out_has_the_documented_value() {
        let Each::Mount(mount) = parse(&words("mount s m")) else { panic!() };
        assert_eq!((mount.cache, mount.threads, mount.foreground), (1 << 30, None, false));
        assert_eq!(mount.read_ahead, 16 << 20);
        let Each::Umount(umount) = parse(&words("umount m --timeout 5s")) else { panic!() };
        assert_eq!(umount.timeout, Duration::from_secs(5));
        assert!(matches!(parse(&words("status")), Each::Status(StatusArgs { mount_point: None, .. })));
    }
}
