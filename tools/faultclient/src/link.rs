//! The watch link: frames out, in the way that is asked for, and lines in.
//!
//! Invariant: there is one descriptor of the link, which [`Link::close`] closes; others have it for moments only.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::path::Path;
use std::sync::{Arc, Weak};

use crate::mode::Mode;
use crate::tell;

/// The link, for who reads it.
pub struct Link {
    file: Option<Arc<File>>,
    lines: Vec<u8>,
}

impl Link {
    /// Opens `head/watch`, maybe by a thread that ends then.
    pub fn open(mount: &Path, by_thread: bool) -> Result<Link> {
        let path = mount.join("head/watch");
        let open = move || File::options().read(true).write(true).open(path);
        let file = match by_thread {
            false => open()?,
            true => {
                let opener = std::thread::Builder::new().name("opener".to_owned()).spawn(open)?;
                opener.join().map_err(|_| Error::other("the opener panicked"))??
            }
        };
        Ok(Link { file: Some(Arc::new(file)), lines: Vec::new() })
    }

    /// For those who write a frame now and then.
    pub fn weak(&self) -> Weak<File> {
        self.file.as_ref().map(Arc::downgrade).unwrap_or_default()
    }

    /// The descriptor.
    pub fn file(&self) -> Result<&File> {
        self.file.as_deref().ok_or_else(|| Error::other("the link is closed"))
    }

    /// Closes it.
    pub fn close(&mut self) {
        self.file = None;
    }

    /// The next line; `None` at the end. Says `interrupted` when a signal ended a read.
    pub fn hear(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.lines.iter().position(|byte| *byte == b'\n') {
                let rest = self.lines.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.lines, rest);
                line.pop();
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            let mut buffer = [0; 4096];
            match self.file()?.read(&mut buffer) {
                Ok(0) if self.lines.is_empty() => return Ok(None),
                Ok(0) => return Err(Error::other("half a frame at the end")),
                Ok(count) => self.lines.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => tell("interrupted"),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Writes bytes and says so.
pub fn say(mut file: &File, mode: Mode, text: &str) -> Result<()> {
    match mode {
        Mode::Bytes => {
            for byte in text.as_bytes() {
                file.write_all(std::slice::from_ref(byte))?;
            }
        }
        _ => file.write_all(text.as_bytes())?,
    }
    tell(&format!("said {}", text.escape_default()));
    Ok(())
}
