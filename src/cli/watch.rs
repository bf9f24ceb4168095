//! `watch`: shows which blocks a client that works at a revision would be told to map elsewhere, as they come.
//!
//! Invariant: it maps nothing, so each pin is acked as soon as it is read and printed; it holds nobody up.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use revfs_protocol::{
    ClientRequest, Closing, FIRST_CLIENT_STREAM, FRAME_BYTES_MAX, FileId, Frame, LineBuffer, PinTo, RevSpec,
    ServerMessage, Tid, ack_frame,
};
use serde::Serialize;

use super::args::JsonArg;
use super::output::Output;
use super::{CliError, ExitCode};

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// Longest extended attribute that is one of ours, bytes.
const ATTRIBUTE_BYTES_MAX: usize = 64;

/// Show what happens to a file of a mount, as seen from a revision.
///
/// Prints the blocks that changed since the revision: first those that were read, then each when it is read for the
/// first time after a commit. Runs until it is interrupted or the mount ends. Other readers are not held up.
#[derive(Args, Clone, Debug)]
#[command(
    after_long_help = "EXAMPLES\n  revfs watch /mnt/store prices.bin\n  revfs watch /mnt/store prices.bin --at -5min --json"
)]
pub struct WatchArgs {
    /// The mount point
    #[arg(value_name = "MNT")]
    pub mount_point: PathBuf,
    /// Name of the file, as below MNT/head/bigfile
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The revision to look from: a tid, a time, a span or a tag [default: what head/at shows]
    #[arg(long, value_name = "REV")]
    pub at: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub json: JsonArg,
}

/// Why nothing can be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// A path below the mount point cannot be used.
    #[error("{}: {source}: {remedy}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// No server of revfs can be asked.
    #[error("{}: nothing is mounted there, or not by revfs: `revfs status` lists the mounts", mount_point.display())]
    NotMounted {
        /// Where one should be.
        mount_point: PathBuf,
    },
    /// The mount is dead.
    #[error("{0}: its server is gone: `revfs umount {0}` cleans what it left, then mount it again", mount_point.display())]
    ServerGone {
        /// The mount.
        mount_point: PathBuf,
    },
    /// A file below the mount point does not say what it must.
    #[error("{}: does not read as that of a revfs mount: name the mount point of a revfs server", path.display())]
    NotAMount {
        /// The path.
        path: PathBuf,
    },
    /// The server refused.
    #[error("{file}: {why}: {remedy}")]
    Refused {
        /// The file.
        file: String,
        /// In the server's words.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The server ended the link.
    #[error("the server ended it: {why}: look at `revfs status` and the server's log")]
    Ended {
        /// In the server's words.
        why: String,
    },
}

impl WatchError {
    /// The code that the command exits with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            WatchError::Path { source, .. } if source.kind() == io::ErrorKind::NotFound => ExitCode::NotFound,
            WatchError::Path { .. } | WatchError::Ended { .. } | WatchError::ServerGone { .. } => {
                ExitCode::Failure
            }
            WatchError::NotAMount { .. } => ExitCode::Usage,
            WatchError::Refused { .. } | WatchError::NotMounted { .. } => ExitCode::NotFound,
        }
    }
}

