//! The real ZEO server by TLS: who is trusted, and that nobody else is told anything.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use revfs::store::zodb::zeo::{ZeoError, ZeoOptions, ZeoStorage};
use revfs_protocol::{FileId, Tid};

use crate::checks::{bytes_of, check};
use crate::live::{Place, no_fuse, wait_until};
use crate::python::python;
use crate::server::{CODINGS, ZeoServer, storage, store_on};
use crate::{LONG, sample};

const SHORT: Duration = Duration::from_millis(1500);

/// A certificate that signs others.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    fn new(dir: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let file = dir.join(format!("{name}.pem"));
        fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { issuer: Issuer::new(params, key), file }
    }

    /// A certificate for a name, and its key, in one file.
    fn sign(&self, dir: &Path, file: &str, name: &str) -> PathBuf {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let path = dir.join(file);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(&path, cert.pem() + &key.serialize_pem()).unwrap();
        path
    }
}

/// One that is signed by itself, as `openssl req -x509` makes it: it may sign others too. With its key in one file.
fn by_itself(dir: &Path, file: &str, name: &str) -> (PathBuf, PathBuf) {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    let (public, both) = (dir.join(format!("{file}-public.pem")), dir.join(format!("{file}.pem")));
    fs::write(&public, cert.pem()).unwrap();
    fs::write(&both, cert.pem() + &key.serialize_pem()).unwrap();
    (public, both)
}

fn refused(url: &str) -> String {
    let options = ZeoOptions { wait_limit: SHORT, ..ZeoOptions::default() };
    let error = ZeoStorage::open(url, options).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(url), "{text}");
    text
}

#[test]
fn every_block_is_read_by_tls_also_after_another_certificate() {
    const NAME: &str = "every_block_is_read_by_tls_also_after_another_certificate";
    let Some(python) = python(NAME) else { return };
    for coding in CODINGS {
        let dir = tempfile::tempdir().unwrap();
        let (database, socket) = (dir.path().join("Data.fs"), dir.path().join("zeo.sock"));
        let Some(manifest) = sample(NAME, &database) else { return };
        let authority = Authority::new(dir.path(), "authority");
        let client = authority.sign(dir.path(), "client.pem", "client");
        let identity = authority.sign(dir.path(), "server.pem", "localhost");
        let start =
            || ZeoServer::start_tls(&python, &database, &socket, (coding, &identity, &authority.file));
        let server = start();
        let url = format!("{}?ca={}&cert={}", server.url(), authority.file.display(), client.display());
        // It keeps nothing: what is read later is asked for again.
        let options = ZeoOptions { wait_limit: LONG, cache_bytes: 0, ..ZeoOptions::default() };
        let store = store_on(Arc::new(ZeoStorage::open(&url, options).unwrap()));
        let head = *manifest.tids.last().unwrap();
        assert_eq!(store.head(), head);
        let compare = |store| {
            let mut checked = 0;
            for at in &manifest.tids {
                for (name, (oid, _)) in &manifest.files {
                    let bytes = bytes_of(store, FileId::from(*oid), *at).unwrap_or_default();
                    checked += check(&manifest, name, *at, &bytes);
                }
            }
            assert!(checked > 100, "{checked}");
        };
        compare(&store);
        // Its certificate is replaced, and that of the client too: each connection takes those that are there.
        server.kill();
        authority.sign(dir.path(), "server.pem", "localhost");
        authority.sign(dir.path(), "client.pem", "client");
        let _server = start();
        compare(&store);
        // A path may be relative, and `revfs` is served as the library is.
        let url = format!("zeo://{}?tls=1&ca=authority.pem&cert=client.pem", socket.display());
        let listed = Command::new(env!("CARGO_BIN_EXE_revfs"))
            .args(["ls", &url])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&listed.stdout);
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        assert!(!text.trim().is_empty(), "{text}");
    }
}

