//! The watchdog: pins that are overdue, clients that are to die, threads that wait to be interrupted.
//!
//! Invariant: nobody is signalled but a process that broke the protocol on a pin that it owed at that moment (rule
//! 16), and its pins count as done only when it is really dead. From the first signal on all its READs fail, for it
//! cannot die in a page fault that is not answered. fuser does not hear the kernel's interrupts, so this thread looks
//! for signals that wait for who reads a link or waits in a READ.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tracing_mutex::stdsync::Mutex;

use super::links::WatchLink;
use super::pace::Pace;
use super::{Server, Stats};
use crate::watch::Fault;

/// Time between looks, at most, while there is anything to look at.
const INTERVAL: Duration = Duration::from_millis(50);
/// While somebody is to die.
const INTERVAL_KILLING: Duration = Duration::from_millis(5);
/// Part of the pin timeout after which SIGKILL follows SIGBUS.
const KILL_PART: u32 = 6;
/// Looking for signals may take this part of the time,
const LOOKING_SHARE: u32 = 50;
/// but who is killed does not wait longer than so for the next look, also where looking took long because the machine
/// is busy.
const LOOKING_INTERVAL_MAX: Duration = Duration::from_millis(200);
/// An unkillable process is told about this often.
const COMPLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Clients that are to die.
#[derive(Debug, Default)]
pub(super) struct Victims {
    // Leaf lock.
    accused: Mutex<Vec<Accused>>,
}

#[derive(Debug)]
struct Accused {
    link: Arc<WatchLink>,
    fault: Fault,
    since: Duration,
    step: Step,
}

/// How far a kill has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It may be ending by itself.
    Grace,
    /// SIGBUS was sent, then.
    Bus(Duration),
    /// SIGKILL was sent, then; or it was complained about.
    Kill(Duration),
}

impl Server {
    /// A client broke the protocol.
    pub(super) fn accuse(&self, link: &Arc<WatchLink>, fault: Fault) {
        let since = self.options.clock.monotonic();
        let accused = Accused { link: Arc::clone(link), fault, since, step: Step::Grace };
        self.to_kill.accused.lock().unwrap_or_else(PoisonError::into_inner).push(accused);
        self.wake_watchdog();
    }

    fn prosecute(self: &Arc<Self>) {
        let accused = {
            let mut list = self.to_kill.accused.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *list)
        };
        if accused.is_empty() {
            return;
        }
        let now = self.options.clock.monotonic();
        let mut alive = self.bury_dead(accused);
        alive.iter_mut().for_each(|accused| self.prosecute_one(accused, now));
        let mut list = self.to_kill.accused.lock().unwrap_or_else(PoisonError::into_inner);
        list.extend(alive);
        let left: Vec<u32> =
            list.iter().filter(|a| a.step != Step::Grace).map(|a| a.link.process.pid()).collect();
        drop(list);
        self.victims.store(Arc::new(left));
    }

    /// Ends the links of those that are dead, and answers the others. A process counts once, however many of its
    /// links are at fault: all of them end in one call.
    fn bury_dead(self: &Arc<Self>, accused: Vec<Accused>) -> Vec<Accused> {
        let pid_of = |accused: &Accused| accused.link.process.pid();
        let gone: BTreeSet<u32> =
            accused.iter().filter(|accused| accused.link.process.is_gone()).map(pid_of).collect();
        let (dead, alive): (Vec<Accused>, Vec<Accused>) = accused
            .into_iter()
            .partition(|accused| gone.contains(&pid_of(accused)) && accused.link.process.is_gone());
        let killed: BTreeSet<u32> =
            dead.iter().filter(|accused| accused.step != Step::Grace).map(pid_of).collect();
        for pid in &killed {
            log::warn!("process {pid} is dead");
        }
        Stats::add(&self.stats.kills, killed.len() as u64);
        dead.iter().for_each(|accused| self.bury(&accused.link));
        alive
    }

    /// One step towards the end of who is alive.
    fn prosecute_one(self: &Arc<Self>, accused: &mut Accused, now: Duration) {
        let process = &accused.link.process;
        let pid = process.pid();
        let told = |result: Result<(), String>| {
            if let Err(error) = result {
                log::error!("cannot signal process {pid}: {error}");
            }
        };
        let timeout = self.options.pin_timeout;
        match accused.step {
            Step::Grace if now.saturating_sub(accused.since) >= accused.fault.grace => {
                log::warn!(
                    "process {pid} broke the isolation protocol and is killed: {}",
                    accused.fault.cause
                );
                self.condemn(pid);
                told(process.send_bus());
                accused.step = Step::Bus(now);
            }
            Step::Bus(then) if now.saturating_sub(then) >= timeout / KILL_PART => {
                self.condemn(pid);
                told(process.send_kill());
                accused.step = Step::Kill(now);
            }
            Step::Kill(then) if now.saturating_sub(then) >= COMPLAIN_INTERVAL => {
                log::error!(
                    "process {pid} does not die; reads of blocks that it has pinned wait: look at its state"
                );
                self.condemn(pid);
                accused.step = Step::Kill(now);
            }
            Step::Grace | Step::Bus(_) | Step::Kill(_) => {}
        }
    }

    /// From now on all READs of the process fail, and those that are parked do now.
    fn condemn(&self, pid: u32) {
        let mut victims = Vec::clone(&self.victims.load());
        if !victims.contains(&pid) {
            victims.push(pid);
            self.victims.store(Arc::new(victims));
        }
        self.end_reads_of(&[pid]);
    }

    /// The time at which the pins of a link count as late or not: now, or an earlier one while its process cannot map
    /// anything through the fault of another one.
    ///
    /// A page fault that the kernel tries a second time waits for its READ under the lock that its process needs to
    /// map anything; if that READ waits for another client, which may be stuck, nobody in the process can obey a pin.
    /// So the process gets the time that the other one may take until it is dead, and some to obey. Not more: two that
    /// wait for each other both have to go in the end.
    fn judged_at(&self, link: &WatchLink, due: Option<Duration>, now: Duration) -> Duration {
        if due.is_none_or(|due| due > now) {
            return now;
        }
        let pid = link.process.pid();
        let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let is_held = || self.processes().is_ok_and(|p| self.parked.is_held(pid, |thread| p.pid_of(thread)));
        if is_held() {
            link.held_at.store(now_ns.max(1), Ordering::Relaxed);
        }
        let held_at = link.held_at.load(Ordering::Relaxed);
        let timeout = self.options.pin_timeout;
        let to_die = timeout / KILL_PART;
        if held_at == 0 || Duration::from_nanos(now_ns.saturating_sub(held_at)) > to_die {
            return now;
        }
        now.saturating_sub(timeout + to_die * 2)
    }

    /// Lets the parked READs of processes fail.
    pub(super) fn end_reads_of(&self, pids: &[u32]) {
        if let Ok(processes) = self.processes() {
            self.parked.end_of(|thread| processes.pid_of(thread).is_some_and(|pid| pids.contains(&pid)));
        }
    }

    /// Ends reads and READs of threads that a signal waits for.
    fn interrupt_signalled(&self) {
        let Ok(processes) = self.processes() else { return };
        for link in self.links.all() {
            link.interrupt(|thread| processes.is_signalled(thread));
        }
        self.interrupt_tids(&|thread| processes.is_signalled(thread));
        self.parked.end_of(|thread| processes.is_dying(thread));
    }
}

