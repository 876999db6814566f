//! The program `pawlatch`: its subcommands, and the one place where an error chain is printed.

mod commands;

use std::process::ExitCode;

use clap::Parser;

use commands::{Cli, Outcome};

fn main() -> ExitCode {
    let cli = Cli::parse();
    commands::log_to_stderr(&cli);
    match commands::run(cli) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(commands::EXIT_FAILED),
        Ok(Outcome::Differs) => ExitCode::from(commands::EXIT_DIFFERS),
        Ok(Outcome::Misused) => ExitCode::from(commands::EXIT_USAGE),
        // Whoever read our output has enough of it.
        Err(error) if commands::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", commands::chain(&error));
            ExitCode::from(commands::exit_code(&error))
        }
    }
}
