//! What goes wrong at the start is said clearly, with exit code 1 or 2, and harms nobody else.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use stillwire_tests::netns::{output, run};
use stillwire_tests::process::Ended;
use stillwire_tests::traffic::{Frames, Pace};
use stillwire_tests::{Wire, outside, sensor};
use tempfile::TempDir;

/// The command ended with code 1 or 2, and what it wrote contains each of the words, whatever
/// their case.
#[track_caller]
fn assert_refused(ended: &Ended, words: &[&str]) {
    let told = ended.stderr.to_lowercase();
    assert!(matches!(ended.code, Some(1 | 2)), "ended with {:?}: {told}", ended.code);
    for word in words {
        assert!(told.contains(&word.to_lowercase()), "{word:?} is not in: {}", ended.stderr);
    }
    assert!(!told.contains("panicked"), "{}", ended.stderr);
}

fn ended(command: &mut Command) -> Result<Ended> {
    let output = output(command)?;
    Ok(Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// `stillwired capture` on an interface of the sensor's namespace, started by `prefix` (such as
/// `setpriv …`); it is expected to end by itself.
fn try_capture(
    wire: &Wire,
    prefix: &[&str],
    interface: &str,
    store: &Path,
    args: &[&str],
) -> Result<Ended> {
    let program = sensor::binary("stillwired")?;
    let mut words: Vec<&std::ffi::OsStr> = prefix.iter().map(std::ffi::OsStr::new).collect();
    words.push(program.as_os_str());
    let mut command = wire.sensor.command(words[0]);
    // Were it to start after all, it would end soon and be seen to have succeeded.
    command.args(&words[1..]).args(["capture", "--duration", "5s", "--iface", interface]);
    command.arg("--store").arg(store).args(args);
    ended(&mut command)
}

/// A capture file with `count` frames.
fn capture_file(dir: &TempDir, count: u64) -> Result<PathBuf> {
    let file = dir.path().join("frames.pcap");
    Frames { count, bytes: 100, flows: 10, pace: Pace::Flood }.write(&file)?;
    Ok(file)
}

#[test]
fn no_such_interface() -> Result<()> {
    let (wire, dir) = (Wire::new()?, sensor::store_dir()?);
    let store = dir.path().join("store");
    let ended = try_capture(&wire, &[], "nosuch0", &store, &[])?;
    assert_refused(&ended, &["nosuch0"]);
    assert!(!store.exists(), "a start that failed leaves no store");
    Ok(())
}

#[test]
fn an_interface_without_native_xdp() -> Result<()> {
    let (wire, dir) = (Wire::new()?, sensor::store_dir()?);
    wire.sensor.run("ip", &["link", "add", "br0", "type", "bridge"])?;
    wire.sensor.run("ip", &["link", "set", "br0", "up"])?;
    let store = dir.path().join("store");
    let ended = try_capture(&wire, &[], "br0", &store, &["--mode", "native"])?;
    assert_refused(&ended, &["br0", "native"]);
    assert!(!store.exists(), "a start that failed leaves no store");
    Ok(())
}

#[test]
fn an_interface_that_the_machine_itself_needs() -> Result<()> {
    let (wire, dir) = (Wire::new()?, sensor::store_dir()?);
    wire.sensor.run("ip", &["address", "add", "10.1.0.2/24", "dev", Wire::SENSOR])?;
    wire.sensor.run("ip", &["route", "add", "default", "via", "10.1.0.1"])?;
    let ended = try_capture(&wire, &[], Wire::SENSOR, &dir.path().join("store"), &[])?;
    assert_refused(&ended, &[Wire::SENSOR, "default route", "--allow-host-interface"]);
    Ok(())
}

#[test]
fn each_missing_capability_is_named() -> Result<()> {
    let (wire, dir) = (Wire::new()?, sensor::store_dir()?);
    run(Command::new("chmod").arg("777").arg(dir.path()))?;
    let store = dir.path().join("store");
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let ended = try_capture(&wire, &nobody, Wire::SENSOR, &store, &[])?;
    assert_refused(&ended, &["CAP_NET_ADMIN", "CAP_BPF"]);
    // CAP_SYS_ADMIN would stand in for CAP_BPF.
    for (without, missing, there) in [
        ("-net_raw", "CAP_NET_RAW", "CAP_NET_ADMIN"),
        ("-net_admin,-sys_admin", "CAP_NET_ADMIN", "CAP_NET_RAW"),
        ("-bpf,-sys_admin", "CAP_BPF", "CAP_NET_RAW"),
    ] {
        let prefix = ["setpriv", "--bounding-set", without];
        let ended = try_capture(&wire, &prefix, Wire::SENSOR, &store, &[])?;
        assert_refused(&ended, &[missing]);
        assert!(!store.exists(), "a start without {missing} leaves no store");
        let first = ended.stderr.lines().next().unwrap_or_default();
        assert!(!first.contains(there), "{there} is not missing: {first}");
    }
    Ok(())
}

#[test]
fn another_xdp_program_stays_in_place() -> Result<()> {
    let (wire, dir) = (Wire::new()?, sensor::store_dir()?);
    let mut first = sensor::capture(&wire, &dir.path().join("first"), &[])?;
    let attached = || wire.sensor.run("ip", &["-d", "link", "show", Wire::SENSOR]);
    let before = attached()?;
    assert!(before.contains("prog/xdp"), "{before}");
    let store = dir.path().join("second");
    let ended = try_capture(&wire, &[], Wire::SENSOR, &store, &[])?;
    assert_refused(&ended, &["XDP program", Wire::SENSOR]);
    assert!(!store.exists(), "a start that failed leaves no store");
    assert_eq!(attached()?, before, "the first program is still attached");
    assert!(first.runs()?);
    first.interrupt()?.success()?;
    Ok(())
}

#[test]
fn a_store_that_another_sensor_writes() -> Result<()> {
    let (wire, dir) = (Wire::new()?, sensor::store_dir()?);
    let store = dir.path().join("store");
    let first = sensor::capture(&wire, &store, &[])?;
    let file = capture_file(&dir, 10)?;
    let (store_arg, file) = (store.to_string_lossy(), file.to_string_lossy());
    let ended = sensor::stillwired(&["replay", "--store", &store_arg, &file])?;
    assert_refused(&ended, &[&store_arg, "in use"]);
    first.interrupt()?.success()?;
    // Free again.
    sensor::replay(&store, &[Path::new(file.as_ref())])?;
    Ok(())
}

#[test]
fn a_store_of_a_newer_format() -> Result<()> {
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let file = capture_file(&dir, 10)?;
    sensor::replay(&store, &[&file])?;
    let identity = store.join("sensor.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&identity)?)?;
    let version = json["format_version"].as_u64().expect("sensor.json has a format version");
    json["format_version"] = (version + 1).into();
    std::fs::write(&identity, serde_json::to_vec(&json)?)?;

    let (store_arg, file) = (store.to_string_lossy(), file.to_string_lossy());
    let ended = sensor::stillwired(&["replay", "--store", &store_arg, &file])?;
    assert_refused(&ended, &["format", "newer"]);
    assert_refused(&sensor::stillwire_ended(&store, &["sessions"])?, &["format", "newer"]);
    Ok(())
}

/// A filesystem in memory, mounted in a directory and gone when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: PathBuf, options: &str) -> Result<Self> {
        std::fs::create_dir(&at)?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "stillwire-test"]).arg(&at))?;
        Ok(Self(at))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(&self.0)) {
            eprintln!("leaving {} mounted: {error:#}", self.0.display());
        }
    }
}