/// Relative paths are those of who mounts it, also for a server in the background, and long after that.
#[test]
fn a_mount_by_tls_goes_on_after_another_certificate() {
    const NAME: &str = "a_mount_by_tls_goes_on_after_another_certificate";
    let Some(python) = python(NAME) else { return };
    if no_fuse(NAME) {
        return;
    }
    let place = Place::empty();
    let (dir, database, socket) = (place.root(), place.path("Data.fs"), place.path("zeo.sock"));
    let Some(manifest) = sample(NAME, &database) else { return };
    let authority = Authority::new(dir, "authority");
    authority.sign(dir, "client.pem", "client");
    let identity = authority.sign(dir, "server.pem", "localhost");
    let start = || ZeoServer::start_tls(&python, &database, &socket, ("msgpack", &identity, &authority.file));
    let server = start();
    let url = format!("zeo://{}?ca=authority.pem&cert=client.pem&wait_timeout=30", socket.display());
    // It keeps nothing: what is read later is asked for again.
    let live = place.mount_store(&url, "m", &["--cache", "0"]);
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", live.pid())).unwrap(), Path::new("/"));
    let head = *manifest.tids.last().unwrap();
    assert_eq!(live.at(), head.to_string());
    let compare = |at: Tid| {
        let mut checked = 0;
        for (name, (oid, _)) in &manifest.files {
            let path = live.rev(&at.to_string(), &FileId::from(*oid).to_string());
            checked += fs::read(path).map_or(0, |bytes| check(&manifest, name, at, &bytes));
        }
        assert!(checked > 0, "@{at}");
    };
    compare(head);
    server.kill();
    wait_until("it is told", || place.ok(&["status", "m"]).contains("does not answer"));
    authority.sign(dir, "server.pem", "localhost");
    authority.sign(dir, "client.pem", "client");
    let _server = start();
    wait_until("the server is found again", || !place.ok(&["status", "m"]).contains("does not answer"));
    compare(manifest.tids[manifest.tids.len() / 2]);
    place.ok(&["umount", "m"]);
    place.expect_nothing_left();
}

#[test]
fn who_is_not_trusted_is_told_nothing() {
    const NAME: &str = "who_is_not_trusted_is_told_nothing";
    let Some(python) = python(NAME) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (database, socket) = (dir.path().join("Data.fs"), dir.path().join("zeo.sock"));
    if sample(NAME, &database).is_none() {
        return;
    }
    let [authority, other] = ["authority", "other"].map(|name| Authority::new(dir.path(), name));
    let server = authority.sign(dir.path(), "server.pem", "db.example.org");
    let client = authority.sign(dir.path(), "client.pem", "client");
    let foreign = other.sign(dir.path(), "foreign.pem", "client");
    let running = ZeoServer::start_tls(&python, &database, &socket, ("pickle", &server, &authority.file));
    let url = |options: &[(&str, &Path)]| {
        let options: Vec<String> =
            options.iter().map(|(name, value)| format!("{name}={}", value.display())).collect();
        format!("{}?{}", running.url(), options.join("&"))
    };
    let (name, ca, cert) =
        (("server_name", Path::new("db.example.org")), ("ca", &*authority.file), ("cert", &*client));
    drop(storage(&url(&[name, ca, cert]), LONG));
    for (options, text) in [
        // The server is not who it should be.
        (&[ca, cert][..], "localhost"),
        (&[("server_name", Path::new("db.example.com")), ca, cert], "db.example.com"),
        (&[name, ("ca", &other.file), cert], "UnknownIssuer"),
        (&[name, ("tls", Path::new("1")), cert], "UnknownIssuer"),
        // The client is not who it should be.
        (&[name, ca], "may not trust this client"),
        (&[name, ca, ("cert", &foreign)], "TLS: "),
    ] {
        let error = refused(&url(options));
        assert!(error.contains(text), "{options:?}: {error}");
    }
    // Without TLS.
    let error = refused(&running.url());
    assert!(error.contains("closed") || error.contains("does not answer"), "{error}");
}

