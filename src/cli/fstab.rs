//! `mount.revfs STORE MNT [-sfnv] [-N NS] [-o OPTIONS] [-t TYPE]`: the program as mount(8) calls it for
//! `mount -t revfs` and for lines of fstab, turned into arguments of `revfs mount`.
//!
//! Invariant: each option means what it says or is refused by its name. What a mount of revfs is in any case
//! (read-only, nosuid, nodev, without times of access) needs no option, and may be given; `rw`, which mount(8) adds by
//! itself, is no request to write. Left out on purpose: values with commas, which mount(8) takes apart too.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::ops::data::shown;

use super::definition;

/// Names of the program that make it a mount helper; the longer one is that of `mount -t fuse.revfs`.
const HELPER_NAMES: [&str; 2] = ["mount.revfs", "mount.fuse.revfs"];

/// Options that change nothing: they are for mount(8) and systemd, or say what is so in any case.
const WITHOUT_EFFECT: [&str; 29] = [
    "",
    "defaults",
    "ro",
    "rw",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "lazytime",
    "nolazytime",
    "sync",
    "async",
    "auto",
    "noauto",
    "nouser",
    "nousers",
    "noowner",
    "nogroup",
    "nofail",
    "_netdev",
    "silent",
];
/// Options of mount(8) that let users mount, and by that make a mount noexec.
const FOR_USERS: [&str; 4] = ["user", "users", "owner", "group"];
/// Starts of options that are for mount(8) and systemd.
const FOR_OTHERS: [&str; 4] = ["x-", "X-", "comment=", "user="];

/// Why the arguments of a mount helper mean nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelperError {
    /// Too few arguments.
    #[error(
        "mount.revfs: STORE and MNT are needed: mount.revfs STORE MNT [-sfnv] [-N NS] [-o OPTIONS] [-t TYPE]"
    )]
    TooFew,
    /// An argument that is no flag, STORE or MNT.
    #[error("mount.revfs: {argument}: is neither STORE nor MNT nor a flag: give options after -o")]
    Argument {
        /// As given.
        argument: String,
    },
    /// A flag at the end that needs something after it.
    #[error("mount.revfs: -{flag}: has nothing after it: give a value, or leave it out")]
    FlagValue {
        /// Which.
        flag: char,
    },
    /// An option that means nothing here.
    #[error(
        "mount.revfs: {option}: is not an option of a mount of revfs: give those of `revfs mount --help`, with _ for -"
    )]
    Option {
        /// As given.
        option: String,
    },
    /// An option without its value.
    #[error("mount.revfs: {option}: needs a value: give it as in {option}=VALUE")]
    NoValue {
        /// As given.
        option: String,
    },
}

/// Whether the program is called as a mount helper.
pub(super) fn is_helper(program: &OsStr) -> bool {
    Path::new(program).file_name().is_some_and(|name| HELPER_NAMES.iter().any(|helper| name == *helper))
}

/// The arguments of `revfs`, without its name, that do what a mount helper is asked for with `args`; none if it is
/// only to be tried (`mount --fake`).
pub(super) fn arguments(args: &[OsString]) -> Result<Option<Vec<OsString>>, HelperError> {
    let asked = Asked::parse(args)?;
    let [store, mount_point] = asked.places.as_slice() else { return Err(HelperError::TooFew) };
    let mut options = MountOptions::default();
    for option in asked.options.iter().flat_map(|list| list.as_bytes().split(|byte| *byte == b',')) {
        match options.add(option) {
            Err(HelperError::Option { .. }) if asked.sloppy => {}
            other => other?,
        }
    }
    let mut words: Vec<OsString> = vec!["mount".into()];
    words.extend(options.words);
    words.extend(options.noexec.then(|| "--noexec".into()));
    words.extend(["--".into(), store.clone(), mount_point.clone()]);
    Ok((!asked.fake).then_some(words))
}

/// The arguments of a mount helper, taken apart.
#[derive(Default)]
struct Asked {
    places: Vec<OsString>,
    options: Vec<OsString>,
    fake: bool,
    sloppy: bool,
}

impl Asked {
    fn parse(args: &[OsString]) -> Result<Asked, HelperError> {
        let mut asked = Asked::default();
        let mut args = args.iter();
        while let Some(argument) = args.next() {
            let refused = || HelperError::Argument { argument: shown(argument.as_bytes()) };
            let Some(flags) = argument.as_bytes().strip_prefix(b"-").filter(|flags| !flags.is_empty()) else {
                if asked.places.len() == 2 {
                    return Err(refused());
                }
                asked.places.push(argument.clone());
                continue;
            };
            for (index, flag) in flags.iter().enumerate() {
                match flag {
                    b's' => asked.sloppy = true,
                    b'f' => asked.fake = true,
                    // Nothing is written to mtab, and all that there is to say is said.
                    b'n' | b'v' => {}
                    b'o' | b't' | b'N' => {
                        let rest = &flags[index + 1..];
                        let value = match rest {
                            [] => args.next().cloned(),
                            rest => Some(OsString::from_vec(rest.to_vec())),
                        };
                        let value = value.ok_or(HelperError::FlagValue { flag: char::from(*flag) })?;
                        // The type is known, and mount(8) is in the namespace already.
                        asked.options.extend((*flag == b'o').then_some(value));
                        break;
                    }
                    _ => return Err(refused()),
                }
            }
        }
        Ok(asked)
    }
}

