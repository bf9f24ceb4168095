//! A process that uses the client library: what it does may end in a fault, and it may fork.
//!
//! The child is this test program again, running only [`uses_the_client_library`] with the mount and the
//! name of the file `a` there in its environment.
//! Each question is a line, and so is its answer.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use crate::live::{Guarded, SOON, end_of};
use crate::stage::{BLOCK, Stage};
use revfs_client::{ClientError, Conn, Mapping};
use rustix::process::{Pid, WaitOptions, waitpid};

const MOUNT: &str = "REVFS_TEST_CLIENT_OF";
const FILE: &str = "REVFS_TEST_CLIENT_FILE";
const MARK: &str = "client: ";
/// Blocks that it maps.
pub const BLOCKS: usize = 4;

/// The child.
pub struct ClientChild {
    child: Guarded,
    ask: ChildStdin,
    answers: Receiver<String>,
}

impl ClientChild {
    pub fn start(stage: &Stage) -> ClientChild {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["child::uses_the_client_library", "--exact", "--nocapture", "--test-threads=1"]);
        command.env(MOUNT, stage.live.root()).env(FILE, stage.name("a"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = Guarded(command.spawn().unwrap());
        let ask = child.0.stdin.take().unwrap();
        let stdout = BufReader::new(child.0.stdout.take().unwrap());
        let (sender, answers) = channel();
        let read = move || {
            for line in stdout.lines().map_while(Result::ok) {
                let Some((_, text)) = line.split_once(MARK) else { continue };
                if sender.send(text.to_owned()).is_err() {
                    break;
                }
            }
        };
        revfs::env::spawn("answers", read).unwrap();
        ClientChild { child, ask, answers }
    }

    /// Asks; its answer, or `gone` if that ended it.
    pub fn ask(&mut self, question: &str) -> String {
        use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
        if writeln!(self.ask, "{question}").is_err() {
            return "gone".to_owned();
        }
        match self.answers.recv_timeout(SOON) {
            Ok(answer) => answer,
            Err(Disconnected) => "gone".to_owned(),
            Err(Timeout) => panic!("{question}: no answer"),
        }
    }

    /// The signal that ended it.
    pub fn ended_by(mut self) -> Option<i32> {
        end_of(&mut self.child.0, SOON).signal()
    }
}

unsafe extern "C" {
    fn fork() -> i32;
    fn _exit(code: i32) -> !;
    fn signal(number: i32, handler: usize) -> usize;
}

/// Reads a byte of a mapping in a fork; how that ends.
fn read_in_fork(mapping: &Mapping, block: usize) -> String {
    let address = mapping.as_ptr().wrapping_add(block * BLOCK);
    // SAFETY: the child does nothing but reading a byte, which may be a fault, and ends.
    let pid = unsafe { fork() };
    if pid == 0 {
        // SAFETY: that it faults is what is tested.
        unsafe { _exit(i32::from(address.read_volatile())) }
    }
    let pid = Pid::from_raw(pid).filter(|_| pid > 0).unwrap();
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    match status.terminating_signal() {
        Some(signal) => format!("signal {signal}"),
        None => format!("exit {:?}", status.exit_status()),
    }
}

/// Where it works.
struct Place {
    root: PathBuf,
    file: String,
}

/// What it has: a connection, and a mapping of the file.
struct Client {
    conn: Arc<Conn>,
    mapping: Mapping,
}

impl Client {
    fn open(place: &Place, at: Option<&str>) -> Result<Client, ClientError> {
        let conn = Conn::open(&place.root, at.map(|at| at.parse().unwrap()))?;
        let mapping = conn.file(place.file.as_bytes())?.map(0, (BLOCKS * BLOCK) as u64)?;
        Ok(Client { conn, mapping })
    }

    /// The first byte of each block.
    fn look(&self) -> Result<String, ClientError> {
        let first = |bytes: &[u8]| bytes.iter().step_by(BLOCK).map(|byte| format!(" {byte}")).collect();
        self.mapping.with_bytes(|bytes| -> String { first(bytes) }).map(|values| format!("sees{values}"))
    }
}

fn answer(clients: &mut Vec<Client>, place: &Place, question: &str) -> Result<String, ClientError> {
    let words: Vec<&str> = question.split(' ').collect();
    if let ["open", rest @ ..] = &words[..] {
        clients.push(Client::open(place, rest.first().copied())?);
        return clients[clients.len() - 1].look();
    }
    let client = &clients[words[1].parse::<usize>().unwrap()];
    match words[..] {
        ["look", _] => return client.look(),
        ["is-up", _] => drop(client.conn.file(place.file.as_bytes())?),
        ["resync", _, at] => client.conn.resync(at.parse().unwrap())?,
        ["close", _] => client.conn.close()?,
        ["close-file", _] => client.mapping.file().close()?,
        ["fork", _, block] => return Ok(read_in_fork(&client.mapping, block.parse().unwrap())),
        ["touch", _, block] => {
            let address = client.mapping.as_ptr().wrapping_add(block.parse::<usize>().unwrap() * BLOCK);
            // SAFETY: readable unless the mapping is lost; that it faults then is what is tested.
            return Ok(format!("touched {}", unsafe { address.read_volatile() }));
        }
        _ => panic!("{question:?} is no question"),
    }
    Ok("done".to_owned())
}

#[test]
fn uses_the_client_library() {
    let Some(root) = std::env::var_os(MOUNT) else { return };
    let place = Place { root: root.into(), file: std::env::var(FILE).unwrap() };
    // A fault ends it at once, as it ends programs in C.
    for number in [rustix::process::Signal::BUS, rustix::process::Signal::SEGV] {
        // SAFETY: the default handler.
        unsafe { signal(number.as_raw(), 0) };
    }
    let mut clients = Vec::new();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let answer = answer(&mut clients, &place, &line).unwrap_or_else(|error| format!("error {error}"));
        println!("{MARK}{answer}");
    }
    // Nothing of it is left that could end in a panic of the harness.
    std::process::exit(0);
}
