//! clients: the processes of watch links, for the server: who they are, whether they live, what waits for them.
//!
//! Invariant: a client is a process and not a thread, held by a pidfd, and one that this server may signal: else it
//! could not be stopped from using data that is not its revision's. Signals that wait for a thread are read from
//! `/proc`: the kernel tells a FUSE server of them by INTERRUPT only, which the crate fuser does not take.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, Weak};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Signal;
use tracing_mutex::stdsync::{Mutex, MutexGuard};

use super::process::{Process, ProcessError, process_of_thread};
use super::users::name_of;
use crate::env::{self, Clock, SystemClock};
use crate::server::{BusyThread, ClientProcess, Processes};

/// For so long a limit of processors may be seen as it was before it changed.
const PROCESSORS_STAY: Duration = Duration::from_secs(10);
/// Longest text of /proc/loadavg, bytes.
const LOAD_BYTES_MAX: usize = 128;

/// The processes of this machine.
#[derive(Debug, Default)]
pub struct HostProcesses {
    /// Those that have links: one descriptor for each, however many links it has.
    // Leaf lock: held for one look-up or change.
    known: Mutex<HashMap<u32, Weak<Process>>>,
    load: OnceLock<Load>,
}

/// What is looked at while a commit waits.
#[derive(Debug)]
struct Load {
    /// /proc/loadavg.
    file: Option<File>,
    clock: Arc<dyn Clock>,
    /// How many there were when it was asked last, and when that was, ns: it reads files of cgroups, which takes some 80 us.
    processors: AtomicUsize,
    asked_at: AtomicU64,
}

impl Load {
    fn open() -> Load {
        let opened = File::open("/proc/loadavg");
        let file = opened.map_err(|error| log::warn!("/proc/loadavg: {error}: commits may show later")).ok();
        let processors = AtomicUsize::new(env::processors());
        Load { file, clock: SystemClock::shared(), processors, asked_at: AtomicU64::new(0) }
    }

    fn processors(&self) -> usize {
        let now = self.clock.monotonic();
        let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        if now.saturating_sub(Duration::from_nanos(self.asked_at.load(Ordering::Relaxed))) > PROCESSORS_STAY {
            self.processors.store(env::processors(), Ordering::Relaxed);
            self.asked_at.store(now_ns, Ordering::Relaxed);
        }
        self.processors.load(Ordering::Relaxed)
    }

    /// Threads that run or wait for a processor, this one among them; `None` if that cannot be read.
    fn runnable(&self) -> Option<usize> {
        let mut text = [0; LOAD_BYTES_MAX];
        let len = self.file.as_ref()?.read_at(&mut text, 0).ok()?;
        runnable_in(&text[..len])
    }
}