#[test]
fn a_full_disk() -> Result<()> {
    let (wire, dir) = (Wire::new()?, sensor::store_dir()?);
    let disk = Tmpfs::mount(dir.path().join("disk"), "size=512k")?;
    std::fs::write(disk.0.join("filler"), vec![1; 500 << 10])?;
    let ended = try_capture(&wire, &[], Wire::SENSOR, &disk.0.join("store"), &[])?;
    assert_refused(&ended, &["free some space"]);
    assert!(!disk.0.join("store").exists(), "a start that failed leaves no store");
    Ok(())
}

#[test]
fn a_read_only_disk() -> Result<()> {
    let (wire, dir) = (Wire::new()?, sensor::store_dir()?);
    let disk = Tmpfs::mount(dir.path().join("disk"), "ro")?;
    let ended = try_capture(&wire, &[], Wire::SENSOR, &disk.0.join("store"), &[])?;
    assert_refused(&ended, &["read-only"]);
    Ok(())
}

#[test]
fn files_that_are_no_captures() -> Result<()> {
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let store_arg = store.to_string_lossy();
    for (name, content) in [
        ("letter.txt", b"Dear sensor, this is no capture, but a letter of some length.".as_slice()),
        ("empty.pcap", b"".as_slice()),
        ("short.pcap", b"\xd4\xc3\xb2\xa1\x02\x00".as_slice()),
    ] {
        let file = dir.path().join(name);
        std::fs::write(&file, content)?;
        let ended =
            sensor::stillwired(&["replay", "--store", &store_arg, &file.to_string_lossy()])?;
        assert_refused(&ended, &[name]);
    }
    let missing = dir.path().join("missing.pcap");
    let ended = sensor::stillwired(&["replay", "--store", &store_arg, &missing.to_string_lossy()])?;
    assert_refused(&ended, &["missing.pcap", "no such file"]);
    Ok(())
}

#[test]
fn a_capture_that_is_cut_off_is_used_up_to_the_cut() -> Result<()> {
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let file = capture_file(&dir, 100)?;
    let whole = std::fs::read(&file)?;
    // In the middle of the last frame.
    std::fs::write(&file, &whole[..whole.len() - 50])?;
    let ended = sensor::stillwired(&[
        "replay",
        "--store",
        &store.to_string_lossy(),
        &file.to_string_lossy(),
    ])?;
    assert_refused(&ended, &["frames.pcap", "cut"]);
    assert_eq!(outside::recorded_frames(&store)?, 99);
    assert_eq!(sensor::sum(&sensor::sessions(&store, "")?, "orig_pkts")?, 99);
    Ok(())
}

#[test]
fn wrong_questions() -> Result<()> {
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let missing = sensor::stillwire_ended(&store, &["sessions"])?;
    assert_refused(&missing, &[&store.to_string_lossy()]);
    sensor::replay(&store, &[&capture_file(&dir, 10)?])?;
    let ended = sensor::stillwire_ended(&store, &["sessions", "host 10.1.0.1 adn port 80"])?;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("adn"), "{}", ended.stderr);
    let ended = sensor::stillwire_ended(&store, &["sessions", "--from", "the day before"])?;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    Ok(())
}
