//! TLS to a ZEO server: whom it must be, and who this client is.
//!
//! Invariant: who asked for TLS never talks without, and a server that shows no certificate that is trusted for its name is
//! told nothing. ZEO servers trust certificates that are listed one by one, often signed by themselves; so a certificate that
//! stands in the file of `ca` itself is trusted whatever it is called and however old, as it is the server's alone, and any other must
//! be signed for the name of the server by one that stands there. Files are read anew for each connection, so that
//! certificates may be replaced. Left out on purpose: talking to a server without a look at its certificate.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Largest file of certificates or of a key, bytes: the certificates of a whole system are smaller.
const PEM_BYTES_MAX: u64 = 4 << 20;

/// What a URL says of TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificates to trust, in PEM; none: those of the system.
    pub ca: Option<PathBuf>,
    /// The certificate of this client and its chain, in PEM, and its key; none: it shows none.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must be for, if it is not the host of the URL.
    pub server_name: Option<String>,
}

/// Why there can be no TLS, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError(pub String);

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// One of them cannot be read, or holds something else.
    pub fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (roots, listed) = match &self.ca {
            Some(path) => listed(path)?,
            None => (of_system()?, Vec::new()),
        };
        let chains = (!roots.is_empty()).then(|| {
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()
        });
        let chains = chains.transpose().map_err(|error| TlsError(error.to_string()))?;
        let verifier = Arc::new(Verifier { chains, listed, provider: Arc::clone(&provider) });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError(error.to_string()))?
            .dangerous() // it adds certificates that are listed one by one, and takes nothing away
            .with_custom_certificate_verifier(verifier);
        let config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = certificates(cert)?;
                let wrong = |cause: String| TlsError(format!("{}: {cause}", key.display()));
                check_size(key)?;
                let secret =
                    PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(format!("no key: {error}")))?;
                let unfit = |error| wrong(format!("not the key of {}: {error}", cert.display()));
                builder.with_client_auth_cert(chain, secret).map_err(unfit)?
            }
        };
        Ok(Arc::new(config))
    }
}

