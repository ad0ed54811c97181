//! `stillwired`, the sensor.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use capture_user::args::{Cli, Command};
use capture_user::canary::CanaryConfig;
use capture_user::config::{CaptureConfig, ReplayConfig};
use capture_user::{canary, capture, doctor, replay};
use clap::{CommandFactory, Parser};
use tracing_subscriber::EnvFilter;

/// Wrong usage, as clap has it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log();
    let outcome = match cli.command {
        Command::Capture(args) => match CaptureConfig::new(*args) {
            Ok(config) => capture::capture(config),
            Err(error) => return usage(&error),
        },
        Command::Replay(args) => match ReplayConfig::new(*args) {
            Ok(config) => replay::replay(&config),
            Err(error) => return usage(&error),
        },
        Command::Canary(args) => match CanaryConfig::new(args) {
            Ok(config) => canary::canary(&config),
            Err(error) => return usage(&error),
        },
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "stillwired",
                &mut io::stdout().lock(),
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { subcommand } => man(subcommand.as_deref()),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            say(&error);
            ExitCode::FAILURE
        }
    }
}

fn usage(error: &anyhow::Error) -> ExitCode {
    say(error);
    eprintln!("For what can be said, try 'stillwired --help'.");
    ExitCode::from(USAGE)
}

fn say(error: &anyhow::Error) {
    // With every cause, in one line.
    eprintln!("stillwired: {error:#}");
}

/// Logs to standard error, from `info` up; `STILLWIRE_LOG` takes another filter.
fn start_log() {
    let filter =
        EnvFilter::try_from_env("STILLWIRE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || LogWriter { terminal })
        .with_target(false)
        .with_ansi(terminal)
        .init();
}

/// Standard error for log lines: each takes the place of the status line on a terminal.
struct LogWriter {
    terminal: bool,
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut out = io::stderr().lock();
        if self.terminal {
            out.write_all(b"\r\x1b[2K")?;
        }
        out.write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Prints a manual page.
fn man(subcommand: Option<&str>) -> Result<ExitCode> {
    let mut command = Cli::command();
    command.build();
    let command = match subcommand {
        None => command,
        Some(name) => command
            .find_subcommand(name)
            .with_context(|| format!("there is no subcommand {name}; see stillwired --help"))?
            .clone(),
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).context("cannot make the manual page")?;
    io::stdout().write_all(&page).context("cannot print the manual page")?;
    Ok(ExitCode::SUCCESS)
}
