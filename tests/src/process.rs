//! Programs that a test starts: awaited by what they write, ended by their process id, never left
//! behind.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take before a test gives up on it. Generous: it bounds a hang, it does
/// not judge speed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Everything it wrote to standard output.
    pub stdout: String,
    /// Everything it wrote to standard error.
    pub stderr: String,
}

impl Ended {
    /// Gives the standard output of a program that ended with code 0.
    ///
    /// # Errors
    /// Any other end; the message carries what it wrote.
    pub fn success(self) -> Result<String> {
        if self.code != Some(0) {
            bail!("ended with {:?}\n{}{}", self.code, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }
}

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    stdout: File,
    stderr: File,
}

impl Program {
    /// Starts a command with nothing on its standard input. What it writes goes to files, so it
    /// never waits for a reader.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = format!("{command:?}");
        let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name, child, stdout, stderr })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard error so far.
    ///
    /// # Errors
    /// Where the file that collects it cannot be read.
    pub fn stderr(&self) -> Result<String> {
        content(&self.stderr)
    }

    /// Waits until `text` stands in what it writes to standard error.
    ///
    /// # Errors
    /// If it ends before, or the patience does.
    pub fn await_stderr(&mut self, text: &str) -> Result<()> {
        let name = self.name.clone();
        await_until(&format!("{text:?} from {name}"), || {
            let written = self.stderr()?;
            if written.contains(text) {
                return Ok(Some(()));
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended early with {status}\n{written}", self.name);
            }
            Ok(None)
        })
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// Where its state cannot be read.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// Where it is gone already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let id = id.context("a process id that is none")?;
        kill_process(id, signal).with_context(|| format!("sending {signal:?} to {}", self.name))
    }

    /// Asks it to end (SIGINT) and waits for that.
    ///
    /// # Errors
    /// If it does not end within the patience.
    pub fn interrupt(self) -> Result<Ended> {
        self.signal(Signal::INT)?;
        self.wait()
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// If it was gone already.
    pub fn kill(self) -> Result<Ended> {
        self.signal(Signal::KILL)?;
        self.wait()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end within the patience; it is killed then.
    pub fn wait(mut self) -> Result<Ended> {
        let name = self.name.clone();
        let status = await_until(&format!("the end of {name}"), || Ok(self.child.try_wait()?))
            .with_context(|| self.stderr().unwrap_or_default())?;
        let (stdout, stderr) = (content(&self.stdout)?, content(&self.stderr)?);
        Ok(Ended { code: status.code(), stdout, stderr })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // trafgen works in a process of its own, which would go on without its parent.
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = std::fs::read_to_string(path).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|id| Pid::from_raw(id.parse().ok()?)) {
            let _ = kill_process(child, Signal::KILL);
        }
        // Both fail where it has ended, which is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls until `ready` gives a value.
///
/// # Errors
/// What `ready` fails with, or the end of the patience.
pub fn await_until<T>(what: &str, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if begun.elapsed() > PATIENCE {
            bail!("waited {PATIENCE:?} for {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn content(file: &File) -> Result<String> {
    // The descriptor's position is shared with the writer, which may be writing now: read by a
    // path of our own instead of seeking.
    use std::os::fd::AsRawFd;
    let mut own = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let mut bytes = Vec::new();
    own.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_writes_and_how_it_ends_is_known() {
        let mut shell = Command::new("sh");
        let mut program = Program::start(shell.args([
            "-c",
            "trap 'echo out; exit 3' INT; echo ready >&2; while :; do sleep 0.05; done",
        ]))
        .unwrap();
        program.await_stderr("ready").unwrap();
        let ended = program.interrupt().unwrap();
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(3), "out\n"));
    }

    #[test]
    fn a_dropped_program_is_gone() {
        let program = Program::start(Command::new("sleep").arg("1000")).unwrap();
        let path = format!("/proc/{}", program.id());
        assert!(std::path::Path::new(&path).exists());
        drop(program);
        assert!(!std::path::Path::new(&path).exists());
    }

    #[test]
    fn the_children_of_a_dropped_program_are_gone_too() {
        let mut program =
            Program::start(Command::new("sh").args(["-c", "sleep 1000 & echo child $! >&2; wait"]))
                .unwrap();
        program.await_stderr("\n").unwrap();
        let told = program.stderr().unwrap();
        let child = told.trim().rsplit(' ').next().unwrap().to_owned();
        drop(program);
        await_until("the end of the child", || {
            let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            // Gone, or dead and waiting for whoever takes orphans in.
            Ok((state.is_empty() || state.contains(") Z ")).then_some(()))
        })
        .unwrap();
    }

    #[test]
    fn waiting_for_words_that_never_come_ends_with_the_program() {
        let mut program =
            Program::start(Command::new("sh").args(["-c", "echo no such thing >&2"])).unwrap();
        let error = program.await_stderr("ready").unwrap_err().to_string();
        assert!(error.contains("no such thing"), "{error}");
    }
}
