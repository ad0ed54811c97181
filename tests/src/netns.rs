//! Network namespaces that vanish with the value that holds them.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Every namespace of the tests begins with this, followed by the process id of its test binary.
const PREFIX: &str = "swt";

/// Where `ip netns` keeps the names.
const NAMES: &str = "/run/netns";

/// A named network namespace, deleted when dropped if it was made here.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    ours: bool,
}

impl Namespace {
    /// Makes a namespace whose name ends in `label`, with its loopback interface up.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN, or without the `ip` program.
    pub fn new(label: &str) -> Result<Self> {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(sweep);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{number}-{label}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))
            .with_context(|| format!("making network namespace {name} (this needs root)"))?;
        let namespace = Self { name, ours: true };
        namespace.run("ip", &["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// A namespace that somebody else made (the lab) and will delete.
    #[must_use]
    pub fn existing(name: &str) -> Self {
        Self { name: name.to_owned(), ours: false }
    }

    /// The name that `ip netns` knows it by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside, with the namespace's own `/sys` mounted.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a program inside to its end and gives its standard output.
    ///
    /// # Errors
    /// Where it cannot be started or ends with another status than 0; the message carries what it
    /// wrote.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        run(self.command(program).args(args))
    }

    /// Runs `f` on a thread of its own that lives inside the namespace: sockets and interface
    /// indexes are the namespace's. The caller's thread stays where it is.
    ///
    /// # Errors
    /// Where the namespace cannot be entered, or whatever `f` fails with.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(PathBuf::from(NAMES).join(&self.name))
            .with_context(|| format!("opening network namespace {}", self.name))?;
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("entering the namespace")?;
                f()
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Writes a network setting (a path below `/proc/sys/net`) inside. A setting that this kernel
    /// lacks is left alone: a kernel without IPv6 need not be told to keep it off.
    ///
    /// # Errors
    /// Where the setting exists and does not take the value.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        self.enter(|| match std::fs::write(format!("/proc/sys/net/{setting}"), value) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.with_context(|| format!("setting net/{setting} to {value}")),
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("leaving network namespace {} behind: {error:#}", self.name);
        }
    }
}

/// Deletes what test binaries that were killed have left: namespaces of processes that are gone.
fn sweep() {
    let Ok(names) = std::fs::read_dir(NAMES) else { return };
    for name in names.flatten() {
        let name = name.file_name().to_string_lossy().into_owned();
        let mut parts = name.split('-');
        let ours = parts.next() == Some(PREFIX);
        let Some(owner) = parts.next().and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if ours && !PathBuf::from(format!("/proc/{owner}")).exists() {
            // Another test binary may be sweeping as well: losing that race is fine.
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

/// Runs a command to its end and gives its standard output.
///
/// # Errors
/// Where it cannot be started or ends with another status than 0; the message carries the command
/// line and what it wrote.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end, whatever its status.
///
/// # Errors
/// Where it cannot be started; the message names it.
pub fn output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| {
        format!("starting {command:?} (scripts/test installs the programs the tests use)")
    })
}