impl HostProcesses {
    fn process_of(&self, thread: u32) -> Result<Arc<Process>, ProcessError> {
        let pid = process_of_thread(thread)?;
        let known = self.known().get(&pid).and_then(Weak::upgrade);
        // It had the number before the thread was looked up, and has it still: so the thread is one of its own.
        if let Some(process) = known.filter(|process| process.is_alive()) {
            return Ok(process);
        }
        let process = Arc::new(Process::of_thread(thread)?);
        let mut known = self.known();
        known.retain(|_, process| process.strong_count() > 0);
        known.insert(process.pid(), Arc::downgrade(&process));
        Ok(process)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<u32, Weak<Process>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientProcess for Process {
    fn pid(&self) -> u32 {
        Process::pid(self)
    }

    fn name(&self) -> String {
        name_of(Process::pid(self))
    }

    fn is_gone(&self) -> bool {
        !self.is_alive()
    }

    fn send_bus(&self) -> Result<(), String> {
        self.signal(Signal::BUS).map_err(|error| error.to_string())
    }

    fn send_kill(&self) -> Result<(), String> {
        self.signal(Signal::KILL).map_err(|error| error.to_string())
    }
}

impl Processes for HostProcesses {
    fn client_of(&self, thread: u32) -> Result<Arc<dyn ClientProcess>, String> {
        if thread == 0 {
            return Err(
                "the process is in another pid namespace: run revfs in the one of its clients".to_owned()
            );
        }
        let process = self.process_of(thread).map_err(|error| error.to_string())?;
        match process.may_signal() {
            Ok(()) => Ok(process),
            Err(Errno::PERM) => Err(format!(
                "process {} belongs to another user: run revfs as that user or as root",
                process.pid()
            )),
            Err(errno) => Err(format!("process {} cannot be signalled: {errno}", process.pid())),
        }
    }

    fn pid_of(&self, thread: u32) -> Option<u32> {
        process_of_thread(thread).ok()
    }

    fn is_signalled(&self, thread: u32) -> bool {
        waiting_signals(thread).is_some_and(|waiting| waiting != 0)
    }

    fn all_others_run(&self) -> bool {
        let load = self.load.get_or_init(Load::open);
        load.runnable().is_some_and(|runnable| runnable <= load.processors() + 1)
    }

    fn busy_threads(&self, pid: u32) -> Vec<BusyThread> {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
        let thread_of = |name: std::ffi::OsString| name.to_str()?.parse().ok();
        threads.flatten().filter_map(|entry| busy_thread(thread_of(entry.file_name())?)).collect()
    }

    fn own_waits(&self) -> BTreeMap<u32, u64> {
        let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return BTreeMap::new() };
        let thread_of = |name: std::ffi::OsString| name.to_str()?.parse().ok();
        let numbers = threads.flatten().filter_map(|entry| thread_of(entry.file_name()));
        numbers.filter_map(|thread| Some((thread, schedule_of(thread)?.waited_ns))).collect()
    }

    fn is_dying(&self, thread: u32) -> bool {
        waiting_signals(thread).is_some_and(|waiting| waiting & bit_of(Signal::KILL) != 0)
    }
}

/// Threads that run or wait for a processor: `0.5 0.4 0.3 <runnable>/<all> <last pid>`.
fn runnable_in(load: &[u8]) -> Option<usize> {
    let field = load.split(|byte| *byte == b' ').nth(3)?;
    std::str::from_utf8(field.split(|byte| *byte == b'/').next()?).ok()?.parse().ok()
}

/// A thread that runs or waits and cannot be woken; `None`: it sleeps, or is gone.
fn busy_thread(thread: u32) -> Option<BusyThread> {
    let stat = std::fs::read(format!("/proc/{thread}/stat")).ok()?;
    let state = state_in(&stat)?;
    let ran_ns = schedule_of(thread).map_or(0, |schedule| schedule.ran_ns);
    let busy = BusyThread { thread, is_runnable: state == b'R', ran_ns };
    matches!(state, b'R' | b'D').then_some(busy)
}

/// The state of a thread: `<tid> (<name>) <state> ...`, where the name may hold anything.
fn state_in(stat: &[u8]) -> Option<u8> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    stat.get(name_end + 2).copied()
}

/// How long a thread has run and waited for a processor, ns, as of the last look of the kernel's clock at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Schedule {
    ran_ns: u64,
    waited_ns: u64,
}

/// `None`: the thread is gone, or this kernel does not tell.
fn schedule_of(thread: u32) -> Option<Schedule> {
    schedule_in(&std::fs::read_to_string(format!("/proc/{thread}/schedstat")).ok()?)
}

/// `<ran ns> <waited ns> <times that it was given a processor>`.
fn schedule_in(text: &str) -> Option<Schedule> {
    let mut fields = text.split_ascii_whitespace();
    let (ran_ns, waited_ns) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Schedule { ran_ns, waited_ns })
}

fn bit_of(signal: Signal) -> u64 {
    1 << (signal.as_raw() - 1)
}

/// Signals that wait for a thread and are neither blocked nor ignored; `None`: it is gone.
fn waiting_signals(thread: u32) -> Option<u64> {
    let status = std::fs::read(format!("/proc/{thread}/status")).ok()?;
    waiting_in(&status)
}

