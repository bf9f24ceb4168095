//! Connections to a server, in the clear or by TLS.
//!
//! Invariant: a connection never waits inside of a read or a write; the wait is for its descriptor.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::address::Address;
use super::tls::{Cipher, Tls};

/// How long one address may take to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A connection.
#[derive(Debug)]
pub struct Socket {
    stream: Stream,
    cipher: Option<Box<Cipher>>,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(buffer),
            Stream::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream {
    fn connect(address: &Address) -> io::Result<Stream> {
        match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Unix(stream))
            }
            Address::Tcp { host, port } => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name of the host has no address");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            stream.set_nonblocking(true)?;
                            return Ok(Stream::Tcp(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

impl Socket {
    /// Connects.
    ///
    /// # Errors
    /// Nobody answers there, the name means nothing, or what TLS needs cannot be read.
    pub fn connect(address: &Address, tls: Option<&Tls>) -> io::Result<Socket> {
        let cipher = tls
            .map(|tls| {
                let name = tls.server_name.as_deref().unwrap_or_else(|| address.host());
                Cipher::new(tls.config()?, name).map(Box::new)
            })
            .transpose()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("TLS: {error}")))?;
        Ok(Socket { stream: Stream::connect(address)?, cipher })
    }

    /// Reads what is there; 0: the other end closed.
    ///
    /// # Errors
    /// `WouldBlock`: nothing is there. Any other: the connection is lost.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.cipher {
            None => self.stream.read(buffer),
            Some(cipher) => cipher.read(&mut self.stream, buffer),
        }
    }

    /// Writes what there is room for.
    ///
    /// # Errors
    /// `WouldBlock`: there is none. Any other: the connection is lost.
    pub fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match &mut self.cipher {
            None => self.stream.write(buffer),
            Some(cipher) => cipher.write(&mut self.stream, buffer),
        }
    }

    /// Whether it has something of its own to send.
    pub fn wants_write(&self) -> bool {
        self.cipher.as_ref().is_some_and(|cipher| cipher.wants_write())
    }

    /// Whether it may be read without a wait for its descriptor.
    pub fn may_have_more(&self) -> bool {
        self.cipher.as_ref().is_some_and(|cipher| cipher.may_have_more())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}
