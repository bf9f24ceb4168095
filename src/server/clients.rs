//! The processes behind watch links and READs, as the server asks for them; implemented by the host.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

/// A process that opened a watch link. It never turns into another one.
pub trait ClientProcess: Send + Sync + Debug {
    /// Its number.
    fn pid(&self) -> u32;
    /// What it is called, on one line; never empty.
    fn name(&self) -> String;
    /// Whether it has ended; one that nobody has waited for yet has.
    fn is_gone(&self) -> bool;
    /// Sends SIGBUS, as the kernel does when a page cannot be had.
    ///
    /// # Errors
    /// Why it could not, as a text.
    fn send_bus(&self) -> Result<(), String>;
    /// Sends SIGKILL.
    ///
    /// # Errors
    /// Why it could not, as a text.
    fn send_kill(&self) -> Result<(), String>;
}

/// A thread that runs, waits for a processor, or waits in the kernel for what others hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusyThread {
    /// Its number.
    pub thread: u32,
    /// Whether it runs or waits for a processor, and not for anything else.
    pub is_runnable: bool,
    /// How long it has run so far, ns, as of the last look of the kernel's clock at it; 0 if that is not known.
    pub ran_ns: u64,
}

/// Where processes are found.
pub trait Processes: Send + Sync + Debug {
    /// The process to which a thread belongs, if the server may signal it. May be the same object for all its threads.
    ///
    /// # Errors
    /// Why it cannot be watched over, with the remedy.
    fn client_of(&self, thread: u32) -> Result<Arc<dyn ClientProcess>, String>;
    /// The number of the process to which a thread belongs; `None`: it is gone.
    fn pid_of(&self, thread: u32) -> Option<u32>;
    /// Whether a signal waits for the thread that it would act on now, so that a system call of it should end.
    fn is_signalled(&self, thread: u32) -> bool;
    /// Whether every thread of this machine that can run does so once the calling one sleeps: none waits for a
    /// processor. `false` if that is not known.
    fn all_others_run(&self) -> bool;
    /// Threads of a process that do not sleep for want of something to do. None if the process is gone.
    fn busy_threads(&self, pid: u32) -> Vec<BusyThread>;
    /// How long each thread of this server has waited for a processor so far, ns. None if that is not known.
    fn own_waits(&self) -> BTreeMap<u32, u64>;
    /// Whether the thread's process is being killed.
    fn is_dying(&self, thread: u32) -> bool;
}
