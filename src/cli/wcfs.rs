//! The command line of the program `wcfs`, which takes the place of the server of that name: `wcfs [options] ZURL MNTPT`.
//!
//! Invariant: whoever starts that server with its options starts this one with the same. Options have the form of Go's
//! package `flag`: one or two dashes, a value after `=` or as the next argument, switches without a value, and they
//! end at the first argument that is none. Left out on purpose: going to the background; clients wait for the tree.

mod flags;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::host::process::Process;

use self::flags::{Flag, FlagError, Kind, Parsed};
use super::mount::{MountPlan, PeerPlan};
use super::{ExitCode, finish, logger, output, serve};

/// Memory for decoded objects unless told otherwise, bytes.
const CACHE_BYTES_DEFAULT: u64 = 1 << 30;
/// Memory for which blocks were read, bytes.
const TRACKING_BYTES: u64 = 64 << 20;

/// What the program takes. The last words of each line say what `-help` says.
const FLAGS: &[Flag] = &[
    Flag { name: "autoexit", kind: Kind::Switch, help: "exit when no client uses the mount any more" },
    Flag { name: "debug", kind: Kind::Switch, help: "show .wcfs/debug/" },
    Flag {
        name: "pintimeout",
        kind: Kind::Duration,
        help: "how long a client may take to pin a block (default 30s)",
    },
    Flag { name: "trace.fuse", kind: Kind::Switch, help: "taken, without effect: use strace" },
    Flag {
        name: "keep-history",
        kind: Kind::Duration,
        help: "how far before its start clients may work (default 0s: from the start on)",
    },
    Flag { name: "cache", kind: Kind::Size, help: "most memory for decoded objects (default 1G)" },
    Flag {
        name: "epoch-fatal",
        kind: Kind::Switch,
        help: "end the service when a file that is in use is deleted, created anew or gets other blocks (default true)",
    },
    Flag { name: "logtostderr", kind: Kind::Switch, help: "log to stderr; so it is by default" },
    Flag { name: "alsologtostderr", kind: Kind::Switch, help: "log to stderr too" },
    Flag { name: "log_dir", kind: Kind::Text, help: "log to a file in this directory instead of stderr" },
    Flag { name: "stderrthreshold", kind: Kind::Text, help: "taken, without effect" },
    Flag { name: "v", kind: Kind::Text, help: "taken, without effect" },
    Flag { name: "vmodule", kind: Kind::Text, help: "taken, without effect" },
    Flag { name: "log_backtrace_at", kind: Kind::Text, help: "taken, without effect" },
];

/// Runs the program; the first of `args` is its name.
pub fn main(args: impl Iterator<Item = OsString>) -> std::process::ExitCode {
    logger::install();
    let args: Vec<OsString> = args.skip(1).collect();
    let plan = match plan(&args) {
        Ok(Some(plan)) => plan,
        Ok(None) => {
            output::say(&usage());
            return ExitCode::Ok.into();
        }
        Err(error) => {
            output::say(&format!("{error}\n{}", usage()));
            return ExitCode::Usage.into();
        }
    };
    finish(serve::mount(&plan)).into()
}

fn usage() -> String {
    let mut text = "Usage: wcfs [options] ZURL MNTPT\n\nServes the files of the ZODB at ZURL (file://, zeo://) at MNTPT, \
                    for clients of wendelin.core.\n\nOptions:"
        .to_owned();
    for flag in FLAGS {
        text.push_str(&format!("\n  -{}{}\n    \t{}", flag.name, flag.kind.value_name(), flag.help));
    }
    text
}

