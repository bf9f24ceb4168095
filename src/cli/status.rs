//! `umount` and `status`.
//!
//! Invariant: neither hangs on a server that does not answer, and both clean what a killed server left.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::env::SystemClock;
use crate::host::mount_state::{MountState, mount_state};
use crate::host::mountinfo::{absolute_mount_point, revfs_mounts};
use crate::host::runtime::{RuntimeDir, RuntimeInfo};
use crate::host::stop::StopLimits;
use crate::host::umount::{InUse, UmountError, clean_dead, umount as stop_server};
use crate::host::users::MountUser;

use super::mount::{StatusArgs, UmountArgs};
use super::output::{Output, say};
use super::render::count;
use super::serve::{ServeError, ended};
use super::{CliError, ExitCode};

/// How long a server may take to answer before it counts as stuck.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Users of a mount that are named; the others are counted.
const USERS_SHOWN_MAX: usize = 8;

/// Watch links that are shown, those that answer slowest first; the others are counted.
const LINKS_SHOWN_MAX: usize = 20;

/// A served mount point.
#[derive(Debug, Serialize)]
struct Status {
    mount_point: String,
    store: String,
    pid: Option<u32>,
    state: &'static str,
    head: Option<String>,
    /// Why head does not move, as far as the server knows.
    trouble: Option<String>,
    stats: BTreeMap<String, String>,
    links: Vec<LinkLine>,
}

/// A line of `.revfs/links`.
#[derive(Debug, Deserialize, Serialize)]
struct LinkLine {
    link: u64,
    pid: u32,
    process: String,
    watches: Vec<WatchPart>,
    pins: u64,
    owed: u64,
    owed_for: Option<f64>,
    slowest: f64,
    faulted: bool,
}

#[derive(Debug, Deserialize, Serialize)]
struct WatchPart {
    file: String,
    at: Option<String>,
    pinned: u64,
}

/// `revfs umount`.
pub(super) fn umount(args: &UmountArgs) -> Result<ExitCode, CliError> {
    let dir = Arc::new(RuntimeDir::of_user().map_err(ServeError::from)?);
    let clock = SystemClock::shared();
    let limits = StopLimits::with_total(args.timeout);
    let mut in_use =
        |what: &InUse| say(&format!("note: {}: {}", args.mount_point.display(), in_use_text(what)));
    let report =
        stop_server(&dir, &args.mount_point, limits, &*clock, &mut in_use).map_err(ServeError::from)?;
    if !report.is_clean() {
        for step in report.steps.iter().filter_map(|step| step.problem.as_ref()) {
            say(&format!("warning: {step}"));
        }
    }
    ended(&args.mount_point, &report)
}

/// Who uses a mount, and what comes of it.
fn in_use_text(in_use: &InUse) -> String {
    let mut users: Vec<String> =
        in_use.users.iter().take(USERS_SHOWN_MAX).map(MountUser::to_string).collect();
    let more = in_use.users.len().saturating_sub(USERS_SHOWN_MAX);
    users.extend((more > 0).then(|| count(more as u64, "other")));
    let what = match users.as_slice() {
        [] => "still mounted, by processes that this user may not look at or a slow server".to_owned(),
        users => format!("in use by {}", users.join(", ")),
    };
    let seconds = in_use.grace.as_secs_f64().max(1.0);
    format!("{what}: waiting up to {seconds:.0} s for the end of that, then the mount is taken away")
}

/// `revfs status`.
pub(super) fn status(args: &StatusArgs) -> Result<ExitCode, CliError> {
    let dir = Arc::new(RuntimeDir::of_user().map_err(ServeError::from)?);
    // Cleaning comes before the list: that drops what dead servers wrote, and with it who made the directory.
    let list = || dir.list().map_err(ServeError::from);
    let mut found = Vec::new();
    match &args.mount_point {
        Some(path) => {
            let failed = |source| ServeError::MountPoint { path: path.clone(), source };
            let path = absolute_mount_point(path).map_err(failed)?;
            clean(&dir, &path)?;
            let known = list()?;
            let info = known.iter().find(|info| info.mount_point == path);
            let status = look(&path, info)?;
            found.push(status.ok_or(ServeError::Clean(UmountError::NotMounted { mount_point: path }))?);
        }
        None => {
            let mounts = revfs_mounts().map_err(|source| ServeError::Start { source })?;
            let mut paths: Vec<_> = mounts.into_iter().map(|mount| mount.mount_point).collect();
            for path in &paths {
                clean(&dir, path)?;
            }
            // Also where nothing is mounted any more: somebody unmounted what a killed server had left.
            for path in
                dir.mount_points().map_err(ServeError::from)?.iter().filter(|path| !paths.contains(path))
            {
                // Its folder may be gone or closed as well: no reason not to show the others.
                if let Err(error) = clean(&dir, path) {
                    say(&format!("warning: {error}"));
                }
            }
            let known = list()?;
            paths.extend(known.iter().map(|info| info.mount_point.clone()));
            paths.sort();
            paths.dedup();
            for path in paths {
                found.extend(look(&path, known.iter().find(|info| info.mount_point == path))?);
            }
        }
    }
    print(args, &found)?;
    Ok(ExitCode::Ok)
}

fn clean(dir: &Arc<RuntimeDir>, path: &Path) -> Result<(), CliError> {
    let clock = SystemClock::shared();
    if clean_dead(dir, path, StopLimits::default(), &*clock).map_err(ServeError::from)?.is_some() {
        say(&format!("note: {}: its server was gone, what it left is cleaned", path.display()));
    }
    Ok(())
}

