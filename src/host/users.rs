//! users: which processes use a mount, by what `/proc` says of their directories, open files and mappings.
//!
//! Invariant: no look asks the mounted filesystem anything, so none hangs on a server that does not answer: links
//! are read and never followed. Left out on purpose: processes that this user may not look at, those of other
//! mount namespaces, and what is mounted below the mount.

use std::path::Path;

use super::mountinfo::MountDev;

/// A process that uses a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountUser {
    /// Its number.
    pub pid: u32,
    /// Its name, on one line.
    pub name: String,
}

impl std::fmt::Display for MountUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.pid)
    }
}

/// The processes that keep the filesystem `dev` at `mount_point` (absolute, as mountinfo shows it) from being
/// unmounted, by number. A process that ends meanwhile, or that may not be looked at, is left out.
pub fn users_of(mount_point: &Path, dev: MountDev) -> Vec<MountUser> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut users: Vec<MountUser> = pids
        .filter(|pid| uses(Path::new(&format!("/proc/{pid}")), mount_point, dev))
        .map(|pid| MountUser { pid, name: name_of(pid) })
        .collect();
    users.sort_by_key(|user| user.pid);
    users
}

fn uses(process: &Path, mount_point: &Path, dev: MountDev) -> bool {
    let below = |link: &Path| std::fs::read_link(link).is_ok_and(|target| target.starts_with(mount_point));
    if ["cwd", "root", "exe"].iter().any(|name| below(&process.join(name))) {
        return true;
    }
    let files = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    if files.into_iter().any(|file| below(&file.path())) {
        return true;
    }
    // A mapping keeps its file in use after the descriptor is closed.
    std::fs::read(process.join("maps")).is_ok_and(|maps| maps_device(&maps, dev))
}

/// Whether a line of a `maps` file has the device: `start-end perms offset major:minor inode path`, in hex.
fn maps_device(maps: &[u8], dev: MountDev) -> bool {
    let device = format!("{:02x}:{:02x}", dev.major, dev.minor);
    let fields = |line: &[u8]| line.split(|byte| *byte == b' ').nth(3) == Some(device.as_bytes());
    maps.split(|byte| *byte == b'\n').any(fields)
}

/// Name of a process, on one line.
pub(super) fn name_of(pid: u32) -> String {
    let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = String::from_utf8_lossy(name.trim_ascii_end()).replace(char::is_control, "?");
    if name.is_empty() { "process".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_in_maps_and_no_other() {
        let maps = b"7f00-7f01 r--s 00000000 00:3a 12                 /m/head/a b\n7f02-7f03 rw-p 00000000 00:00 0 \n";
        let dev = |minor| MountDev { major: 0, minor };
        assert!(maps_device(maps, dev(0x3a)));
        assert!(!maps_device(maps, dev(0x3)) && !maps_device(maps, dev(0x12)) && !maps_device(b"", dev(0)));
    }

    #[test]
    fn an_open_file_is_a_use_and_a_closed_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let none = MountDev { major: 0, minor: u32::MAX };
        let own = std::process::id();
        let file = std::fs::File::create(root.join("f")).unwrap();
        let found = users_of(&root, none);
        assert_eq!(found.iter().map(|user| user.pid).collect::<Vec<_>>(), [own]);
        assert!(!found[0].name.is_empty() && found[0].name != "process");
        // A name that only starts the same is another place.
        assert_eq!(users_of(&root.join("fo"), none), []);
        drop(file);
        assert_eq!(users_of(&root, none), []);
    }
}
