//! Why a ZEO server gives no answer, or none that is of use.

use std::time::Duration;

use revfs_protocol::Tid;

use super::tls::TlsError;
use crate::store::zodb::Oid;

/// Why a ZEO server gives no answer, or none that is of use.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ZeoError {
    /// The URL names no server.
    #[error("{url}: {what}; a ZEO server is named as zeo://HOST:PORT?storage=NAME, or zeo:///PATH/OF/SOCKET")]
    Url {
        /// As given.
        url: String,
        /// What is wrong.
        what: String,
    },
    /// What TLS needs is not there.
    #[error("{url}: no TLS: {cause}; ca, cert and key name files in PEM")]
    Tls {
        /// The server.
        url: String,
        /// Why.
        cause: TlsError,
    },
    /// The machine fails it.
    #[error("{url}: {what} fails: {cause}")]
    System {
        /// The server.
        url: String,
        /// What was tried.
        what: &'static str,
        /// Why.
        cause: String,
    },
    /// There is no connection, and was none for too long.
    #[error(
        "{url} does not answer, and was waited for {} s: {cause}; look whether the ZEO server runs, it is tried again",
        waited.as_secs()
    )]
    Down {
        /// The server.
        url: String,
        /// How long at most.
        waited: Duration,
        /// Why there is no connection.
        cause: String,
    },
    /// The connection on which something was begun is no more.
    #[error("{url}: the connection was lost: {cause}")]
    Lost {
        /// The server.
        url: String,
        /// Why.
        cause: String,
    },
    /// The server says that it cannot.
    #[error("{url}: {method} fails on the server: {class}: {text}")]
    Refused {
        /// The server.
        url: String,
        /// What was asked.
        method: &'static str,
        /// The class of its exception.
        class: String,
        /// What it says.
        text: String,
    },
    /// An answer that cannot be.
    #[error("{url}: {method} is answered by {what}: this is no ZEO server, or one that is broken")]
    Answer {
        /// The server.
        url: String,
        /// What was asked.
        method: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The same about an object.
    #[error("{url}: object {oid} @{at}: the server sends {what}: it is broken")]
    Object {
        /// The server.
        url: String,
        /// The object.
        oid: Oid,
        /// The state.
        at: Tid,
        /// What is wrong.
        what: &'static str,
    },
    /// The server is behind what is served.
    #[error("{url} went back to @{last}, as a restored backup does: @{at} cannot be had from it")]
    Behind {
        /// The server.
        url: String,
        /// Asked for.
        at: Tid,
        /// The last that the server has.
        last: Tid,
    },
}

impl ZeoError {
    /// Whether what is stored is not what was written, as opposed to a server that does not answer.
    pub fn is_damage(&self) -> bool {
        match self {
            // As a FileStorage of the server says of its file.
            ZeoError::Refused { class, .. } => class.contains("Corrupted"),
            _ => false,
        }
    }

    /// Whether the server says that there is no such object.
    pub fn is_absent_object(&self) -> bool {
        matches!(self, ZeoError::Refused { class, .. } if class == "ZODB.POSException.POSKeyError")
    }
}
