//! The command `revfs`; everything it does is in the library.

fn main() {}
