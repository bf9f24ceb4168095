//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Measures revfs against plain files, and prints one table.
///
/// Each row is measured in pairs: ours and its baseline directly after each other, in turn the one and the
/// other first. A row shows the median of the ratios of its pairs, so drift of the machine cancels out.
///
/// The command `revfs` is taken from the environment variable REVFS_BIN, or else from the folder of this
/// program. Rows that read cold need root, for /proc/sys/vm/drop_caches.
#[derive(Debug, Parser)]
#[command(
    name = "bench",
    version,
    after_help = "EXIT STATUS:\n  0  all chosen rows were measured, whether or not \
    their targets are met\n  1  a row could not be measured\n  2  wrong usage, or no room on the disk\n  130  \
    interrupted"
)]
pub struct Args {
    /// Pairs of each row.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    pub pairs: u32,
    /// Measures only rows whose key or description has this in it; may be given several times.
    #[arg(long, value_name = "ROW")]
    pub only: Vec<String>,
    /// Lists the rows and ends.
    #[arg(long)]
    pub list: bool,
    /// Folder, which exists, on the disk to measure; a new folder is made in it, and removed at the end [default: the folder
    /// of this program].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Multiplies all sizes and counts; figures are valid with 1 only.
    #[arg(long, value_name = "F", default_value_t = 1.0, value_parser = scale)]
    pub scale: f64,
    /// Seed of all data and random orders.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Leaves the files there at the end.
    #[arg(long)]
    pub keep: bool,
    /// Prints a table in Markdown.
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
    /// Prints JSON, with each pair.
    #[arg(long)]
    pub json: bool,
    /// Serves the filesystem that only answers, until it is unmounted.
    #[arg(long, value_name = "MNT", hide = true)]
    pub answer: Option<PathBuf>,
}

fn scale(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(scale) if scale > 0.0 && scale <= 16.0 => Ok(scale),
        _ => Err("a number above 0 and up to 16 is expected".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_wrong_usage() {
        let args = Args::try_parse_from(["bench"]).unwrap();
        assert_eq!((args.pairs, args.scale, args.keep), (9, 1.0, false));
        for wrong in [&["--pairs", "0"][..], &["--scale", "0"], &["--scale", "x"], &["--json", "--markdown"]]
        {
            assert!(Args::try_parse_from(["bench"].iter().chain(wrong)).is_err(), "{wrong:?}");
        }
    }
}