/// One line of output.
#[derive(Serialize)]
struct Event {
    event: &'static str,
    file: String,
    /// First block, and the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocks: Option<[u64; 2]>,
    /// The revision that shows them as they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    tid: Option<String>,
    /// Size at the revision, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

impl Event {
    fn text(&self) -> String {
        let blocks = match self.blocks {
            Some([first, last]) if first == last => format!("  block {first}"),
            Some([first, last]) => format!("  blocks {first}-{last}"),
            None => String::new(),
        };
        let tid = self.tid.as_ref().map_or(String::new(), |tid| format!("  @{tid}"));
        let size = self.size.map_or(String::new(), |size| format!("  {size} bytes"));
        format!("{}{blocks}{tid}{size}\n", self.event)
    }
}

/// `revfs watch`.
pub(super) fn watch(args: &WatchArgs) -> Result<ExitCode, CliError> {
    let head = args.mount_point.join("head");
    let path = head.join("bigfile").join(&args.file);
    let shown = shown(&args.mount_point)?;
    let file: FileId =
        attribute(&path, "user.revfs.file", "see `revfs ls STORE` for the files of the store")?;
    let at = revision(&args.mount_point, args.at.as_deref(), shown)?;
    let link_path = head.join("watch");
    let open = File::options().read(true).write(true).open(&link_path);
    let mut link = open.map_err(|source| {
        let remedy = "a server that is not this user's, nor root's, cannot look after this process";
        WatchError::Path { path: link_path, source, remedy }
    })?;
    let hello = ClientRequest::Hello { range: true, size: true }.to_frame(FIRST_CLIENT_STREAM);
    let request = ClientRequest::Watch { file, at }.to_frame(FIRST_CLIENT_STREAM + 2);
    send(&mut link, &hello)?;
    send(&mut link, &request)?;
    let mut output = Output::new(args.json.json);
    let mut lines = LineBuffer::new(FRAME_BYTES_MAX);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let count = match link.read(&mut buffer) {
            Ok(0) => return Err(WatchError::Ended { why: "no more is to come".to_owned() }.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(WatchError::Ended { why: source.to_string() }.into()),
        };
        let mut rest = &buffer[..count];
        while let Some(line) = lines.next_line(&mut rest) {
            let broken = |error: &dyn std::fmt::Display| WatchError::Ended { why: error.to_string() };
            let line = line.map_err(|error| broken(&error))?;
            let frame = Frame::parse(line).map_err(|error| broken(&error))?;
            let message =
                ServerMessage::parse(frame.stream, frame.message).map_err(|error| broken(&error))?;
            let event = event(args, file, at, &frame, &message)?;
            if matches!(message, ServerMessage::Pin { .. }) {
                send(&mut link, &ack_frame(frame.stream))?;
            }
            if let Some(event) = event {
                output.put(&event, Event::text)?;
            }
        }
        output.flush()?;
    }
}

fn event(
    args: &WatchArgs,
    file: FileId,
    at: Tid,
    frame: &Frame<'_>,
    message: &ServerMessage<'_>,
) -> Result<Option<Event>, WatchError> {
    let file = file.to_string();
    match message {
        ServerMessage::Pin { blocks, to, .. } => {
            let blocks = Some([blocks.first.raw(), blocks.last.raw()]);
            let (event, tid) = match to {
                PinTo::Rev(rev) => ("pin", Some(rev.to_string())),
                PinTo::Head => ("unpin", None),
            };
            Ok(Some(Event { event, file, blocks, tid, size: None }))
        }
        ServerMessage::Ok(_) if frame.stream == FIRST_CLIENT_STREAM => Ok(None),
        ServerMessage::Ok(reply) => {
            Ok(Some(Event { event: "ok", file, blocks: None, tid: Some(at.to_string()), size: reply.size }))
        }
        ServerMessage::Error(why) => Err(WatchError::Refused {
            file: args.file.display().to_string(),
            why: (*why).to_owned(),
            remedy: "see `revfs log STORE FILE` for its revisions",
        }),
        ServerMessage::Closing(Closing::Error(why) | Closing::Fatal(why)) => {
            Err(WatchError::Ended { why: (*why).to_owned() })
        }
    }
}

fn send(link: &mut File, frame: &[u8]) -> Result<(), WatchError> {
    link.write_all(frame).map_err(|source| WatchError::Ended { why: source.to_string() })
}

fn attribute<T: std::str::FromStr>(path: &Path, name: &str, remedy: &'static str) -> Result<T, WatchError> {
    let mut value = [0; ATTRIBUTE_BYTES_MAX];
    let len = match rustix::fs::getxattr(path, name, &mut value) {
        Ok(len) => len,
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => {
            return Err(WatchError::NotAMount { path: path.to_owned() });
        }
        Err(errno) => return Err(WatchError::Path { path: path.to_owned(), source: errno.into(), remedy }),
    };
    let text = std::str::from_utf8(&value[..len]).ok().and_then(|text| text.parse().ok());
    text.ok_or_else(|| WatchError::NotAMount { path: path.to_owned() })
}

/// What `head/at` of a mount shows.
fn shown(mount_point: &Path) -> Result<Tid, WatchError> {
    let path = mount_point.join("head/at");
    let of_mount = |source: io::Error| {
        let (mount_point, path) = (mount_point.to_owned(), path.clone());
        match rustix::io::Errno::from_io_error(&source) {
            Some(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
                WatchError::NotMounted { mount_point }
            }
            // The second: it was aborted while this asked.
            Some(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED) => {
                WatchError::ServerGone { mount_point }
            }
            _ => WatchError::Path { path, source, remedy: "look at `revfs status` and the server's log" },
        }
    };
    let text = std::fs::read_to_string(&path).map_err(of_mount)?;
    text.parse().map_err(|_| WatchError::NotAMount { path })
}

/// What a revision means on the mount now; its symlinks know. The one that is `shown` if none is named.
fn revision(mount_point: &Path, at: Option<&str>, shown: Tid) -> Result<Tid, CliError> {
    let Some(at) = at else { return Ok(shown) };
    let spec = RevSpec::parse(at).map_err(crate::view::ResolveError::from)?;
    if let RevSpec::Tid(tid) = spec {
        return Ok(tid);
    }
    if let RevSpec::Head = spec {
        return Ok(shown);
    }
    let path = mount_point.join(format!("@{}", at.strip_prefix('@').unwrap_or(at)));
    let remedy = "see `revfs tags` and `revfs log` for what there is";
    let target = std::fs::read_link(&path).map_err(|source| WatchError::Path {
        path: path.clone(),
        source,
        remedy,
    })?;
    let text = target.to_str().and_then(|text| text.strip_prefix('@'));
    let tid = text.and_then(|text| text.parse().ok());
    Ok(tid.ok_or(WatchError::NotAMount { path })?)
}
