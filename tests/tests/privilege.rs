//! Which privileges receiving takes, and what is said when one is missing. Capabilities belong to
//! threads: each test drops them on the thread that lives in its namespace.

use std::process::Command;

use anyhow::Result;
use caps::{CapSet, Capability, CapsHashSet};
use capture_flow::frame::IfaceId;
use capture_user::args::Mode;
use capture_user::link::{Link, Promiscuous};
use capture_user::program::Program;
use capture_user::source::af_xdp::{AfXdp, AfXdpConfig};
use rustix::process::{Resource, Rlimit, setrlimit};
use stillwire_tests::Wire;

const NEEDED: [Capability; 4] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
];

/// Keeps only these capabilities on this thread.
fn keep(capabilities: &[Capability]) -> Result<()> {
    let set: CapsHashSet = capabilities.iter().copied().collect();
    Ok(caps::set(None, CapSet::Effective, &set)?)
}

fn without(missing: Capability) -> Vec<Capability> {
    NEEDED.into_iter().filter(|capability| *capability != missing).collect()
}

/// Everything that a capture does on one queue.
fn open(ring_size: u32) -> Result<()> {
    let link = Link::by_name(Wire::SENSOR)?;
    let _promiscuous = Promiscuous::on(&link)?;
    let program = Program::load(&link.name, link.rx_queues)?;
    let attached = program.attach(&link, Mode::Auto)?;
    let config = AfXdpConfig { iface: IfaceId(0), queue: 0, ring_size, frame_size: 2048 };
    AfXdp::open(&config, &link, &program, attached.mode)?;
    Ok(())
}

fn message(missing: Capability) -> String {
    let wire = Wire::new().expect("a wire");
    let opened = wire.sensor.enter(|| {
        keep(&without(missing))?;
        open(64)
    });
    format!("{:#}", opened.expect_err("a capability is missing"))
}

#[test]
fn four_capabilities_and_a_small_ring_are_enough() {
    let wire = Wire::new().unwrap();
    wire.sensor
        .enter(|| {
            keep(&NEEDED)?;
            open(64)
        })
        .unwrap();
}

#[test]
fn without_cap_bpf_the_message_says_so() {
    let message = message(Capability::CAP_BPF);
    assert!(message.contains("CAP_BPF is missing"), "{message}");
}

#[test]
fn without_cap_perfmon_the_message_says_so() {
    let message = message(Capability::CAP_PERFMON);
    assert!(message.contains("CAP_PERFMON is missing"), "{message}");
}

#[test]
fn without_cap_net_admin_the_message_says_so() {
    let message = message(Capability::CAP_NET_ADMIN);
    assert!(message.contains("CAP_NET_ADMIN is missing"), "{message}");
}

#[test]
fn without_cap_net_raw_the_message_says_so() {
    let wire = Wire::new().unwrap();
    let error = wire.sensor.enter(|| {
        let link = Link::by_name(Wire::SENSOR)?;
        keep(&without(Capability::CAP_NET_RAW))?;
        let program = Program::load(&link.name, link.rx_queues)?;
        let attached = program.attach(&link, Mode::Auto)?;
        let config = AfXdpConfig { iface: IfaceId(0), queue: 0, ring_size: 64, frame_size: 2048 };
        AfXdp::open(&config, &link, &program, attached.mode)?;
        Ok(())
    });
    let message = format!("{:#}", error.unwrap_err());
    assert!(message.contains("CAP_NET_RAW is missing"), "{message}");
}

#[test]
fn memory_that_may_not_be_locked_is_explained() {
    // The limit is the whole process's, and once lowered it stays: this test runs itself again in
    // a process of its own.
    const NAME: &str = "memory_that_may_not_be_locked_is_explained";
    const INSIDE: &str = "STILLWIRE_TEST_LOCKED_MEMORY";
    if std::env::var_os(INSIDE).is_none() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", NAME, "--nocapture"]).env(INSIDE, "1");
        stillwire_tests::netns::run(&mut command).unwrap();
        return;
    }
    let limit = Some(1 << 20);
    setrlimit(Resource::Memlock, Rlimit { current: limit, maximum: limit }).unwrap();
    let wire = Wire::new().unwrap();
    let error = wire.sensor.enter(|| {
        keep(&NEEDED)?;
        open(8192)
    });
    let message = format!("{:#}", error.unwrap_err());
    assert!(message.contains("lock 16 MiB") && message.contains("CAP_IPC_LOCK"), "{message}");
}
