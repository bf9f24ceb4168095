//! The real ZEO server, as a process of its own.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use revfs::store::Store;
use revfs::store::zodb::Database;
use revfs::store::zodb::zeo::{ZeoOptions, ZeoStorage};

use crate::live::wait_until;

/// How its messages are spelt.
pub const CODINGS: [&str; 2] = ["pickle", "msgpack"];

/// A server that ends with this.
pub struct ZeoServer {
    child: Child,
    socket: PathBuf,
}

impl ZeoServer {
    /// Serves a FileStorage at a socket, and answers once this returns.
    pub fn start(python: &Path, database: &Path, socket: &Path, coding: &str) -> ZeoServer {
        let mut command = Command::new(python);
        command.args(["-m", "ZEO.runzeo", "-a"]).arg(socket).arg("-f").arg(database);
        command.current_dir(database.parent().unwrap());
        ZeoServer::spawn(command, socket, coding)
    }

    /// The same by TLS: with a certificate and its key in one file, for clients with one that a file trusts.
    pub fn start_tls(
        python: &Path,
        database: &Path,
        socket: &Path,
        (coding, identity, clients): (&str, &Path, &Path),
    ) -> ZeoServer {
        let config = socket.with_extension("conf");
        let [at, database, identity, clients] = [socket, database, identity, clients].map(Path::display);
        let text = format!(
            "<zeo>\naddress {at}\n<ssl>\ncertificate {identity}\nkey {identity}\nauthenticate {clients}\n\
             </ssl>\n</zeo>\n<filestorage>\npath {database}\n</filestorage>\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(python);
        command.args(["-m", "ZEO.runzeo", "-C"]).arg(&config).current_dir(config.parent().unwrap());
        ZeoServer::spawn(command, socket, coding)
    }

    fn spawn(mut command: Command, socket: &Path, coding: &str) -> ZeoServer {
        command.env("ZEO_MSGPACK", if coding == "msgpack" { "y" } else { "" });
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = ZeoServer { child, socket: socket.to_owned() };
        wait_until("the ZEO server answers", || UnixStream::connect(&server.socket).is_ok());
        server
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("zeo://{}", self.socket.display())
    }

    /// Ends it by SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for ZeoServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The storage at a URL; answers are waited for so long.
pub fn storage(url: &str, wait_limit: Duration) -> Arc<ZeoStorage> {
    Arc::new(ZeoStorage::open(url, ZeoOptions { wait_limit, ..ZeoOptions::default() }).unwrap())
}

/// The same as a store of files.
pub fn store_on(storage: Arc<ZeoStorage>) -> Arc<dyn Store> {
    Arc::new(Database::on(storage, 16 << 20))
}
