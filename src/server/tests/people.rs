//! Doubles of the processes behind links: each thread is a process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use crate::server::{BusyThread, ClientProcess, Processes};

/// What is known of all.
#[derive(Debug, Default)]
pub struct Known {
    /// Who has ended.
    pub dead: BTreeSet<u32>,
    /// Who was sent a signal.
    pub signalled: BTreeSet<u32>,
    /// How often it was asked whether somebody has ended: once a look of the watchdog.
    pub looks: BTreeMap<u32, u32>,
    /// Threads that wait for a processor, and how long they have run; none: all run.
    pub waiting: BTreeMap<u32, u64>,
    /// How long threads of the server have waited for a processor, ns.
    pub own_waits: BTreeMap<u32, u64>,
    /// How often it was asked which threads are busy.
    pub busy_looks: u32,
}

#[derive(Debug)]
struct Someone {
    pid: u32,
    known: Arc<Mutex<Known>>,
}

impl ClientProcess for Someone {
    fn pid(&self) -> u32 {
        self.pid
    }
    fn name(&self) -> String {
        "someone".to_owned()
    }
    fn is_gone(&self) -> bool {
        let mut known = self.known.lock().unwrap();
        *known.looks.entry(self.pid).or_default() += 1;
        known.dead.contains(&self.pid)
    }
    fn send_bus(&self) -> Result<(), String> {
        self.known.lock().unwrap().signalled.insert(self.pid);
        Ok(())
    }
    fn send_kill(&self) -> Result<(), String> {
        self.send_bus()
    }
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Everybody(pub Arc<Mutex<Known>>);

impl Processes for Everybody {
    fn client_of(&self, thread: u32) -> Result<Arc<dyn ClientProcess>, String> {
        Ok(Arc::new(Someone { pid: thread, known: Arc::clone(&self.0) }))
    }
    fn pid_of(&self, thread: u32) -> Option<u32> {
        Some(thread)
    }
    fn is_signalled(&self, _thread: u32) -> bool {
        false
    }
    fn all_others_run(&self) -> bool {
        self.0.lock().unwrap().waiting.is_empty()
    }
    fn busy_threads(&self, pid: u32) -> Vec<BusyThread> {
        let mut known = self.0.lock().unwrap();
        known.busy_looks += 1;
        let busy = |ran_ns: &u64| BusyThread { thread: pid, is_runnable: true, ran_ns: *ran_ns };
        known.waiting.get(&pid).map(busy).into_iter().collect()
    }
    fn own_waits(&self) -> BTreeMap<u32, u64> {
        self.0.lock().unwrap().own_waits.clone()
    }
    fn is_dying(&self, _thread: u32) -> bool {
        false
    }
}