fn waiting_in(status: &[u8]) -> Option<u64> {
    let mask = |name: &[u8]| {
        let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(std::str::from_utf8(line).ok()?.trim(), 16).ok()
    };
    let pending = mask(b"SigPnd:")? | mask(b"ShdPnd:")?;
    Some(pending & !mask(b"SigBlk:")? & !mask(b"SigIgn:")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_wait_count_unless_they_are_blocked_or_ignored() {
        let status = |own: u64, shared: u64, blocked: u64, ignored: u64| {
            format!(
                "Name:\tx\nSigPnd:\t{own:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\n"
            )
        };
        let kill = bit_of(Signal::KILL);
        assert_eq!(waiting_in(status(kill, 0, 0, 0).as_bytes()), Some(256));
        assert_eq!(waiting_in(status(0, kill, 0, 0).as_bytes()), Some(256));
        assert_eq!(waiting_in(status(6, 0, 2, 4).as_bytes()), Some(0));
        assert_eq!(waiting_in(status(0, 7, 2, 4).as_bytes()), Some(1));
        assert_eq!(waiting_in(b"SigPnd:\t0\n"), None);
        assert_eq!(waiting_in(b""), None);
    }

    #[test]
    fn threads_that_can_run_are_counted_in_loadavg() {
        assert_eq!(runnable_in(b"5.34 4.75 4.40 3/117 28943\n"), Some(3));
        assert_eq!([&b""[..], b"1 2 3", b"1 2 3 x/4 5"].map(runnable_in), [None; 3]);
        let load = Load::open();
        // Again and again from one descriptor.
        assert!((0..3).all(|_| load.runnable().unwrap() >= 1), "this thread runs");
    }

    #[test]
    fn a_limit_of_processors_that_changes_is_seen_in_time() {
        let clock = env::ManualClock::at(0);
        let load = Load { clock: Arc::clone(&clock) as Arc<dyn Clock>, ..Load::open() };
        load.processors.store(0, Ordering::Relaxed);
        clock.advance(PROCESSORS_STAY);
        assert_eq!(load.processors(), 0);
        clock.advance(Duration::from_nanos(1));
        assert_eq!(load.processors(), env::processors());
        load.processors.store(0, Ordering::Relaxed);
        clock.advance(PROCESSORS_STAY);
        assert_eq!(load.processors(), 0, "asked just before");
    }

    #[test]
    fn how_long_a_thread_waited_for_a_processor_is_told() {
        assert_eq!(schedule_in("12 345 6\n"), Some(Schedule { ran_ns: 12, waited_ns: 345 }));
        assert_eq!(["", "12", "12 x 6", "-1 2 3"].map(schedule_in), [None; 4]);
        let me = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        let before = schedule_of(me).unwrap().waited_ns;
        let waits = HostProcesses::default().own_waits();
        assert!(waits.len() > 1, "the main thread of the tests is one too");
        assert!(waits[&me] >= before);
    }

    #[test]
    fn a_thread_that_runs_is_told_and_one_that_sleeps_is_not() {
        assert_eq!(state_in(b"7 (a) R (b)) S 1 2"), Some(b'S'));
        assert_eq!([&b""[..], b"7 (a)", b"7 (a) "].map(state_in), [None; 3]);
        let me = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (say, said) = std::sync::mpsc::channel();
        let sleeper = move || {
            say.send(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()).unwrap();
            let _ = ended.recv();
        };
        crate::env::spawn("sleeper", sleeper).unwrap();
        let sleeping = said.recv().unwrap();
        let ran = |thread: u32| {
            let busy = HostProcesses::default().busy_threads(std::process::id());
            busy.iter().find(|busy| busy.thread == thread && busy.is_runnable).map(|busy| busy.ran_ns)
        };
        while ran(sleeping).is_some() {}
        let before = ran(me);
        assert!(before.is_some());
        // The kernel looks at the clock each time that it gives the processor to another one.
        while ran(me) <= before {
            std::thread::yield_now();
        }
        drop(end);
        assert!(HostProcesses::default().busy_threads(u32::MAX).is_empty());
    }

    #[test]
    fn this_process_can_be_a_client_and_one_of_another_namespace_cannot() {
        let thread = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        let processes = HostProcesses::default();
        let client = processes.client_of(thread).unwrap();
        assert_eq!((client.pid(), client.is_gone()), (std::process::id(), false));
        let again = std::thread::scope(|scope| {
            let other = || {
                processes.client_of(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()).unwrap()
            };
            scope.spawn(other).join().unwrap()
        });
        assert!(Arc::ptr_eq(&client, &again), "one descriptor for a process, whichever thread asks");
        assert!(processes.client_of(0).unwrap_err().contains("namespace"));
        assert_eq!(processes.pid_of(thread), Some(std::process::id()));
        assert!(!processes.is_signalled(thread));
    }

    #[test]
    fn a_number_that_is_given_again_means_the_new_process() {
        let processes = HostProcesses::default();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let old = processes.process_of(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        let old = old.unwrap();
        assert!(old.is_gone());
        // As if this process had got the number of the one that ended.
        processes.known().insert(std::process::id(), Arc::downgrade(&old));
        let found = processes.process_of(std::process::id()).unwrap();
        assert!(!found.is_gone() && found.pid() == std::process::id());
        assert!(Arc::ptr_eq(&found, &processes.process_of(std::process::id()).unwrap()));
        drop((found, old));
        processes.process_of(std::process::id()).unwrap();
        assert!(processes.process_of(child.id()).is_err());
        assert_eq!(processes.known().len(), 1, "those that ended are forgotten");
    }
}
