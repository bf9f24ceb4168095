//! A child that is given the link: it has it as its stdin, and shares stdout with its parent.
//!
//! Invariant: it reads only after its parent is gone, so that it takes nothing that is for the parent.

use std::fs::File;
use std::io::{Error, Read, Result, stdin};
use std::os::fd::AsFd;
use std::process::{Child, Command};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, getppid, pidfd_open};

use crate::link;
use crate::mode::Mode;
use crate::tell;

/// Tells such a child from its parent.
pub const WORD: &str = "heir";

/// Starts the child, which asks for a watch.
pub fn start(link: &File, watch: &str) -> Result<Child> {
    let program = std::env::current_exe()?;
    Command::new(program).args([WORD, watch]).stdin(link.try_clone()?).spawn()
}

/// What the child does: says its request, waits for the end of its parent, and reads to the end.
pub fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let parent = getppid().ok_or_else(|| Error::other("there is no parent"))?;
    let parent = pidfd_open(parent, PidfdFlags::empty())?;
    let mut link = File::from(stdin().as_fd().try_clone_to_owned()?);
    let watch = arguments.next().ok_or_else(|| Error::other("no request"))?;
    link::say(&link, Mode::Obey, &format!("{watch}\n"))?;
    poll(&mut [PollFd::new(&parent, PollFlags::IN)], None)?;
    let mut text = String::new();
    link.read_to_string(&mut text)?;
    text.lines().for_each(|line| tell(&format!("heir heard {line}")));
    tell("heir end");
    Ok(())
}
