//! The client: it watches, and does on each pin what its mode says.
//!
//! Invariant: the main thread alone reads the link and closes it; stdin is served by another one, so that a test can
//! steer while the main thread waits.

use std::fs::File;
use std::io::{BufRead, Error, ErrorKind, Result, Write, stdin};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use revfs_protocol::{Frame, PinTo, ServerMessage};
use rustix::process::{Signal, getpid, kill_process};

use crate::link::{Link, say};
use crate::mapping::Mapping;
use crate::mode::Mode;
use crate::{Args, guard, heir, tell};

/// Watches that are begun and stopped by [`Mode::Churn`].
const CHURNED: u64 = 20_000;
/// A state that never comes.
const NEVER: &str = "7fffffffffffffff";

struct Client {
    mode: Mode,
    link: Link,
    map: Arc<Mapping>,
    /// `watch FILE @REV`.
    watch: String,
    id: String,
    turned: Arc<AtomicBool>,
    /// It has had its first `ok`.
    begun: bool,
    /// It has stopped its watch once.
    dropped: bool,
}

/// Runs to the end.
pub fn run(args: Args) -> Result<()> {
    guard::handle_usr1()?;
    let mount = Path::new(&args.mount);
    let mut id = [0; 16];
    let path = mount.join("head/bigfile").join(&args.file);
    let len = rustix::fs::getxattr(&path, "user.revfs.file", &mut id)?;
    let id = String::from_utf8_lossy(&id[..len]).into_owned();
    let map = Arc::new(Mapping::new(mount, &args.file, id.clone(), args.random)?);
    let link = Link::open(mount, args.thread)?;
    let mode = args.mode;
    match mode {
        Mode::Stubborn => guard::ignore_bus()?,
        _ => guard::die_of_bus()?,
    }
    tell("open");
    let turned = Arc::new(AtomicBool::new(!args.until_turn));
    let steered = Steered {
        mode,
        link: link.weak(),
        map: Arc::clone(&map),
        turned: Arc::clone(&turned),
        id: id.clone(),
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || steered.run())?;
    let watch = format!("watch {id} @{}", args.rev);
    let second = if args.second { Some(Link::open(mount, false)?) } else { None };
    if let Some(second) = &second {
        say(second.file()?, Mode::Obey, &format!("1 {watch}\n"))?;
    }
    let mut client = Client { mode, link, map, watch, id, turned, begun: false, dropped: false };
    if let Err(error) = client.live() {
        tell(&format!("error {error}"));
    }
    // It maps what it has mapped until a test or the server ends it.
    loop {
        std::thread::park();
    }
}

impl Client {
    fn say(&self, text: &str) -> Result<()> {
        say(self.link.file()?, self.mode, text)
    }

