//! The program `wcfs`, which wendelin.core starts: arguments in, exit code out. All else is in the library.

fn main() -> std::process::ExitCode {
    revfs::cli::wcfs::main(std::env::args_os())
}