/// Options of mount, as those of `revfs mount`.
#[derive(Default)]
struct MountOptions {
    words: Vec<OsString>,
    noexec: bool,
}

impl MountOptions {
    fn add(&mut self, option: &[u8]) -> Result<(), HelperError> {
        let is = |name: &&str| name.as_bytes() == option;
        if let b"noexec" | b"exec" = option {
            self.noexec = option == b"noexec";
            return Ok(());
        }
        if FOR_USERS.iter().any(is) {
            self.noexec = true;
            return Ok(());
        }
        if WITHOUT_EFFECT.iter().any(is)
            || FOR_OTHERS.iter().any(|start| option.starts_with(start.as_bytes()))
        {
            return Ok(());
        }
        let unknown = || HelperError::Option { option: shown(option) };
        let mut parts = option.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default();
        let takes_value = takes_value(name).ok_or_else(unknown)?;
        let mut word = [b"--", name].concat();
        word.iter_mut().filter(|byte| **byte == b'_').for_each(|byte| *byte = b'-');
        match (takes_value, parts.next()) {
            (false, None) => {}
            (true, Some(value)) => word.extend([b"=", value].concat()),
            (true, None) => return Err(HelperError::NoValue { option: shown(option) }),
            (false, Some(_)) => return Err(unknown()),
        }
        self.words.push(OsString::from_vec(word));
        Ok(())
    }
}

/// Whether an option of `revfs mount`, with `_` for `-`, takes a value; none if there is no such option. A mount of
/// fstab never stays in the foreground.
fn takes_value(name: &[u8]) -> Option<bool> {
    let definition = definition();
    let mount = definition.find_subcommand("mount")?;
    let options =
        mount.get_arguments().filter(|option| !option.is_hide_set() && option.get_id() != "foreground");
    let mut named = options
        .filter(|option| option.get_long().is_some_and(|long| long.replace('-', "_").as_bytes() == name));
    named.next().map(|option| option.get_action().takes_values())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn taken(line: &str) -> Result<Option<String>, HelperError> {
        let taken = arguments(&words(line))?;
        Ok(taken.map(|words| words.join(OsStr::new(" ")).into_string().unwrap()))
    }

    fn refused(line: &str) -> String {
        taken(line).unwrap_err().to_string()
    }

    #[test]
    fn the_name_alone_makes_it_a_helper() {
        for name in ["mount.revfs", "/sbin/mount.revfs", "/usr/sbin/mount.fuse.revfs"] {
            assert!(is_helper(OsStr::new(name)), "{name}");
        }
        for name in ["revfs", "/sbin/mount.revfs/revfs", "mount", "umount.revfs", ""] {
            assert!(!is_helper(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn what_mount_passes_becomes_arguments() {
        let plain = "mount -- s m";
        for line in [
            "s m",
            "s m -o rw",
            "s m -sfnv -o rw",
            "s m -n -v -t fuse.revfs -N 7 -orw,,nofail",
            "s m -o rw,noatime,_netdev,x-systemd.automount,comment=a,user=ann,auto,nouser,defaults -t revfs",
            "-o user,exec s m",
        ] {
            let expected = (!line.contains("-sfnv")).then(|| plain.to_owned());
            assert_eq!(taken(line), Ok(expected), "{line}");
        }
        let all = "s m -o create,cache=4G,log=/l=1 -o read_ahead=8M,allow_other,users";
        let words = "mount --create --cache=4G --log=/l=1 --read-ahead=8M --allow-other --noexec -- s m";
        assert_eq!(taken(all), Ok(Some(words.to_owned())));
    }

    #[test]
    fn each_option_of_mount_has_its_name_with_underscores() {
        let definition = definition();
        let mount = definition.find_subcommand("mount").unwrap();
        let mut count = 0;
        for option in mount.get_arguments().filter(|option| !option.is_hide_set()) {
            let Some(long) = option.get_long().filter(|long| !["help", "foreground"].contains(long)) else {
                continue;
            };
            let name = long.replace('-', "_");
            let given = if option.get_action().takes_values() { format!("{name}=7") } else { name.clone() };
            let expected = given.replace(&name, &format!("--{long}"));
            assert_eq!(taken(&format!("s m -o {given}")), Ok(Some(format!("mount {expected} -- s m"))));
            count += 1;
        }
        assert!(count > 7, "{count}");
    }

    #[test]
    fn what_means_nothing_is_named() {
        assert!(refused("s m -o rw,remount").starts_with("mount.revfs: remount: is not an option"));
        for option in ["foreground", "max_read=4K", "create=1", "help", "=1", "nocache"] {
            assert!(
                refused(&format!("s m -o {option}")).contains(&format!(" {option}: is not an option")),
                "{option}"
            );
            assert_eq!(
                taken(&format!("s m -s -o {option}")),
                Ok(Some("mount -- s m".to_owned())),
                "{option}"
            );
        }
        assert!(refused("s m -o cache").contains("cache: needs a value"));
        assert!(refused("s m -s -o cache").contains("cache: needs a value"));
        assert!(refused("s m -o").contains("-o: has nothing after it"));
        assert!(refused("s m -q").contains("-q: is neither"));
        assert!(refused("s m --options").contains("--options: is neither"));
        assert!(refused("s m n").contains("n: is neither"));
        assert!(refused("s").contains("STORE and MNT are needed"));
    }
}