    fn live(&mut self) -> Result<()> {
        if self.mode == Mode::Bequeath {
            drop(heir::start(self.link.file()?, &format!("101 {}", self.watch))?);
            let refused = self.link.hear()?.unwrap_or_default();
            tell(&format!("heard {refused}"));
        }
        let watch = format!("1 {}\n", self.watch);
        match self.mode {
            Mode::Bundle => self.say(&format!("{watch}3 hello\n5 nonsense\n"))?,
            Mode::Halves => {
                let (left, right) = watch.split_at(watch.len() / 2);
                self.say(left)?;
                self.say(right)?;
            }
            _ => self.say(&watch)?,
        }
        if self.mode == Mode::Deaf {
            return Ok(());
        }
        while let Some(line) = self.link.hear()? {
            tell(&format!("heard {line}"));
            let frame = Frame::parse(line.as_bytes()).map_err(|error| Error::other(error.to_string()))?;
            let message = ServerMessage::parse(frame.stream, frame.message);
            match message.map_err(|error| Error::other(error.to_string()))? {
                ServerMessage::Pin { blocks, to, .. } => {
                    let blocks = blocks.blocks().map(|block| block.raw()).collect::<Vec<_>>();
                    match self.pinned(frame.stream, &blocks, to) {
                        Ok(true) => {}
                        Ok(false) => return Ok(()),
                        // The server has ended the link meanwhile: what it said last is still there to be read.
                        Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                            tell(&format!("refused {error}"))
                        }
                        Err(error) => return Err(error),
                    }
                }
                ServerMessage::Ok(_) if !self.watched()? => return Ok(()),
                _ => {}
            }
        }
        tell("end");
        Ok(())
    }

    /// Its watch is set up. `false`: it hears no more.
    fn watched(&mut self) -> Result<bool> {
        if std::mem::replace(&mut self.begun, true) {
            return Ok(true);
        }
        match self.mode {
            Mode::Leave => {
                self.link.close();
                tell("closed");
                Ok(false)
            }
            Mode::Flood => self.flood(|_| "3 hello\n".to_owned()),
            Mode::FloodWatches => {
                let id = self.id.clone();
                self.flood(move |_| format!("3 watch {id} @{NEVER}\n"))
            }
            Mode::Churn => self.churn().map(|()| true),
            _ => Ok(true),
        }
    }

    /// Writes frames until that fails.
    fn flood(&mut self, frame: impl Fn(u64) -> String) -> Result<bool> {
        let mut file = self.link.file()?;
        for count in 0.. {
            if let Err(error) = file.write_all(frame(count).as_bytes()) {
                tell(&format!("refused {error}"));
                break;
            }
        }
        Ok(false)
    }

    fn churn(&mut self) -> Result<()> {
        // Of a file that nobody else watches: its own watch is not to be stopped.
        for count in 0..CHURNED {
            let stream = 2 * count + 101;
            let (begin, end) =
                (format!("{stream} watch {NEVER} @{NEVER}\n"), format!("{stream} watch {NEVER} -\n"));
            let mut file = self.link.file()?;
            if count % 2 == 0 {
                file.write_all((begin + &end).as_bytes())?;
            } else {
                file.write_all(begin.as_bytes())?;
                file.write_all(end.as_bytes())?;
            }
            for end in ["the watch was stopped", "ok"] {
                let line = self.link.hear()?.unwrap_or_default();
                if !line.ends_with(end) {
                    return Err(Error::other(format!("{line:?} where {end:?} was to come")));
                }
            }
        }
        tell("churned");
        Ok(())
    }

    /// A pin has come. `false`: it hears no more.
    fn pinned(&mut self, stream: u64, blocks: &[u64], to: PinTo) -> Result<bool> {
        if !self.mode.is_obedient() && self.turned.load(Ordering::SeqCst) {
            return self.fault(stream);
        }
        let follow = || blocks.iter().try_for_each(|block| self.map.follow(*block, &to.to_string()));
        match self.mode {
            Mode::Late if !std::mem::replace(&mut self.dropped, true) => {
                self.say(&format!("3 watch {} -\n", self.id))?;
                self.say(&format!("{stream} ack\n{stream} nak\n{stream} ack\n5 {}\n", self.watch))?;
            }
            Mode::Halves => {
                self.say(&format!("{stream} a"))?;
                follow()?;
                self.say("ck\n")?;
            }
            Mode::Bundle => {
                follow()?;
                self.say(&format!("7 hello\n{stream} ack\n9 hello\n"))?;
            }
            Mode::Twice => {
                follow()?;
                self.say(&format!("{stream} ack\n"))?;
                self.say(&format!("{stream} ack\n"))?;
            }
            _ => {
                follow()?;
                self.say(&format!("{stream} ack\n"))?;
            }
        }
        Ok(true)
    }

    /// Misbehaves on a pin. `false`: it hears no more.
    fn fault(&mut self, stream: u64) -> Result<bool> {
        match self.mode {
            Mode::Close => {
                self.link.close();
                tell("closed");
                return Ok(false);
            }
            mode => fault(mode, self.link.file()?, stream)?,
        }
        Ok(true)
    }
}

/// Does what a mode does on a pin, but for closing the link.
fn fault(mode: Mode, file: &File, stream: u64) -> Result<()> {
    match mode {
        Mode::Exit | Mode::Bequeath => {
            tell("exiting");
            std::process::exit(0);
        }
        Mode::Nak => say(file, mode, &format!("{stream} nak\n")),
        Mode::Garbage => say(file, mode, "zzz hello\n"),
        Mode::Stray => say(file, mode, &format!("{} ack\n", stream + 100)),
        Mode::Long => say(file, mode, &format!("1 {}\n", "x".repeat(300))),
        Mode::Stop => {
            tell("stopping");
            Ok(kill_process(getpid(), Signal::STOP)?)
        }
        _ => Ok(()),
    }
}

/// Serves stdin.
struct Steered {
    mode: Mode,
    link: Weak<File>,
    map: Arc<Mapping>,
    turned: Arc<AtomicBool>,
    id: String,
}

impl Steered {
    fn run(self) {
        for line in stdin().lock().lines() {
            let Ok(line) = line else { break };
            if let Err(error) = self.obey(&line) {
                tell(&format!("error {error}"));
            }
        }
        std::process::exit(0);
    }

    fn obey(&self, line: &str) -> Result<()> {
        let link = || self.link.upgrade().ok_or_else(|| Error::other("the link is closed"));
        match line.split_once(' ').unwrap_or((line, "")) {
            ("turn", "") => {
                self.turned.store(true, Ordering::SeqCst);
                tell("turned");
            }
            ("fault", "") => fault(self.mode, &*link()?, 2)?,
            ("say", frame) => say(&*link()?, Mode::Obey, &format!("{}\n", frame.replace("FILE", &self.id)))?,
            ("touch", block) => self.touch(block.parse().map_err(Error::other)?)?,
            ("look", "") => {
                let bytes = (0..self.map.blocks()).map(|block| format!(" {}", self.map.first_byte(block)));
                tell(&format!("sees{}", bytes.collect::<String>()));
            }
            ("quit", "") => std::process::exit(0),
            _ => return Err(Error::other(format!("{line:?} is no command"))),
        }
        Ok(())
    }

    fn touch(&self, block: usize) -> Result<()> {
        let map = Arc::clone(&self.map);
        let body = move || {
            tell("touching");
            let value = map.first_byte(block);
            tell(&format!("touched {block} {value}"));
        };
        std::thread::Builder::new().name("touch".to_owned()).spawn(body)?;
        Ok(())
    }
}
