//! The lab of `scripts/lab`, where real programs speak.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::netns::{Namespace, run};
use crate::process::Program;

/// The lab, taken down when dropped.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
}

impl Lab {
    /// The host that offers services, as others see it.
    pub const BOB: &str = "10.77.0.2";

    /// Brings it up.
    ///
    /// # Errors
    /// Without root or the programs that it needs.
    pub fn up() -> Result<Self> {
        Self::named("lab")
    }

    /// Brings one up beside others of the same process.
    ///
    /// # Errors
    /// Without root or the programs that it needs.
    pub fn named(name: &str) -> Result<Self> {
        let lab = Self { prefix: format!("swt-{}-{name}", std::process::id()) };
        lab.script("up")?;
        Ok(lab)
    }

    /// Runs the script with one of its verbs.
    ///
    /// # Errors
    /// Where it fails.
    pub fn script(&self, verb: &str) -> Result<String> {
        let script = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/lab"));
        run(Command::new(script).arg(verb).env("STILLWIRE_LAB", &self.prefix))
    }

    /// One of its namespaces: `alice`, `bob`, `switch`, `sensor`.
    #[must_use]
    pub fn namespace(&self, role: &str) -> Namespace {
        Namespace::existing(&format!("{}-{role}", self.prefix))
    }

    /// Logs in from alice to bob by SSH and runs a command there.
    ///
    /// # Errors
    /// Where ssh cannot be started.
    pub fn ssh(&self, remote: &str) -> Result<Program> {
        let key = format!("/run/stillwire-lab/{}/login_key", self.prefix);
        let mut command = self.namespace("alice").command("ssh");
        command.args(["-i", &key, "-F", "/dev/null", "-o", "BatchMode=yes"]);
        command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        command.args(["-o", "LogLevel=ERROR", "-o", "ServerAliveInterval=0"]);
        command.args(["-o", "TCPKeepAlive=no"]).arg(format!("root@{}", Self::BOB)).arg(remote);
        Program::start(&mut command)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.script("down") {
            eprintln!("leaving the lab {} behind: {error:#}", self.prefix);
        }
    }
}