fn look(path: &Path, info: Option<&RuntimeInfo>) -> Result<Option<Status>, CliError> {
    let state = mount_state(path, ANSWER_LIMIT).map_err(|error| ServeError::Clean(error.into()))?;
    let (word, source) = match &state {
        MountState::Alive(entry) => ("serving", entry.source.clone()),
        MountState::Dead(entry) => ("dead", entry.source.clone()),
        MountState::Stuck(entry) => ("does not answer", entry.source.clone()),
        MountState::Denied(entry) => ("serving, closed to this user", entry.source.clone()),
        MountState::NotMounted | MountState::Foreign(_) => return Ok(None),
    };
    let alive = matches!(state, MountState::Alive(_));
    let text = |name: &str| std::fs::read_to_string(path.join(name)).ok();
    let stats = if alive { text(".revfs/stats").unwrap_or_default() } else { String::new() };
    let stats = stats.lines().filter_map(|line| line.split_once(' '));
    let mut stats: BTreeMap<_, _> = stats.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let links = if alive { text(".revfs/links").unwrap_or_default() } else { String::new() };
    // One of another version may say it otherwise: then its links are not shown.
    let links = links.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    Ok(Some(Status {
        mount_point: path.display().to_string(),
        store: info.map_or_else(|| source.to_string_lossy().into_owned(), |info| info.store_url.clone()),
        pid: info.map(|info| info.pid),
        state: word,
        head: if alive { text("head/at") } else { None },
        trouble: stats.remove("trouble"),
        stats,
        links,
    }))
}

fn print(args: &StatusArgs, found: &[Status]) -> Result<(), CliError> {
    let detailed = args.mount_point.is_some();
    let mut out = Output::new(args.json.json);
    out.put_all(found, |all| match all {
        [] => "no store is mounted\n".to_owned(),
        all => all.iter().map(|status| status.text(detailed)).collect(),
    })?;
    out.finish()
}

impl Status {
    fn text(&self, detailed: bool) -> String {
        let mut lines =
            vec![format!("{}  {}", self.mount_point, self.state), format!("  store  {}", self.store)];
        lines.extend(self.pid.map(|pid| format!("  pid    {pid}")));
        lines.extend(self.head.iter().map(|head| format!("  head   {head}")));
        lines.extend(self.trouble.iter().map(|trouble| format!("  trouble  {trouble}")));
        if detailed {
            lines.extend(self.stats.iter().map(|(name, value)| format!("  {name}  {value}")));
            let mut links: Vec<&LinkLine> = self.links.iter().collect();
            links.sort_by(|a, b| b.slowness().total_cmp(&a.slowness()).then(a.link.cmp(&b.link)));
            lines.extend(links.iter().take(LINKS_SHOWN_MAX).map(|link| format!("  client  {}", link.text())));
            let more = links.len().saturating_sub(LINKS_SHOWN_MAX);
            lines.extend(
                (more > 0).then(|| format!("  {} that answered faster", count(more as u64, "more client"))),
            );
        }
        lines.join("\n") + "\n"
    }
}

impl LinkLine {
    /// The longest that it took to answer, or takes.
    fn slowness(&self) -> f64 {
        self.slowest.max(self.owed_for.unwrap_or(0.0))
    }

    fn text(&self) -> String {
        let mut parts = vec![format!(
            "{} ({}): watches {}",
            self.process,
            self.pid,
            count(self.watches.len() as u64, "file")
        )];
        let oldest = self.watches.iter().filter_map(|watch| watch.at.as_deref()).min();
        parts.extend(oldest.map(|at| format!("oldest at @{at}")));
        let pinned: u64 = self.watches.iter().map(|watch| watch.pinned).sum();
        parts.push(format!("{} pinned", count(pinned, "block")));
        if let Some(owed_for) = self.owed_for {
            parts.push(format!("owes {} for {:.3} s", count(self.owed, "ack"), owed_for));
        }
        parts.push(format!("slowest ack {:.3} s", self.slowest));
        if self.faulted {
            parts.push("at fault: it is being killed".to_owned());
        }
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_in_a_line() {
        let line = r#"{"link":7,"pid":12,"process":"sum","watches":[{"file":"00","at":"02","pinned":1},
            {"file":"01","at":"01","pinned":2},{"file":"02","at":null,"pinned":0}],
            "pins":9,"owed":2,"owed_for":1.5,"slowest":0.25,"faulted":true}"#;
        let link: LinkLine = serde_json::from_str(line).unwrap();
        assert_eq!(
            link.text(),
            "sum (12): watches 3 files, oldest at @01, 3 blocks pinned, owes 2 acks for 1.500 s, slowest ack 0.250 s, \
             at fault: it is being killed"
        );
        assert!((link.slowness() - 1.5).abs() < 1e-9);
    }

    #[test]
    fn users_of_a_mount_are_named_or_counted() {
        let user = |pid| MountUser { pid, name: "cat".to_owned() };
        let text = |pids: std::ops::Range<u32>| {
            in_use_text(&InUse { users: pids.map(user).collect(), grace: Duration::from_millis(2_900) })
        };
        let end = ": waiting up to 3 s for the end of that, then the mount is taken away";
        assert_eq!(text(7..9), format!("in use by cat (7), cat (8){end}"));
        assert_eq!(
            text(0..0),
            format!("still mounted, by processes that this user may not look at or a slow server{end}")
        );
        assert!(text(0..9).ends_with(&format!("cat (7), 1 other{end}")));
        assert!(text(0..10).ends_with(&format!("cat (7), 2 others{end}")));
    }
}