#[test]
fn a_certificate_that_is_listed_is_trusted_for_itself_alone() {
    const NAME: &str = "a_certificate_that_is_listed_is_trusted_for_itself_alone";
    let Some(python) = python(NAME) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (database, socket) = (dir.path().join("Data.fs"), dir.path().join("zeo.sock"));
    if sample(NAME, &database).is_none() {
        return;
    }
    let (server, identity) = by_itself(dir.path(), "server", "zeo");
    let (client, client_identity) = by_itself(dir.path(), "client", "client");
    // The same name, and another key.
    let (impostor, _) = by_itself(dir.path(), "impostor", "zeo");
    let running = ZeoServer::start_tls(&python, &database, &socket, ("msgpack", &identity, &client));
    let url = |ca: &Path| format!("{}?ca={}&cert={}", running.url(), ca.display(), client_identity.display());
    drop(storage(&url(&server), LONG));
    let error = refused(&url(&impostor));
    assert!(error.contains("TLS: invalid peer certificate"), "{error}");
}

#[test]
fn what_tls_needs_and_is_not_there_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    let cert = authority.sign(dir.path(), "a.pem", "a");
    let stranger = authority.sign(dir.path(), "b.pem", "b");
    let empty = dir.path().join("empty.pem");
    fs::write(&empty, "nothing\n").unwrap();
    let large = dir.path().join("large.pem");
    fs::File::create(&large).unwrap().set_len(1 << 40).unwrap();
    let absent = dir.path().join("absent.pem");
    let ca = authority.file.display();
    for (options, text) in [
        (format!("ca={}", absent.display()), "absent.pem"),
        (format!("ca={}", dir.path().display()), "it is no file"),
        (format!("ca={}", empty.display()), "no certificate"),
        (format!("ca={}", large.display()), "more than"),
        (format!("ca={ca}&cert={}&key={}", cert.display(), empty.display()), "no key"),
        (format!("ca={ca}&cert={}&key={}", cert.display(), stranger.display()), "not the key of"),
        (format!("ca={ca}&cert={ca}"), "no key"),
    ] {
        let error =
            ZeoStorage::open(&format!("zeo:///nowhere?{options}"), ZeoOptions::default()).unwrap_err();
        assert!(matches!(error, ZeoError::Tls { .. }), "{error:?}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

/// A server that says what it likes to who begins with TLS; answers what it was told.
fn plain_server(dir: &Path, says: &'static [u8]) -> (PathBuf, mpsc::Receiver<Vec<u8>>) {
    let socket = dir.join("plain.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (told, heard) = mpsc::channel();
    let serve = move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut hello = vec![0; 1 << 16];
            let count = stream.read(&mut hello).unwrap_or(0);
            hello.truncate(count);
            let _ = stream.write_all(says);
            // The end of the test lets it go.
            if told.send(hello).is_err() {
                return;
            }
        }
    };
    revfs::env::spawn("plain", serve).unwrap();
    (socket, heard)
}

#[test]
fn a_server_without_tls_is_told_a_greeting_of_tls_and_no_more() {
    for says in [&b"\0\0\0\x02Z5"[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x16\x03\x03\xff\xff", b""] {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new(dir.path(), "authority");
        let (socket, heard) = plain_server(dir.path(), says);
        let error = refused(&format!("zeo://{}?ca={}", socket.display(), authority.file.display()));
        assert!(error.contains("TLS") || error.contains("lost"), "{says:?}: {error}");
        // A record of a handshake, and in it the hello of a client.
        let hello = heard.recv_timeout(LONG).unwrap();
        assert_eq!((hello[0], hello[5]), (22, 1), "{hello:?}");
        assert!(!hello.windows(8).any(|window| window == b"register"));
    }
}
