//! The URL of a ZEO server, and connections to where it says.
//!
//! Invariant: a connection never waits inside of a read or a write; the wait is for its descriptor.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::error::ZeoError;

/// The name of a storage that is not named, as ZEO has it.
const STORAGE_DEFAULT: &str = "1";
/// Longest name of a storage, bytes.
const STORAGE_BYTES_MAX: usize = 1024;
/// The port of a server that is not named.
const PORT_DEFAULT: u16 = 8100;
/// How long one address may take to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait that a URL can ask for, seconds.
const WAIT_SECONDS_MAX: u64 = 86_400;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host and a port.
    Tcp {
        /// Its name or number.
        host: String,
        /// Its port.
        port: u16,
    },
    /// A socket of this machine.
    Unix(PathBuf),
}

/// What a URL says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZeoUrl {
    /// Where the server is.
    pub address: Address,
    /// Name of the storage on it.
    pub storage: String,
    /// How long answers are waited for, if it says so.
    pub wait_timeout: Option<Duration>,
    /// Options that mean nothing here, in their order.
    pub ignored: Vec<String>,
}

impl ZeoUrl {
    /// Takes a URL apart: `zeo://[HOST][:PORT][?OPTIONS]`, or `zeo:///PATH[?OPTIONS]` for a socket. An empty host is this
    /// machine. Options: `storage`, `wait_timeout` (seconds).
    ///
    /// # Errors
    /// It is none.
    pub fn parse(url: &str) -> Result<ZeoUrl, ZeoError> {
        let wrong = |what: String| ZeoError::Url { url: url.to_owned(), what };
        let rest =
            url.strip_prefix("zeo://").ok_or_else(|| wrong("it does not begin with zeo://".to_owned()))?;
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut parsed = ZeoUrl {
            address: address(place).map_err(&wrong)?,
            storage: STORAGE_DEFAULT.to_owned(),
            wait_timeout: None,
            ignored: Vec::new(),
        };
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let value = decoded(value).ok_or_else(|| wrong(format!("the option {name} is spelt wrongly")))?;
            match name {
                "storage" if !value.is_empty() && value.len() <= STORAGE_BYTES_MAX => parsed.storage = value,
                "storage" => return Err(wrong("the name of its storage is empty or too long".to_owned())),
                "wait_timeout" => {
                    let seconds =
                        value.parse().ok().filter(|seconds| (1..=WAIT_SECONDS_MAX).contains(seconds));
                    let seconds =
                        seconds.ok_or_else(|| wrong(format!("{value} is no wait_timeout in seconds")))?;
                    parsed.wait_timeout = Some(Duration::from_secs(seconds));
                }
                // Not to be passed over: who asks for it does not want to talk without.
                "ssl" | "tls" | "ca" | "cert" | "key" => {
                    return Err(wrong(format!("it asks for TLS ({name}), which is not supported yet")));
                }
                other => parsed.ignored.push(other.to_owned()),
            }
        }
        Ok(parsed)
    }
}

fn address(place: &str) -> Result<Address, String> {
    if place.starts_with('/') {
        let path = decoded(place).ok_or("the path of its socket is spelt wrongly")?;
        return Ok(Address::Unix(PathBuf::from(path)));
    }
    let place = match place.split_once('/') {
        None | Some((_, "")) => place.trim_end_matches('/'),
        Some(_) => return Err("it has a path behind the port".to_owned()),
    };
    // An address of IPv6 stands in brackets, for it has colons itself.
    let (host, port) = match place.strip_prefix('[').map(|inner| inner.split_once(']')) {
        Some(Some((host, port))) => (host, port.strip_prefix(':').or(port.is_empty().then_some(""))),
        Some(None) => return Err("a bracket is not closed".to_owned()),
        None => place.rsplit_once(':').map_or((place, Some("")), |(host, port)| (host, Some(port))),
    };
    let port = port.ok_or("behind the bracket stands no port")?;
    let port = match port {
        "" => PORT_DEFAULT,
        port => port.parse().ok().filter(|port| *port != 0).ok_or_else(|| format!("{port} is no port"))?,
    };
    let host = if host.is_empty() { "localhost" } else { host };
    if host.contains(|c: char| c.is_whitespace() || c == '@') {
        return Err(format!("{host} is no host"));
    }
    Ok(Address::Tcp { host: host.to_owned(), port })
}

/// Undoes `%XX`.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(u8::try_from(digit()? << 4 | digit()?).ok()?);
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// A connection.
#[derive(Debug)]
pub enum Socket {
    /// By TCP.
    Tcp(TcpStream),
    /// By a socket of this machine.
    Unix(UnixStream),
}

impl Socket {
    /// Connects.
    ///
    /// # Errors
    /// Nobody answers there, or the name means nothing.
    pub fn connect(address: &Address) -> io::Result<Socket> {
        match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Ok(Socket::Unix(stream))
            }
            Address::Tcp { host, port } => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name of the host has no address");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            stream.set_nonblocking(true)?;
                            return Ok(Socket::Tcp(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    /// Reads what is there; 0: the other end closed.
    ///
    /// # Errors
    /// `WouldBlock`: nothing is there. Any other: the connection is lost.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read(buffer),
            Socket::Unix(stream) => stream.read(buffer),
        }
    }

    /// Writes what there is room for.
    ///
    /// # Errors
    /// `WouldBlock`: there is none. Any other: the connection is lost.
    pub fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write(buffer),
            Socket::Unix(stream) => stream.write(buffer),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn urls_of_servers_are_taken_apart() {
        let cases = [
            ("zeo://localhost:9001", tcp("localhost", 9001)),
            ("zeo://:26518", tcp("localhost", 26518)),
            ("zeo://db.example.org", tcp("db.example.org", 8100)),
            ("zeo://db/", tcp("db", 8100)),
            ("zeo://[::1]:9001", tcp("::1", 9001)),
            ("zeo://[::1]", tcp("::1", 8100)),
            ("zeo:///run/zeo%20x.sock", Address::Unix(PathBuf::from("/run/zeo x.sock"))),
        ];
        for (url, address) in cases {
            let parsed = ZeoUrl::parse(url).unwrap();
            assert_eq!((parsed.address, parsed.storage.as_str()), (address, "1"), "{url}");
        }
        let parsed =
            ZeoUrl::parse("zeo://h:1?storage=m%61in&wait_timeout=7&connection_pool_size=3&wait").unwrap();
        assert_eq!((parsed.storage.as_str(), parsed.wait_timeout), ("main", Some(Duration::from_secs(7))));
        assert_eq!(parsed.ignored, ["connection_pool_size", "wait"]);
    }

    #[test]
    fn what_is_no_url_of_a_server_says_why() {
        for url in [
            "file:///x",
            "zeo://h:0",
            "zeo://h:x",
            "zeo://h:65536",
            "zeo://h:1/x",
            "zeo://[::1",
            "zeo://[::1]x",
            "zeo://a b:1",
            "zeo://u@h:1",
            "zeo://h:1?storage=",
            "zeo://h:1?storage=%zz",
            "zeo://h:1?wait_timeout=0",
            "zeo://h:1?ssl=1",
            "zeo:///%00",
        ] {
            let error = ZeoUrl::parse(url).unwrap_err().to_string();
            assert!(error.contains(url) && error.contains("zeo://HOST:PORT"), "{error}");
        }
    }
}
