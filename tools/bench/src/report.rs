//! The table: aligned text, Markdown or JSON.
//!
//! Invariant: figures that are not valid (scaled sizes, fewer than nine pairs) never look valid.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::stats::{Compare, Pair, RowSpec, Summary, Target};
use crate::system::Environment;

/// Fewer pairs than this are no measurement.
const PAIRS_MIN: usize = 9;
const HEAD: [&str; 8] = ["what", "against", "ours", "baseline", "ratio", "spread", "target", "met"];

/// A row that was measured, or could not be.
#[derive(Debug)]
pub struct Measured {
    /// The row.
    pub spec: RowSpec,
    /// Its pairs, or why there are none.
    pub pairs: Result<Vec<Pair>, String>,
    /// What else there is to say of it.
    pub notes: Vec<String>,
}

/// Everything of one run.
#[derive(Debug)]
pub struct Report {
    /// Where it was measured.
    pub environment: Environment,
    /// Pairs of each row.
    pub pairs: usize,
    /// By what all sizes were multiplied.
    pub scale: f64,
    /// Seed of all data.
    pub seed: u64,
    /// The rows.
    pub rows: Vec<Measured>,
}

impl Report {
    /// Why the figures mean nothing, if so.
    fn invalid(&self) -> Option<String> {
        if self.scale != 1.0 {
            return Some(format!("NOT VALID: all sizes were multiplied by {}", self.scale));
        }
        if cfg!(debug_assertions) {
            return Some("NOT VALID: bench was built without optimisation".to_owned());
        }
        (self.pairs < PAIRS_MIN).then(|| format!("NOT VALID: {} pairs, {PAIRS_MIN} are needed", self.pairs))
    }

