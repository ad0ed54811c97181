//! What signing, verifying and hashing cost on this machine.
//!
//! `cargo run --release -p capture-store --example cost_of_vouching`

use std::error::Error;
use std::time::{Duration, Instant};

use capture_flow::time::Nanos;
use capture_store::key::{Domain, SecretKey};
use capture_store::ledger::{
    Interface, LedgerLine, LedgerWriter, Nic, Queue, Worker, read, read_chained,
};
use capture_store::{OwnedStore, RunId};

const LINES: u32 = 20_000;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("stillwire-cost-{}", std::process::id()));
    let outcome = measure(&dir);
    std::fs::remove_dir_all(&dir)?;
    outcome
}

fn measure(dir: &std::path::Path) -> Result<(), Box<dyn Error>> {
    let store = OwnedStore::open_or_create(dir, Some("cost"))?;
    let run = RunId::new(Nanos(0))?;
    let mut ledger = LedgerWriter::open(&store)?;
    let begun = Instant::now();
    for interval in 0..u64::from(LINES) {
        ledger.append(&mut line(&run, interval))?;
    }
    let appended = begun.elapsed() / LINES;
    let bytes = std::fs::metadata(store.layout().ledger_day("cost", Nanos(0)))?.len();

    let text = serde_json::to_vec(&line(&run, 0))?;
    let key = SecretKey::ephemeral()?;
    let signature = key.sign(Domain::LedgerLine, &text);
    let public = key.public();
    let sign = each(2_000, || {
        std::hint::black_box(key.sign(Domain::LedgerLine, &text));
    });
    let verify = each(2_000, || {
        std::hint::black_box(public.verifies(Domain::LedgerLine, &text, &signature));
    });
    let megabyte = vec![7_u8; 1 << 20];
    let hash = each(500, || {
        std::hint::black_box(blake3::hash(&megabyte));
    });
    let begun = Instant::now();
    let plain = read(store.store(), Nanos::MIN, Nanos::MAX)?.lines.len();
    let plain = (plain, begun.elapsed());
    let begun = Instant::now();
    let (chained, chain) = read_chained(store.store(), None, Nanos::MIN, Nanos::MIN, Nanos::MAX)?;
    let chained = (chained.lines.len(), begun.elapsed());

    println!("a line of {} bytes, two interfaces with two queues each", bytes / u64::from(LINES));
    println!("append a line, signed and chained:   {appended:?}");
    println!("  of which the signature:            {sign:?}");
    println!("verify a signature:                  {verify:?}");
    println!("BLAKE3, one thread:                  {:.0} MB/s", 1.048_576 / hash.as_secs_f64());
    println!("read {} lines:                    {:?}", plain.0, plain.1);
    println!("read {} lines and their chain:    {:?} ({})", chained.0, chained.1, chain.as_str());
    Ok(())
}

fn each(times: u32, mut work: impl FnMut()) -> Duration {
    let begun = Instant::now();
    (0..times).for_each(|_| work());
    begun.elapsed() / times
}

/// A line as a busy sensor writes it.
fn line(run: &RunId, interval: u64) -> LedgerLine {
    let at = |interval: u64| Nanos(interval as i64 * 1_000_000);
    let mut line = LedgerLine::new("cost", run, interval, at(interval), at(interval + 1));
    for name in ["tap0", "tap1"] {
        let queue = |queue| Queue { queue, received: 123_456, ..Queue::default() };
        line.interfaces.push(Interface {
            name: name.to_owned(),
            backend: "native-zerocopy".to_owned(),
            nic: Some(Nic { rx_packets: 246_912, rx_bytes: 123_456_789, ..Nic::default() }),
            queues: vec![queue(0), queue(1)],
            ..Interface::default()
        });
    }
    for worker in 0..2 {
        line.workers.push(Worker { worker, received: 246_912, ..Worker::default() });
    }
    line
}
