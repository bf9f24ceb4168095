//! A server that answers wrongly: it speaks MessagePack, and what it says is up to the test.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use revfs::env;

/// A request as it came.
pub struct Request {
    pub id: i64,
    pub method: String,
}

/// What a server does with a request: the bytes that it sends. None: it closes the connection.
pub type Script = dyn Fn(&Request) -> Option<Vec<u8>> + Send + Sync;

/// A server until it is dropped.
pub struct Fake {
    stop: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<UnixStream>>>,
    path: std::path::PathBuf,
}

impl Fake {
    /// Sends `greeting` to whoever connects, and then what the script says.
    pub fn start(path: &Path, greeting: Vec<u8>, script: Arc<Script>) -> Fake {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let open: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
        let opened = Arc::clone(&open);
        env::spawn("fake", move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                opened.lock().unwrap().push(stream.try_clone().unwrap());
                let (greeting, script) = (greeting.clone(), Arc::clone(&script));
                // Its end is that of the connection.
                drop(env::spawn("fake-one", move || drop(serve(stream, &greeting, &*script))));
            }
        })
        .unwrap();
        Fake { stop, open, path: path.to_owned() }
    }

    pub fn url(&self) -> String {
        format!("zeo://{}", self.path.display())
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(&self.path));
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn serve(mut stream: UnixStream, greeting: &[u8], script: &Script) -> std::io::Result<()> {
    stream.write_all(greeting)?;
    let mut is_first = true;
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut message = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut message)?;
        if std::mem::take(&mut is_first) {
            continue; // The client's greeting.
        }
        match script(&parse(&message)) {
            Some(bytes) => stream.write_all(&bytes)?,
            None => return Ok(()),
        }
    }
}

/// Takes a request of revfs apart, as far as it is always the same.
fn parse(message: &[u8]) -> Request {
    assert_eq!((message[0], message[1]), (0x94, 0xd3));
    let id = i64::from_be_bytes(message[2..10].try_into().unwrap());
    let len = u32::from_be_bytes(message[12..16].try_into().unwrap()) as usize;
    let method = String::from_utf8(message[16..16 + len].to_vec()).unwrap();
    Request { id, method }
}

/// A frame.
pub fn frame(message: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(message);
    bytes
}

/// An answer with this value, as MessagePack.
pub fn reply(id: i64, flag: u8, value: &[u8]) -> Vec<u8> {
    let mut message = vec![0x94, 0xd3];
    message.extend(id.to_be_bytes());
    message.push(flag);
    message.extend(b"\xa6.reply");
    message.extend(value);
    frame(&message)
}

/// A commit, as it is told.
pub fn invalidation(args: &[u8]) -> Vec<u8> {
    let mut message = b"\x94\x00\x01\xb5invalidateTransaction".to_vec();
    message.extend(args);
    frame(&message)
}

/// Bytes as a value.
pub fn bytes(bytes: &[u8]) -> Vec<u8> {
    let mut value = vec![0xc6];
    value.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
    value.extend(bytes);
    value
}

/// An id as a value.
pub fn id(raw: u64) -> Vec<u8> {
    bytes(&raw.to_be_bytes())
}