    /// Aligned text.
    pub fn text(&self) -> String {
        let rows = self.cells();
        let head = HEAD.map(str::to_owned);
        let width = |column: usize| {
            [&head].into_iter().chain(&rows).map(|row| row[column].len()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
        let mut text = self.preamble();
        for row in [&head].into_iter().chain(&rows) {
            let mut line = String::new();
            for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let is_number = (2..=4).contains(&index);
                let shown = if is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
                line.push_str(&shown);
                line.push_str("  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text + &self.remarks("")
    }

    /// A table in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = self.preamble() + "\n";
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        text.push_str(&line(&HEAD.map(str::to_owned)));
        text.push_str("|---|---|---:|---:|---:|---|---|---|\n");
        for row in self.cells() {
            text.push_str(&line(&row));
        }
        text + "\n" + &self.remarks("* ")
    }

    /// JSON, with each pair.
    pub fn json(&self) -> Value {
        let is_valid = self.invalid().is_none();
        json!({
            "environment": self.environment,
            "valid": is_valid,
            "pairs": self.pairs,
            "scale": self.scale,
            "seed": self.seed,
            "rows": self.rows.iter().map(|row| row_json(row, is_valid)).collect::<Vec<_>>(),
        })
    }

    fn cells(&self) -> Vec<[String; 8]> {
        let is_valid = self.invalid().is_none();
        self.rows.iter().map(|row| cells(row, is_valid)).collect()
    }

    fn preamble(&self) -> String {
        let e = &self.environment;
        let mut text = format!(
            "Linux {}, {} cores, {} GiB, {} on {}; {}; {} pairs, seed {}\n",
            e.kernel,
            e.cores,
            (e.memory_bytes + (1 << 29)) >> 30,
            e.filesystem,
            e.device,
            e.revfs,
            self.pairs,
            self.seed
        );
        if let Some(why) = self.invalid() {
            text.push_str(&why);
            text.push('\n');
        }
        text
    }

    /// Notes and failures, and once more whether the figures are valid.
    fn remarks(&self, bullet: &str) -> String {
        let mut text = String::new();
        for row in &self.rows {
            for note in &row.notes {
                let _ = writeln!(text, "{bullet}{}: {note}", row.spec.key);
            }
            if let Err(why) = &row.pairs {
                let _ = writeln!(text, "{bullet}{}: not measured: {why}", row.spec.key);
            }
        }
        if let Some(why) = self.invalid() {
            let _ = writeln!(text, "{bullet}{why}");
        }
        text
    }
}

/// Median of ours and of the baseline, and the summary of what the pairs say.
fn figures(row: &Measured) -> Option<(f64, Option<f64>, Summary)> {
    let pairs = row.pairs.as_ref().ok()?;
    let ours = Summary::of(pairs.iter().map(|pair| pair.ours))?.median;
    let baseline = Summary::of(pairs.iter().filter_map(|pair| pair.baseline)).map(|summary| summary.median);
    let said = Summary::of(pairs.iter().map(|pair| pair.value(row.spec.compare)))?;
    Some((ours, baseline, said))
}

/// One line of the table. Whether a target is met is told of valid figures only.
fn cells(row: &Measured, is_valid: bool) -> [String; 8] {
    let spec = &row.spec;
    let (what, against, target) = (spec.what.to_owned(), spec.against.to_owned(), target_text(spec));
    let Some((ours, baseline, said)) = figures(row) else {
        let dash = || "-".to_owned();
        return [what, against, dash(), dash(), dash(), "not measured".to_owned(), target, dash()];
    };
    let value = |number| format!("{} {}", number_text(number), spec.unit.symbol());
    let met = match spec.target.is_met(said.median) {
        Some(_) if !is_valid => "?",
        Some(true) => "yes",
        Some(false) => "NO",
        None => "",
    };
    let shown = |number| said_text(spec, number);
    let spread = format!("{}..{} ({}..{})", shown(said.min), shown(said.max), shown(said.q1), shown(said.q3));
    let median = if spec.compare == Compare::Ours { "-".to_owned() } else { shown(said.median) };
    let baseline = baseline.map_or_else(|| "-".to_owned(), value);
    [what, against, value(ours), baseline, median, spread, target, met.to_owned()]
}

/// What a pair says, as shown: `0.970x`, `+12.0 ms`, `1.30`.
fn said_text(spec: &RowSpec, number: f64) -> String {
    match spec.compare {
        Compare::Ratio => format!("{}x", ratio_text(number)),
        Compare::Difference => {
            format!("{}{} {}", if number < 0.0 { "" } else { "+" }, number_text(number), spec.unit.symbol())
        }
        Compare::Ours => number_text(number),
    }
}

fn target_text(spec: &RowSpec) -> String {
    let limit = |number: f64| match spec.compare {
        Compare::Ratio => format!("{number}x"),
        Compare::Difference => format!("+{number} {}", spec.unit.symbol()),
        Compare::Ours => format!("{number} {}", spec.unit.symbol()),
    };
    match spec.target {
        Target::AtLeast(least) => format!(">= {}", limit(least)),
        Target::AtMost(most) => format!("<= {}", limit(most)),
        Target::Below(most) => format!("< {}", limit(most)),
        Target::None => String::new(),
    }
}

/// Three digits that count.
fn number_text(number: f64) -> String {
    match number.abs() {
        size if size >= 99.95 => format!("{number:.0}"),
        size if size >= 9.995 => format!("{number:.1}"),
        size if size >= 0.0995 || size == 0.0 => format!("{number:.2}"),
        _ => format!("{number:.4}"),
    }
}

/// Three digits after the point.
fn ratio_text(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.3}"),
    }
}

fn row_json(row: &Measured, is_valid: bool) -> Value {
    let spec = &row.spec;
    let compare = match spec.compare {
        Compare::Ratio => "ratio",
        Compare::Difference => "difference",
        Compare::Ours => "ours",
    };
    let target = match spec.target {
        Target::AtLeast(limit) => json!({ "at_least": limit }),
        Target::AtMost(limit) => json!({ "at_most": limit }),
        Target::Below(limit) => json!({ "below": limit }),
        Target::None => Value::Null,
    };
    let mut object = json!({
        "key": spec.key,
        "what": spec.what,
        "against": spec.against,
        "unit": spec.unit.symbol(),
        "compare": compare,
        "target": target,
        "notes": row.notes,
    });
    if let (Some((ours, baseline, said)), Ok(pairs)) = (figures(row), &row.pairs) {
        object["ours"] = json!(ours);
        object["baseline"] = json!(baseline);
        object["median"] = json!(said.median);
        object["min"] = json!(said.min);
        object["q1"] = json!(said.q1);
        object["q3"] = json!(said.q3);
        object["max"] = json!(said.max);
        object["met"] = json!(spec.target.is_met(said.median).filter(|_| is_valid));
        object["measured"] = pairs.iter().map(|pair| json!([pair.ours, pair.baseline])).collect();
    }
    if let Err(why) = &row.pairs {
        object["error"] = json!(why);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Unit;

    const READ: RowSpec = RowSpec {
        key: "read",
        what: "cold read",
        against: "plain file",
        unit: Unit::GigabytesPerSecond,
        compare: Compare::Ratio,
        target: Target::AtLeast(0.9),
    };
    const MOUNT: RowSpec = RowSpec {
        key: "mount",
        what: "mount",
        against: "empty store",
        unit: Unit::Milliseconds,
        compare: Compare::Difference,
        target: Target::AtMost(150.0),
    };

    fn report(scale: f64, pairs: usize) -> Report {
        let environment = Environment {
            kernel: "6.18".to_owned(),
            cores: 2,
            memory_bytes: 24 << 30,
            dir: "/d".to_owned(),
            filesystem: "ext4".to_owned(),
            device: "/dev/vda".to_owned(),
            revfs: "revfs 0.1.0".to_owned(),
        };
        let pair = |ours, baseline| Pair { ours, baseline: Some(baseline) };
        let read = Measured {
            spec: READ,
            pairs: Ok(vec![pair(4.0, 5.0), pair(4.75, 5.0), pair(6.0, 5.0)]),
            notes: vec!["seed 1".to_owned()],
        };
        let mount = Measured { spec: MOUNT, pairs: Ok(vec![pair(210.0, 40.0)]), notes: Vec::new() };
        let failed = Measured { spec: READ, pairs: Err("no disk".to_owned()), notes: Vec::new() };
        Report { environment, pairs, scale, seed: 1, rows: vec![read, mount, failed] }
    }

    #[test]
    fn text_is_aligned_and_says_what_is_met() {
        let report = report(1.0, 9);
        let text = report.text();
        let lines: Vec<&str> = text.lines().collect();
        let table = &lines[lines.iter().position(|line| line.starts_with("what")).unwrap()..];
        let line = "cold read  plain file   4.75 GB/s  5.00 GB/s   0.950x  \
                    0.800x..1.200x (0.875x..1.075x)      >= 0.9x     ";
        assert!(table[1].starts_with(line), "{}", table[1]);
        assert_eq!(cells(&report.rows[0], true)[7], "yes");
        assert_eq!(cells(&report.rows[1], true)[6..], ["<= +150 ms", "NO"]);
        assert!(table[3].contains("not measured"), "{}", table[3]);
        let target = table[0].find("target").unwrap();
        assert!(table[1..4].iter().all(|line| line[target - 1..target] == *" "));
        assert!(text.contains("read: seed 1\n") && text.contains("read: not measured: no disk\n"));
    }

    #[test]
    fn figures_that_are_not_valid_say_so() {
        for text in [report(0.5, 9).text(), report(0.5, 9).markdown(), report(1.0, 8).text()] {
            assert_eq!(text.matches("NOT VALID").count(), 2, "{text}");
        }
        assert_eq!(report(0.5, 9).json()["valid"], false);
        assert_eq!(report(1.0, 9).json()["valid"], !cfg!(debug_assertions));
    }

    #[test]
    fn markdown_has_as_many_cells_in_each_line() {
        let text = report(1.0, 9).markdown();
        let table: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(table.len(), 5);
        assert!(table.iter().all(|line| line.matches('|').count() == HEAD.len() + 1), "{text}");
    }

    #[test]
    fn json_has_each_pair() {
        let json = report(1.0, 9).json();
        assert_eq!(json["rows"][0]["measured"][2], json!([6.0, 5.0]));
        assert_eq!(json["rows"][0]["median"], 0.95);
        let met = if cfg!(debug_assertions) { Value::Null } else { json!(true) };
        assert_eq!(json["rows"][0]["met"], met);
        assert_eq!(json["rows"][1]["median"], 170.0);
        assert_eq!(json["rows"][2]["error"], "no disk");
    }

    #[test]
    fn numbers_have_three_digits_or_so() {
        let shown = [0.0, 0.0123, 0.45678, 4.5678, 45.678, 456.78].map(number_text);
        assert_eq!(shown, ["0.00", "0.0123", "0.46", "4.57", "45.7", "457"]);
        assert_eq!([0.8994, 0.9, 33.333, 333.3].map(ratio_text), ["0.899", "0.900", "33.3", "333"]);
    }
}
