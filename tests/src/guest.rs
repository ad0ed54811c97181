//! A small Linux machine of its own under QEMU, whose power a test can cut.
//!
//! It runs a kernel of the distribution, not the one of this machine, and finds in its initial
//! memory disk what it needs: busybox, `ip`, and the programs under test with their libraries. Its
//! disk is a file, which outlives it as a real one does: what the guest's kernel had not written
//! when the power was cut is gone. QEMU emulates the processor, so it needs no virtualisation.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::netns::run;
use crate::process::{Ended, PATIENCE};
use crate::sensor::binary;

/// Modules for the disk and the wire, each after those that it needs.
const MODULES: [&str; 7] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
    "drivers/net/veth",
];
/// Where the disk is mounted in the guest.
pub const DISK: &str = "/disk";
/// What begins a line that is the guest's shell's and not some program's.
const MARK: &str = "@@guest";

/// The first process: mounts what there is and then does what the console says.
const INIT: &str = r#"#!/bin/sh
export PATH=/sbin:/bin NO_COLOR=1 HOME=/
# The shell runs the others through /proc.
busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
for module in /modules/*.ko; do insmod $module || exit 1; done
mount -t ext4 /dev/vda /disk || exit 1
/sbin/ip link set lo up
stty -F /dev/ttyS0 raw -echo
echo "@@guest $(uname -r)"
exec sh /dev/ttyS0 < /dev/null > /dev/ttyS0 2>&1
"#;

/// A machine that is switched off: what it boots, and its disk.
#[derive(Debug)]
pub struct Machine {
    dir: TempDir,
    kernel: PathBuf,
}

impl Machine {
    /// Puts a machine together, with an empty ext4 file system on its disk.
    ///
    /// # Errors
    /// Where the kernel was not unpacked or a program is missing; the message says what does it.
    pub fn new() -> Result<Self> {
        let unpacked = unpacked_kernel()?;
        let kernel = only_entry(&unpacked.join("boot"), "vmlinuz-")?;
        let modules = only_entry(&unpacked.join("lib/modules"), "")?.join("kernel");
        let dir = tempfile::Builder::new().prefix("stillwire-test-").tempdir()?;
        let root = dir.path().join("root");
        for name in ["bin", "sbin", "dev", "proc", "sys", "run", "tmp", "modules", "disk"] {
            std::fs::create_dir_all(root.join(name))?;
        }
        for (number, module) in MODULES.iter().enumerate() {
            let name = module.rsplit('/').next().unwrap_or(module);
            let to = root.join("modules").join(format!("{number}-{name}.ko"));
            let from = modules.join(format!("{module}.ko"));
            std::fs::copy(&from, to).with_context(|| format!("copying {}", from.display()))?;
        }
        // Its shell finds all that busybox is without links to it.
        std::fs::copy(which("busybox")?, root.join("bin/busybox"))?;
        std::os::unix::fs::symlink("busybox", root.join("bin/sh"))?;
        // busybox' own `ip` knows neither namespaces nor veth pairs.
        for program in [which("ip")?, binary("stillwired")?, binary("stillwire")?] {
            install(&program, &root)?;
        }
        let init = root.join("init");
        std::fs::write(&init, INIT)?;
        run(Command::new("chmod").arg("0755").arg(&init))?;
        let (disk, image) = (dir.path().join("disk"), dir.path().join("initrd"));
        let pack = "cd \"$1\" && find . | busybox cpio -o -H newc > \"$2\"";
        run(Command::new("sh").args(["-c", pack, "pack"]).arg(&root).arg(&image))?;
        std::fs::remove_dir_all(&root)?;
        std::fs::File::create(&disk)?.set_len(512 << 20)?;
        run(Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&disk))?;
        Ok(Self { dir, kernel })
    }

    /// Switches it on and waits for its shell.
    ///
    /// # Errors
    /// Where it does not come up; the message carries what stood on its console.
    pub fn boot(&self) -> Result<Guest> {
        let file = |name| self.dir.path().join(name).to_string_lossy().into_owned();
        // Should the test be killed, nobody else would end it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max"]);
        command.args(["-m", "1024", "-smp", "1", "-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-serial", "stdio"]);
        command.arg("-kernel").arg(&self.kernel).args(["-initrd", &file("initrd")]);
        // A first process that ends is a panic, and a panic ends QEMU's console here.
        command.args(["-append", "console=ttyS0 quiet loglevel=1 panic=-1"]);
        command.args(["-drive", &format!("file={},format=raw,if=virtio", file("disk"))]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut qemu = command.spawn().context("starting qemu-system-x86_64")?;
        let input = qemu.stdin.take().context("no console")?;
        let output = BufReader::new(qemu.stdout.take().context("no console")?);
        let (lines, console) = channel();
        // Ends with QEMU, whose end closes the pipe.
        std::thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        let mut guest = Guest { qemu, input, console, kernel: String::new(), commands: 0 };
        guest.await_shell()?;
        Ok(guest)
    }
}

/// A machine that is running; its power is cut when dropped.
#[derive(Debug)]
pub struct Guest {
    qemu: Child,
    input: ChildStdin,
    console: Receiver<String>,
    kernel: String,
    commands: u64,
}

impl Guest {
    /// The release of its kernel.
    #[must_use]
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Runs a shell command to its end, whatever that is. Standard output and standard error come
    /// together, as on any console. A program in the background must have its output elsewhere.
    ///
    /// # Errors
    /// Where the guest does not answer.
    pub fn run(&mut self, command: &str) -> Result<Ended> {
        self.commands += 1;
        let mark = format!("{MARK} {} ", self.commands);
        writeln!(self.input, "{{ {command}\n}}; code=$?; echo; echo \"{mark}$code\"")?;
        self.input.flush()?;
        let (mut stdout, code) = self.read_to(&mark).with_context(|| command.to_owned())?;
        // The line's end in front of the mark, where the output had one of its own.
        if stdout.ends_with("\n\n") || stdout == "\n" {
            stdout.pop();
        }
        let code = Some(code.parse().with_context(|| format!("{command}: {code:?}"))?);
        Ok(Ended { code, stdout, stderr: String::new() })
    }

    /// Runs a shell command that must end with 0, and gives what it wrote.
    ///
    /// # Errors
    /// Any other end.
    pub fn must(&mut self, command: &str) -> Result<String> {
        self.run(command)?.success().with_context(|| command.to_owned())
    }

    /// Cuts the power: nothing that the guest's kernel had not written is on the disk.
    ///
    /// # Errors
    /// Where QEMU is gone already.
    pub fn cut_power(mut self) -> Result<()> {
        ensure!(self.qemu.try_wait()?.is_none(), "the guest is off already");
        self.qemu.kill()?;
        self.qemu.wait()?;
        Ok(())
    }

    /// Has it write its disk's cache and start anew, without ending any program in order.
    ///
    /// # Errors
    /// Where it does not come up again.
    pub fn reboot(&mut self) -> Result<()> {
        writeln!(self.input, "sync; reboot -f")?;
        self.input.flush()?;
        self.await_shell()
    }

    fn await_shell(&mut self) -> Result<()> {
        (_, self.kernel) = self.read_to(&format!("{MARK} ")).context("booting the guest")?;
        Ok(())
    }

    /// What stands on the console in front of a mark, and behind it in its line.
    fn read_to(&mut self, mark: &str) -> Result<(String, String)> {
        let mut read = String::new();
        loop {
            let Ok(line) = self.console.recv_timeout(PATIENCE) else {
                bail!("the guest's console says no more within {PATIENCE:?}; it said:\n{read}");
            };
            if let Some(rest) = line.strip_prefix(mark) {
                return Ok((read, rest.trim().to_owned()));
            }
            ensure!(!line.contains("Kernel panic"), "the guest has failed:\n{read}{line}");
            read.push_str(&line);
            read.push('\n');
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail where it has ended, which is what we want.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Where the distribution's kernel was unpacked.
fn unpacked_kernel() -> Result<PathBuf> {
    let given = std::env::var_os("STILLWIRE_GUEST_KERNEL").map(PathBuf::from);
    // target/<profile>/deps/<test>
    let own = std::env::current_exe()?;
    let own = own.ancestors().nth(3).map(|target| target.join("guest-kernel"));
    let dir = given.or(own).context("a test binary outside a target directory")?;
    ensure!(
        dir.join("boot").is_dir(),
        "no kernel for the guest in {}: `scripts/test packages` puts one there",
        dir.display()
    );
    Ok(dir)
}

/// The entry of a directory whose name begins so.
fn only_entry(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let mut entries = entries.flatten().map(|entry| entry.path());
    let found = entries.find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    });
    found.with_context(|| format!("{} has no {prefix}…", dir.display()))
}

fn which(program: &str) -> Result<PathBuf> {
    let found = run(Command::new("sh").args(["-c", "command -v \"$1\"", "which", program]))
        .with_context(|| format!("{program} is missing: `scripts/test packages` installs it"))?;
    Ok(PathBuf::from(found.trim()))
}

/// Puts a program into the guest's `/sbin`, without what only a debugger needs, and its libraries
/// where it looks for them.
fn install(program: &Path, root: &Path) -> Result<()> {
    let name = program.file_name().context("a program without a name")?;
    run(Command::new("strip").arg("-o").arg(root.join("sbin").join(name)).arg(program))?;
    let libraries = run(Command::new("ldd").arg(program))?;
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().context("a library without a directory")?)?;
        std::fs::copy(library, &to).with_context(|| format!("copying {library}"))?;
    }
    Ok(())
}
