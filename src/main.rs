//! The command `revfs`: arguments in, exit code out. All else is in the library.

fn main() -> std::process::ExitCode {
    revfs::cli::main(std::env::args_os())
}
