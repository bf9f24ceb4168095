//! tuning: settings of the kernel that make reads fast, set as root and else only named.
//!
//! Invariant: a limit of the whole machine is raised and never lowered. Whoever is not root causes no attempt and
//! no error, only a note with the command to run. Left out on purpose: putting settings back, others may count
//! on them by then.

use std::path::Path;

use super::mountinfo::MountDev;

/// Pages of 4 KiB in one FUSE request for a READ of a 2 MiB block.
pub const MAX_PAGES_WANTED: u64 = 512;

/// The limit on the pages of one FUSE request, of the whole machine.
const MAX_PAGES_FILE: &str = "/proc/sys/fs/fuse/max_pages_limit";

/// How one setting came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TuningNote {
    /// Name of the setting.
    pub what: &'static str,
    /// The value that revfs wants.
    pub wanted: u64,
    /// The value now; `None` if this kernel does not have the setting.
    pub got: Option<u64>,
    /// The shell command that sets it, when it is not set and root can set it.
    pub command: Option<String>,
}

impl TuningNote {
    /// Whether there is nothing left to do, or nothing that can be done.
    pub fn is_settled(&self) -> bool {
        self.command.is_none()
    }
}

impl std::fmt::Display for TuningNote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.got, &self.command) {
            (Some(got), Some(command)) => {
                write!(f, "{} is {got}, {} would be faster; as root: {command}", self.what, self.wanted)
            }
            (Some(got), None) => write!(f, "{} is {got}", self.what),
            (None, _) => write!(f, "{} is unknown to this kernel; Linux 6.13 has it", self.what),
        }
    }
}

/// Raises the machine-wide settings that FUSE reads gain from. Call it before the mount, which takes them over.
/// One note for each setting, also for those that were right.
pub fn tune_machine() -> Vec<TuningNote> {
    let may_write = rustix::process::geteuid().is_root();
    let command = format!("sysctl -w fs.fuse.max_pages_limit={MAX_PAGES_WANTED}");
    vec![raise("fs.fuse.max_pages_limit", Path::new(MAX_PAGES_FILE), MAX_PAGES_WANTED, may_write, command)]
}

/// Sets how far ahead of a reader the kernel reads on the mount with device `dev`, in KiB. Call it after the
/// mount. An own setting of the mount: it is set to exactly that.
pub fn set_read_ahead(dev: MountDev, kib: u64) -> TuningNote {
    let file = format!("/sys/class/bdi/{dev}/read_ahead_kb");
    let may_write = rustix::process::geteuid().is_root();
    let command = format!("echo {kib} > {file}");
    set("read_ahead_kb", Path::new(&file), kib, may_write, command)
}

fn raise(what: &'static str, file: &Path, wanted: u64, may_write: bool, command: String) -> TuningNote {
    match read_number(file) {
        Some(now) if now >= wanted => TuningNote { what, wanted, got: Some(now), command: None },
        _ => set(what, file, wanted, may_write, command),
    }
}

fn set(what: &'static str, file: &Path, wanted: u64, may_write: bool, command: String) -> TuningNote {
    let before = read_number(file);
    if before.is_none() || before == Some(wanted) {
        return TuningNote { what, wanted, got: before, command: None };
    }
    if may_write && let Err(error) = std::fs::write(file, wanted.to_string()) {
        // A container's /proc and /sys are often read-only: worth a note, not an error.
        log::debug!("cannot set {}: {error}", file.display());
    }
    let got = read_number(file);
    let command = if got == Some(wanted) { None } else { Some(command) };
    TuningNote { what, wanted, got, command }
}

fn read_number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_with(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn a_limit_is_raised_and_never_lowered() {
        let low = file_with("256\n");
        let note = raise("x", low.path(), 512, true, "cmd".into());
        assert_eq!((note.got, note.is_settled()), (Some(512), true));
        assert_eq!(read_number(low.path()), Some(512));
        let high = file_with("4096\n");
        let note = raise("x", high.path(), 512, true, "cmd".into());
        assert_eq!((note.got, note.is_settled()), (Some(4096), true));
        assert_eq!(read_number(high.path()), Some(4096));
    }

    #[test]
    fn who_may_not_write_gets_the_command() {
        let low = file_with("256\n");
        let note = raise("fs.x", low.path(), 512, false, "sysctl -w fs.x=512".into());
        assert_eq!((note.got, note.command.as_deref()), (Some(256), Some("sysctl -w fs.x=512")));
        assert_eq!(read_number(low.path()), Some(256), "no attempt");
        assert!(note.to_string().contains("as root: sysctl -w fs.x=512"));
    }

    #[test]
    fn a_kernel_without_the_setting_gives_a_note_without_command() {
        let dir = tempfile::tempdir().unwrap();
        let note = raise("fs.x", &dir.path().join("absent"), 512, true, "cmd".into());
        assert_eq!((note.got, note.is_settled()), (None, true));
        assert!(!dir.path().join("absent").exists(), "no file is made up");
        assert_eq!(set_read_ahead(MountDev { major: 0, minor: u32::MAX }, 2048).got, None);
    }

    #[test]
    fn a_setting_of_the_mount_is_set_exactly() {
        let file = file_with("8192\n");
        assert_eq!(set("x", file.path(), 2048, true, "cmd".into()).got, Some(2048));
    }
}
