//! What a revision that a user asked for means now.
//!
//! Invariant: the answer is never ahead of head. Times, spans and `head` mean a commit (or the empty state);
//! a tid means itself, whether or not anything was committed at it.

use std::sync::Arc;

use revfs_protocol::{RevSpec, RevSpecError, TagName, Tid};

use crate::store::{ReadError, Store};

/// Why a revision means nothing.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The text has none of the forms of a revision.
    #[error(transparent)]
    Malformed(#[from] RevSpecError),
    /// There is no such tag.
    #[error("tag {tag} does not exist: `revfs tags` lists those that do")]
    NoSuchTag {
        /// Asked for.
        tag: TagName,
    },
    /// The unit of time that is named has not begun.
    #[error("the time asked for is in the future: give an earlier one, or `head` for the newest revision")]
    InFuture {
        /// When it begins, ns since 1970 UTC.
        start_unix_ns: u64,
        /// The time now, ns since 1970 UTC.
        now_unix_ns: u64,
    },
    /// The state does not exist yet.
    #[error("@{at} is ahead of head @{head}: ask for a revision that is committed, or wait for it")]
    AheadOfHead {
        /// Asked for.
        at: Tid,
        /// Newest there is.
        head: Tid,
    },
    /// The store failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What `spec` means in `store` at `now_unix_ns` (ns since 1970 UTC).
///
/// # Errors
/// See [`ResolveError`].
pub fn resolve(store: &Arc<dyn Store>, spec: &RevSpec, now_unix_ns: u64) -> Result<Tid, ResolveError> {
    resolve_within(store, store.head(), spec, now_unix_ns)
}

/// Like [`resolve`], for a reader whose head is `head`, which may be behind what `store` has applied.
///
/// # Errors
/// See [`ResolveError`].
pub fn resolve_within(
    store: &Arc<dyn Store>,
    head: Tid,
    spec: &RevSpec,
    now_unix_ns: u64,
) -> Result<Tid, ResolveError> {
    let newest_until = |unix_ns: u64| Ok(store.newest_commit(Tid::newest_at_unix_ns(unix_ns).min(head))?);
    match spec {
        RevSpec::Head => Ok(store.newest_commit(head)?),
        RevSpec::Tid(at) if *at > head => Err(ResolveError::AheadOfHead { at: *at, head }),
        RevSpec::Tid(at) => Ok(*at),
        RevSpec::Time { start_unix_ns, .. } if *start_unix_ns > now_unix_ns => {
            Err(ResolveError::InFuture { start_unix_ns: *start_unix_ns, now_unix_ns })
        }
        // All of it is before 1970: no commit can be older, and one of the first moment of 1970 is newer.
        RevSpec::Time { end_unix_ns: 0, .. } => Ok(Tid::ZERO),
        // A time is the whole unit, without its end; what is not over yet counts up to now.
        RevSpec::Time { end_unix_ns, .. } => newest_until(end_unix_ns.saturating_sub(1).min(now_unix_ns)),
        RevSpec::Span { ns } => newest_until(now_unix_ns.saturating_sub(*ns)),
        RevSpec::Tag(tag) => {
            let target = store.tag(tag.as_str())?;
            let at = target.ok_or_else(|| ResolveError::NoSuchTag { tag: tag.clone() })?;
            if at > head {
                // The commit that moved the tag is being published.
                return Err(ResolveError::AheadOfHead { at, head });
            }
            Ok(at)
        }
    }
}
