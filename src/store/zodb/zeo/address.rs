//! The URL of a ZEO server.
//!
//! Invariant: an option that asks for TLS is never passed over.

use std::path::PathBuf;
use std::time::Duration;

use super::error::ZeoError;
use super::tls::Tls;

/// The name of a storage that is not named, as ZEO has it.
const STORAGE_DEFAULT: &str = "1";
/// Longest name of a storage, bytes.
const STORAGE_BYTES_MAX: usize = 1024;
/// The port of a server that is not named.
const PORT_DEFAULT: u16 = 8100;
/// The host of a server that is not named.
const HOST_DEFAULT: &str = "localhost";
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

impl Address {
    /// The name of the machine.
    pub fn host(&self) -> &str {
        match self {
            Address::Tcp { host, .. } => host,
            Address::Unix(_) => HOST_DEFAULT,
        }
    }
}

/// What a URL says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZeoUrl {
    /// Where the server is.
    pub address: Address,
    /// Name of the storage on it.
    pub storage: String,
    /// TLS, if it asks for it.
    pub tls: Option<Tls>,
    /// How long answers are waited for, if it says so.
    pub wait_timeout: Option<Duration>,
    /// Options that mean nothing here, in their order.
    pub ignored: Vec<String>,
}

impl ZeoUrl {
    /// Takes a URL apart: `zeo://[HOST][:PORT][?OPTIONS]`, or `zeo:///PATH[?OPTIONS]` for a socket. An empty host is this
    /// machine. Options: `storage`, `wait_timeout` (seconds); `tls`, `ca`, `cert`, `key` and `server_name`, see [`Tls`], of
    /// which each asks for TLS. Paths may be relative to the working folder.
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
            tls: None,
            wait_timeout: None,
            ignored: Vec::new(),
        };
        let mut tls = TlsOptions::default();
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
                "ssl" | "tls" | "ca" | "cert" | "key" | "server_name" => {
                    tls.set(name, value).map_err(&wrong)?;
                }
                other => parsed.ignored.push(other.to_owned()),
            }
        }
        parsed.tls = tls.finish().map_err(wrong)?;
        Ok(parsed)
    }
}

/// Options of TLS, as they come.
#[derive(Default)]
struct TlsOptions {
    asked: Option<bool>,
    is_used: bool,
    tls: Tls,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl TlsOptions {
    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        if matches!(name, "ssl" | "tls") {
            self.asked = Some(match value.as_str() {
                "" | "1" | "true" | "yes" | "on" => true,
                "0" | "false" | "no" | "off" => false,
                other => return Err(format!("{name}={other} is neither yes nor no")),
            });
            return Ok(());
        }
        if value.is_empty() {
            return Err(format!("the option {name} is empty"));
        }
        self.is_used = true;
        if name == "server_name" {
            self.tls.server_name = Some(value);
            return Ok(());
        }
        // A server in the background works in another folder, and reads them again.
        let path = std::path::absolute(&value).map_err(|error| format!("{name}={value}: {error}"))?;
        match name {
            "ca" => self.tls.ca = Some(path),
            "cert" => self.cert = Some(path),
            _ => self.key = Some(path),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Option<Tls>, String> {
        if self.asked == Some(false) && self.is_used {
            return Err("it says that it wants no TLS, and has options for it".to_owned());
        }
        if !self.is_used && self.asked != Some(true) {
            return Ok(None);
        }
        self.tls.identity = match (self.cert, self.key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            // As often in ZEO, one file has both.
            (Some(cert), None) => Some((cert.clone(), cert)),
            (None, Some(_)) => return Err("it has a key and no cert".to_owned()),
            (None, None) => None,
        };
        Ok(Some(self.tls))
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
    let host = if host.is_empty() { HOST_DEFAULT } else { host };
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
    fn each_option_of_tls_asks_for_it() {
        let tls = |options: &str| ZeoUrl::parse(&format!("zeo://h:1?{options}")).unwrap().tls;
        let path = |text: &str| Some(PathBuf::from(text));
        for none in ["", "tls=0", "ssl=no", "storage=x"] {
            assert_eq!(tls(none), None, "{none}");
        }
        for plain in ["tls", "tls=1", "ssl=yes", "storage=x&ssl=true"] {
            assert_eq!(tls(plain), Some(Tls::default()), "{plain}");
        }
        assert_eq!(tls("ca=/a%20b").unwrap().ca, path("/a b"));
        assert_eq!(tls("server_name=db").unwrap().server_name.as_deref(), Some("db"));
        let (cert, key) = (PathBuf::from("/c"), PathBuf::from("/k"));
        assert_eq!(tls("key=/k&cert=/c").unwrap().identity, Some((cert.clone(), key)));
        assert_eq!(tls("cert=/c&tls=1").unwrap().identity, Some((cert.clone(), cert)));
        let relative = tls("ca=x.pem").unwrap().ca.unwrap();
        assert_eq!(relative, std::env::current_dir().unwrap().join("x.pem"));
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
            "zeo://h:1?tls=maybe",
            "zeo://h:1?tls=0&ca=/x",
            "zeo://h:1?ca=",
            "zeo://h:1?key=/k",
            "zeo:///%00",
        ] {
            let error = ZeoUrl::parse(url).unwrap_err().to_string();
            assert!(error.contains(url) && error.contains("zeo://HOST:PORT"), "{error}");
        }
    }
}
