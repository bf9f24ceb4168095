//! What ends this process, and what its signals do.
//!
//! Invariant: the only calls into C are those that Rust's standard library has no name for.

use std::io::{Error, Result, stdout};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::LIFE_SECONDS;

unsafe extern "C" {
    fn signal(number: i32, handler: usize) -> usize;
}

/// `SIG_DFL`, `SIG_IGN` and `SIG_ERR` of C.
const DEFAULT: usize = 0;
const IGNORE: usize = 1;
const FAILED: usize = usize::MAX;

/// Ends with the thread that started this process.
pub fn end_with_parent() -> Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Ends when nobody reads stdout any more, and after some time in any case.
pub fn limit_life() -> Result<()> {
    let body = || {
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        let mut seconds = 0;
        while seconds < LIFE_SECONDS {
            // No event is asked for: what comes is that the other end is closed.
            match poll(&mut [PollFd::new(&stdout(), PollFlags::empty())], Some(&second)) {
                Ok(0) => seconds += 1,
                Ok(_) => break,
                Err(_) => {}
            }
        }
        std::process::exit(3);
    };
    std::thread::Builder::new().name("guard".to_owned()).spawn(body)?;
    Ok(())
}

extern "C" fn do_nothing(_: i32) {}

/// Lets SIGUSR1 interrupt system calls, and do nothing else.
pub fn handle_usr1() -> Result<()> {
    let handler: extern "C" fn(i32) = do_nothing;
    set(Signal::USR1, handler as usize)
}

/// Lets SIGBUS end this process, as it does with programs in C: Rust's own handler takes the first one and goes on.
pub fn die_of_bus() -> Result<()> {
    set(Signal::BUS, DEFAULT)
}

/// Lets SIGBUS pass.
pub fn ignore_bus() -> Result<()> {
    set(Signal::BUS, IGNORE)
}

fn set(number: Signal, handler: usize) -> Result<()> {
    // SAFETY: the handler is SIG_IGN or a function that does nothing, which may run at any moment.
    let before = unsafe { signal(number.as_raw(), handler) };
    if before == FAILED { Err(Error::last_os_error()) } else { Ok(()) }
}
