//! What a server has and has done, as text: for `revfs status`, for people and for Prometheus.
//!
//! Invariant: nothing here waits for the store, the kernel or a client, so it is answered whatever hangs. Figures are
//! taken one after the other and may be a moment apart.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::server::{Figure, Server, Times};

/// Gauges that a server does not have by itself: of the kernel, the history and the caches.
fn more_gauges(server: &Server, inodes: u64) -> [Figure; 4] {
    let figure = |name, help, value| Figure { name, help, value };
    let (_, taken) = server.history_window();
    [
        figure("inodes", "Inodes that the kernel knows.", inodes),
        figure("history_entries", "Changes of blocks that the change index holds.", taken.entries as u64),
        figure("history_bytes", "Memory of the change index, bytes.", taken.bytes as u64),
        figure(
            "cached_bytes",
            "File data in the block cache of the store, bytes.",
            server.store().cached_bytes(),
        ),
    ]
}

/// One a line: name, space, value.
pub fn stats(server: &Server, inodes: u64) -> String {
    let ((tail, _), _) = server.history_window();
    // Writing to a String cannot fail, here and below.
    let mut text = format!("head {}\nat {}\nhistory_tail {tail}\n", server.head(), server.shown());
    let gauges = server.gauges().all().into_iter().chain(more_gauges(server, inodes));
    for figure in gauges.chain(server.stats().all()) {
        let _ = writeln!(text, "{} {}", figure.name, figure.value);
    }
    if let Some(trouble) = server.trouble() {
        let _ = writeln!(text, "trouble {}", trouble.replace('\n', " "));
    }
    text
}

/// The open watch links, one JSON object a line. Times are in seconds.
pub fn links(server: &Server) -> String {
    let mut text = String::new();
    for link in server.link_status() {
        let view = link.view;
        let watches: Vec<Value> = view
            .watches
            .iter()
            .map(|watch| {
                let at = watch.at.map(|at| at.to_string());
                json!({"file": watch.file.to_string(), "at": at, "pinned": watch.pinned})
            })
            .collect();
        let line = json!({
            "link": link.id.0,
            "pid": link.pid,
            "process": link.process,
            "watches": watches,
            "pins": view.pins,
            "owed": view.owed,
            "owed_for": view.owed_for.map(|time| time.as_secs_f64()),
            "slowest": view.slowest.as_secs_f64(),
            "faulted": view.faulted,
        });
        let _ = writeln!(text, "{line}");
    }
    text
}

/// The text format of Prometheus, version 0.0.4.
pub fn metrics(server: &Server, version: &str, inodes: u64) -> String {
    let mut text = String::new();
    let store = server.store().info().url.clone();
    head(&mut text, "info", "gauge", "Version of the program and URL of the store.");
    let _ = writeln!(text, "revfs_info{{version=\"{}\",store=\"{}\"}} 1", escape(version), escape(&store));
    let ((tail, _), _) = server.history_window();
    let states = [
        ("head", "The published head", server.head()),
        ("at", "What head/at shows", server.shown()),
        ("history_tail", "The oldest state that the change index covers", tail),
    ];
    for (name, help, tid) in states {
        let name = format!("{name}_timestamp_seconds");
        head(&mut text, &name, "gauge", &format!("{help}, as the time of its commit."));
        let _ = writeln!(text, "revfs_{name} {:.9}", tid.to_unix_ns() as f64 / 1e9);
    }
    for Figure { name, help, value } in server.gauges().all().into_iter().chain(more_gauges(server, inodes)) {
        head(&mut text, name, "gauge", help);
        let _ = writeln!(text, "revfs_{name} {value}");
    }
    head(
        &mut text,
        "following",
        "gauge",
        "1 while the store can be followed, 0 while head stays because it cannot.",
    );
    let _ = writeln!(text, "revfs_following {}", u8::from(server.trouble().is_none()));
    for Figure { name, help, value } in server.stats().all() {
        head(&mut text, &format!("{name}_total"), "counter", help);
        let _ = writeln!(text, "revfs_{name}_total {value}");
    }
    for (name, help, histogram) in server.stats().times.all() {
        head(&mut text, name, "histogram", help);
        times(&mut text, name, &histogram.times());
    }
    text
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP revfs_{name} {help}\n# TYPE revfs_{name} {kind}");
}

fn times(text: &mut String, name: &str, times: &Times) {
    for (bound, count) in &times.at_most {
        let _ = writeln!(text, "revfs_{name}_bucket{{le=\"{}\"}} {count}", bound.as_secs_f64());
    }
    let _ = writeln!(text, "revfs_{name}_bucket{{le=\"+Inf\"}} {}", times.count);
    let _ = writeln!(text, "revfs_{name}_sum {}", times.sum.as_secs_f64());
    let _ = writeln!(text, "revfs_{name}_count {}", times.count);
}

/// Value of a label.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_one_line_in_quotes() {
        assert_eq!(escape("/a \"b\"\n\\c"), "/a \\\"b\\\"\\n\\\\c");
    }
}