/// Watches until the server stops.
pub(super) fn run(server: &Arc<Server>) {
    let mut look_at = Duration::ZERO;
    let mut pace = Pace::default();
    while rest(server, &mut pace) {
        let now = server.options.clock.monotonic();
        let lost = pace.lost(server, now);
        // One process may have thousands of links: it is asked once.
        let mut looked_at: HashMap<*const (), bool> = HashMap::new();
        for link in server.links.all() {
            // Looked at before its pins: who is gone is not late with them.
            let process = Arc::as_ptr(&link.process).cast::<()>();
            let gone = *looked_at.entry(process).or_insert_with(|| link.process.is_gone());
            let due = link.due(lost);
            let judged_at = if gone { now } else { server.judged_at(&link, due, now) };
            link.with(server, |state, actions| match gone {
                true => state.opener_exited(actions),
                false => state.tick(judged_at, actions),
            });
        }
        server.prosecute();
        if now >= look_at {
            server.interrupt_signalled();
            let took = server.options.clock.monotonic().saturating_sub(now);
            look_at = now + next_look(took);
        }
    }
}

/// How long after a look at signals that took so long the next one is.
fn next_look(took: Duration) -> Duration {
    took.saturating_mul(LOOKING_SHARE).clamp(INTERVAL, LOOKING_INTERVAL_MAX)
}

/// Waits until it is time to look again; while nothing is to be looked after, until that changes. `false`: the server
/// stops.
fn rest(server: &Server, pace: &mut Pace) -> bool {
    let queue = server.queue.lock().unwrap_or_else(PoisonError::into_inner);
    if queue.stopping {
        return false;
    }
    let killing = !server.to_kill.accused.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
    let queue = if killing || server.links.count() > 0 || server.tid_streams() > 0 {
        let interval = if killing { INTERVAL_KILLING } else { INTERVAL };
        server
            .watchdog_moved
            .wait_timeout(queue, interval)
            .map(|(queue, _)| queue)
            .unwrap_or_else(|poisoned| poisoned.into_inner().0)
    } else {
        pace.rest();
        let mut queue = queue;
        queue.looked_after = None;
        server.watchdog_moved.wait(queue).unwrap_or_else(PoisonError::into_inner)
    };
    if let Some(since) = queue.looked_after {
        pace.begin(since);
    }
    !queue.stopping
}

impl Server {
    /// There is something to look after.
    pub(super) fn wake_watchdog(&self) {
        // Under the lock: else it may come between the watchdog's last look and its sleep.
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // Before it does look time may pass, in which this server does not run.
        queue.looked_after.get_or_insert_with(|| self.options.clock.monotonic());
        self.watchdog_moved.notify_all();
        drop(queue);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_took_long_puts_the_next_one_off_for_a_moment_only() {
        let ms = Duration::from_millis;
        assert_eq!(
            [ms(0), ms(2), ms(700), Duration::MAX].map(next_look),
            [ms(50), ms(100), ms(200), ms(200)]
        );
    }
}