/// What the arguments ask for; `None`: for help.
fn plan(args: &[OsString]) -> Result<Option<MountPlan>, FlagError> {
    let Some(Parsed { values, rest }) = flags::parse(FLAGS, args)? else { return Ok(None) };
    let [zurl, mount_point] = rest.as_slice() else {
        return Err(FlagError::Arguments { count: rest.len() });
    };
    let zurl = zurl.to_str().ok_or(FlagError::NotText { argument: zurl.clone() })?.to_owned();
    let mount_point = PathBuf::from(mount_point);
    let failed = |source| FlagError::Path { path: mount_point.clone(), source };
    let switch = |name: &str, default: bool| values.switch(name).unwrap_or(default);
    let log = values.text("log_dir").filter(|_| !switch("logtostderr", false)).map(log_file);
    Ok(Some(MountPlan {
        store: OsString::from(&zurl),
        mount_point: std::path::absolute(&mount_point).map_err(failed)?,
        create: false,
        foreground: true,
        allow_other: false,
        noexec: false,
        cache_bytes: values.size("cache").unwrap_or(CACHE_BYTES_DEFAULT),
        pin_timeout: values.duration("pintimeout").unwrap_or(crate::server::PIN_TIMEOUT_DEFAULT),
        keep_history: values.duration("keep-history").unwrap_or(Duration::ZERO),
        tracking_bytes: TRACKING_BYTES,
        pins: crate::server::PINS_MAX_DEFAULT,
        log,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        threads: None,
        // As the kernel does by itself: clients count on it that no block is read for which nobody asked.
        read_ahead_bytes: 0,
        max_read_bytes: None,
        fault_read_delay: None,
        peer: Some(PeerPlan {
            zurl,
            debug: switch("debug", false),
            auto_exit: switch("autoexit", false),
            epoch_is_fatal: switch("epoch-fatal", true),
        }),
    }))
}

/// The log of this process in a directory.
fn log_file(dir: &str) -> PathBuf {
    let pid = Process::current().map_or(0, |process| process.pid());
    PathBuf::from(dir).join(format!("wcfs.{pid}.log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn planned(line: &str) -> MountPlan {
        plan(&words(line)).unwrap().unwrap()
    }

    #[test]
    fn what_clients_start_is_understood() {
        let plan = planned(
            "-pintimeout 3.0s -debug -logtostderr -autoexit file:///d/1.fs /dev/shm/wcfs/0123456789abcdef",
        );
        assert_eq!((plan.pin_timeout, plan.keep_history), (Duration::from_secs(3), Duration::ZERO));
        assert_eq!(plan.mount_point, PathBuf::from("/dev/shm/wcfs/0123456789abcdef"));
        let peer = plan.peer.unwrap();
        assert_eq!((peer.debug, peer.auto_exit, peer.epoch_is_fatal), (true, true, true));
        assert_eq!((peer.zurl.as_str(), plan.store), ("file:///d/1.fs", OsString::from("file:///d/1.fs")));
        assert!(plan.foreground && plan.log.is_none() && !plan.allow_other);
    }

    #[test]
    fn options_have_the_forms_of_go() {
        let plan = planned("--pintimeout=500ms -debug=false -epoch-fatal=0 -v=2 -log_dir /l -cache 64M z m");
        let peer = plan.peer.clone().unwrap();
        assert_eq!((peer.debug, peer.auto_exit, peer.epoch_is_fatal), (false, false, false));
        assert_eq!((plan.pin_timeout, plan.cache_bytes), (Duration::from_millis(500), 64 << 20));
        assert!(plan.log.unwrap().starts_with("/l"));
        assert_eq!(planned("-- -z -m").store, OsString::from("-z"));
    }

    #[test]
    fn help_is_no_error_and_all_else_says_what_is_wrong() {
        assert_eq!(plan(&words("-help")).unwrap(), None);
        for (line, says) in [
            ("z", "1"),
            ("z m x", "3"),
            ("-nope z m", "-nope"),
            ("-pintimeout 3 z m", "pintimeout"),
            ("-debug=maybe z m", "debug"),
            ("-pintimeout", "needs a value"),
            ("z -debug m", "3"),
        ] {
            let error = plan(&words(line)).unwrap_err().to_string();
            assert!(error.contains(says), "{line}: {error}");
        }
        assert!(FLAGS.iter().all(|flag| usage().contains(&format!("\n  -{}", flag.name))));
    }

    #[test]
    fn the_readme_has_each_option() {
        let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"));
        for flag in FLAGS {
            assert!(readme.contains(&format!("`-{}`", flag.name)), "-{} is not in README.md", flag.name);
        }
    }
}
