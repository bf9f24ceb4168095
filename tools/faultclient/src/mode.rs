//! The ways to misbehave.

/// What it does on a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Obey,
    Bytes,
    Halves,
    Bundle,
    Twice,
    Late,
    Leave,
    Deaf,
    Mute,
    Exit,
    Close,
    Nak,
    Garbage,
    Stray,
    Long,
    Stop,
    Stubborn,
    Bequeath,
    Flood,
    FloodWatches,
    Churn,
}

/// All of them: name, mode, what it does.
pub const ALL: &[(&str, Mode, &str)] = &[
    ("obey", Mode::Obey, "maps the block as it is told and acks"),
    ("bytes", Mode::Bytes, "obeys, and writes each frame byte by byte"),
    ("halves", Mode::Halves, "obeys, and maps between the two halves of its ack"),
    ("bundle", Mode::Bundle, "obeys, and writes several frames at once"),
    ("twice", Mode::Twice, "obeys, and acks each pin twice"),
    (
        "late",
        Mode::Late,
        "stops the watch on its first pin, then acks and naks that pin, watches again and obeys",
    ),
    ("leave", Mode::Leave, "closes its link when it owes nothing: at the first ok"),
    ("deaf", Mode::Deaf, "never reads its link"),
    ("mute", Mode::Mute, "reads and never answers"),
    ("exit", Mode::Exit, "exits with 0"),
    ("close", Mode::Close, "closes its link and lives on"),
    ("nak", Mode::Nak, "answers nak"),
    ("garbage", Mode::Garbage, "answers with what is no frame"),
    ("stray", Mode::Stray, "answers on a stream that was never used"),
    ("long", Mode::Long, "answers with a line of more than 256 bytes"),
    ("stop", Mode::Stop, "stops itself with SIGSTOP"),
    ("stubborn", Mode::Stubborn, "ignores SIGBUS, and never answers"),
    ("bequeath", Mode::Bequeath, "gives its link to a child and exits with 0; the child reads to the end"),
    ("flood", Mode::Flood, "when it has its watch, asks and never reads, until a write fails"),
    ("flood-watches", Mode::FloodWatches, "the same, with watches of a state that never comes"),
    (
        "churn",
        Mode::Churn,
        "begins and stops watches of a state that never comes, reads all replies, lives on",
    ),
];

impl Mode {
    /// The mode of a name.
    pub fn parse(name: &str) -> Option<Mode> {
        ALL.iter().find(|(known, _, _)| *known == name).map(|(_, mode, _)| *mode)
    }

    /// Whether it answers each pin with an ack in the end.
    pub fn is_obedient(self) -> bool {
        use Mode::{Bundle, Bytes, Churn, Flood, FloodWatches, Halves, Late, Leave, Obey, Twice};
        matches!(self, Obey | Bytes | Halves | Bundle | Twice | Late | Leave | Flood | FloodWatches | Churn)
    }
}
