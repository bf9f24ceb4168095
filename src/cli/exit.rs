//! Exit codes.
//!
//! Invariant: a number never changes its meaning; `--help` lists them from this table.

/// How a command ended. The numbers are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Ok = 0,
    /// Failed for a reason that has no number of its own.
    Failure = 1,
    /// The arguments are wrong.
    Usage = 2,
    /// A store, name, revision, tag or source does not exist.
    NotFound = 3,
    /// Another commit came first and does not go with this one; nothing was committed.
    Conflict = 4,
    /// It is not known whether the commit stands.
    Unknown = 5,
    /// STORE is no store, or of a kind or version that this revfs does not serve.
    NotAStore = 6,
    /// Stored data is damaged or missing.
    Damaged = 7,
    /// The store cannot be written.
    ReadOnly = 8,
    /// A disk is full.
    DiskFull = 9,
    /// In use: a mount point or store that something else holds.
    Busy = 10,
    /// The name, tag or store exists already.
    Exists = 11,
    /// A source changed while it was read; nothing was committed.
    Changed = 12,
}

impl ExitCode {
    /// All codes with what `--help` says of them.
    pub const ALL: [(ExitCode, &'static str); 13] = [
        (ExitCode::Ok, "done"),
        (ExitCode::Failure, "failed for a reason that has no number of its own"),
        (ExitCode::Usage, "the arguments are wrong"),
        (ExitCode::NotFound, "a store, name, revision, tag or source does not exist"),
        (
            ExitCode::Conflict,
            "another commit came first and does not go with this one; nothing was committed",
        ),
        (
            ExitCode::Unknown,
            "it is not known whether the commit stands; `revfs log --json` tells by its commit_uuid",
        ),
        (ExitCode::NotAStore, "STORE is no store, or of a kind or version that this revfs does not serve"),
        (ExitCode::Damaged, "stored data is damaged or missing"),
        (ExitCode::ReadOnly, "the store cannot be written"),
        (ExitCode::DiskFull, "a disk is full"),
        (ExitCode::Busy, "a mount point or store is in use"),
        (ExitCode::Exists, "the name, tag or store exists already"),
        (ExitCode::Changed, "a source changed while it was read; nothing was committed"),
    ];

    /// The code with this number; a number that is none is a failure.
    pub fn from_number(number: u8) -> ExitCode {
        ExitCode::ALL
            .iter()
            .find(|(code, _)| code.number() == number)
            .map_or(ExitCode::Failure, |(code, _)| *code)
    }

    /// The number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The section EXIT STATUS of `--help`.
    pub fn help() -> String {
        let lines = ExitCode::ALL.iter().map(|(code, what)| format!("  {:>2}  {what}\n", code.number()));
        format!("EXIT STATUS\n{}", lines.collect::<String>())
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> std::process::ExitCode {
        std::process::ExitCode::from(code.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_each_code_at_its_number() {
        for (index, (code, _)) in ExitCode::ALL.iter().enumerate() {
            assert_eq!(usize::from(code.number()), index);
        }
        assert!(ExitCode::help().starts_with("EXIT STATUS\n   0  done\n   1  failed"));
    }
}
