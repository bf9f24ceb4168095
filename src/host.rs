//! host: what revfs asks of the machine that it runs on: mounts, processes, signals, locks, kernel settings.
//!
//! Invariant: nothing here waits without a limit. What may hang because a server hangs (a look at a mount, an
//! unmount, a removal) runs apart, in a helper thread or process, and the caller goes on when its time is up.
//! Input from `/proc`, `/sys` and run-time files is an error or is skipped, never a panic.
//! Left out on purpose: the FUSE protocol (module `fs`) and what commands print (module `cli`).

pub mod clients;
pub mod daemon;
pub mod fuse_connection;
pub mod mount_state;
pub mod mountinfo;
pub mod process;
pub mod runtime;
pub mod signals;
pub mod statfs;
pub mod stop;
pub mod tuning;
pub mod umount;
pub mod unmount;
pub mod users;
mod wait;