fn check_size(path: &Path) -> Result<(), TlsError> {
    let wrong = |cause: String| TlsError(format!("{}: {cause}", path.display()));
    let meta = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
    if !meta.is_file() {
        return Err(wrong("it is no file".to_owned()));
    }
    if meta.len() > PEM_BYTES_MAX {
        return Err(wrong(format!("more than {PEM_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |cause: String| TlsError(format!("{}: {cause}", path.display()));
    check_size(path)?;
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| wrong(format!("no certificates in PEM: {error}")))?;
    if found.is_empty() { Err(wrong("it has no certificate in PEM".to_owned())) } else { Ok(found) }
}

/// The certificates of a file: those that may sign others, and each for itself.
fn listed(path: &Path) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsError> {
    let listed = certificates(path)?;
    let mut roots = RootCertStore::empty();
    // One that cannot be an anchor is still trusted for itself.
    let (_signing, _plain) = roots.add_parsable_certificates(listed.iter().cloned());
    Ok((roots, listed))
}

fn of_system() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let cause = found.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        return Err(TlsError(format!("the system has no certificates to trust{cause}: give the option ca")));
    }
    Ok(roots)
}

/// Trusts what is listed, and what that has signed for the name.
#[derive(Debug)]
struct Verifier {
    chains: Option<Arc<WebPkiServerVerifier>>,
    listed: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.listed.iter().any(|listed| listed == end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let chains = self.chains.as_ref().ok_or(unknown)?;
        chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn cut_off(how: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("TLS: the server ended it, {how}"))
}

/// What goes through a connection, in secret.
#[derive(Debug)]
pub struct Cipher {
    connection: ClientConnection,
    is_full: bool,
    is_heard: bool,
}

impl Cipher {
    /// Begins to talk to a server of this name. Nothing is sent yet.
    ///
    /// # Errors
    /// It is no name.
    pub fn new(config: Arc<ClientConfig>, name: &str) -> Result<Cipher, TlsError> {
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| TlsError(format!("{name} is no name of a server")))?;
        let connection = ClientConnection::new(config, name).map_err(|error| TlsError(error.to_string()))?;
        Ok(Cipher { connection, is_full: false, is_heard: false })
    }

    /// Reads what is there; 0: the other end closed.
    ///
    /// # Errors
    /// As for [`super::socket::Socket::read`].
    pub fn read(&mut self, under: &mut (impl Read + Write), buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        self.is_full = false;
        self.flush(under)?;
        loop {
            match self.connection.reader().read(buffer.get_mut(filled..).unwrap_or_default()) {
                Ok(0) if filled < buffer.len() => return Ok(filled),
                Ok(count) => {
                    filled += count;
                    self.is_heard = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match self.connection.read_tls(under) {
                        // The reader says whether it was closed, or cut off.
                        Ok(_) => self.decipher(under)?,
                        Err(_) if filled > 0 => return Ok(filled),
                        Err(error) => return Err(error),
                    }
                }
                // It comes again when what was read before is taken.
                Err(_) if filled > 0 => return Ok(filled),
                // Whether this client is trusted it learns at last, and from some servers only so.
                Err(error) if !self.is_heard && error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(cut_off("it may not trust this client, whom cert and key name"));
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(cut_off("without a farewell"));
                }
                Err(error) => return Err(error),
            }
            if filled == buffer.len() {
                self.is_full = true;
                return Ok(filled);
            }
        }
    }

    fn decipher(&mut self, under: &mut impl Write) -> io::Result<()> {
        match self.connection.process_new_packets() {
            Ok(_) => self.flush(under),
            Err(error) => {
                // The other end is told why; if it does not take that, the error is all the same.
                let _told = self.flush(under);
                Err(io::Error::new(io::ErrorKind::InvalidData, format!("TLS: {error}")))
            }
        }
    }

    /// Sends what it may; what it may not yet is wanted later.
    fn flush(&mut self, under: &mut impl Write) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(under) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes what there is room for.
    ///
    /// # Errors
    /// As for [`super::socket::Socket::write`].
    pub fn write(&mut self, under: &mut impl Write, buffer: &[u8]) -> io::Result<usize> {
        let count = self.connection.writer().write(buffer)?;
        self.flush(under)?;
        if count == 0 && !buffer.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }

    /// Whether it has to send something of its own.
    pub fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Whether there may be more to read than the connection shows.
    pub fn may_have_more(&self) -> bool {
        self.is_full
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use rustls::{ServerConfig, ServerConnection};

    use super::*;

    /// A server that says `bytes`, and then nothing until the other end closes; and a file that has its certificate.
    fn server(dir: &Path, mut stream: UnixStream, bytes: Vec<u8>) -> PathBuf {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let path = dir.join("server.pem");
        std::fs::write(&path, made.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
        crate::env::spawn("server", move || {
            let mut tls = rustls::Stream::new(&mut connection, &mut stream);
            tls.write_all(&bytes).unwrap();
            // The end of the client ends it, with an error or without.
            let _ended = tls.read(&mut [0; 1]);
        })
        .unwrap();
        path
    }

    #[test]
    fn nothing_stays_in_the_cipher_that_nobody_looks_for() {
        let dir = tempfile::tempdir().unwrap();
        let sent: Vec<u8> = (0..1_000_003u32).map(|number| (number % 251) as u8).collect();
        for step in [1, 1000, 100_000] {
            let (mut here, there) = UnixStream::pair().unwrap();
            let ca = Some(server(dir.path(), there, sent.clone()));
            let config = Tls { ca, ..Tls::default() }.config().unwrap();
            let mut cipher = Cipher::new(config, "localhost").unwrap();
            here.set_nonblocking(true).unwrap();
            let (mut got, mut buffer) = (Vec::new(), vec![0; step]);
            while got.len() < sent.len() {
                match cipher.read(&mut here, &mut buffer) {
                    Ok(count) => got.extend_from_slice(&buffer[..count]),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
                }
                if !cipher.may_have_more() && got.len() < sent.len() {
                    use rustix::event::{PollFd, PollFlags, Timespec, poll};
                    let limit = Timespec::try_from(Duration::from_secs(60)).unwrap();
                    let ready = poll(&mut [PollFd::new(&here, PollFlags::IN)], Some(&limit)).unwrap();
                    assert_eq!(ready, 1, "{} of {} bytes came, in steps of {step}", got.len(), sent.len());
                }
            }
            assert_eq!(got, sent);
        }
    }
}
