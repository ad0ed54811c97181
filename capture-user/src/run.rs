//! What `capture` and `replay` have in common: the store, the threads that keep it, their end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use capture_flow::config::FlowConfig;
use capture_flow::frame::LinkType;
use capture_flow::join::{JoinConfig, Joiner};
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::Provenance;
use capture_store::ledger::{BlindCause, LedgerWriter, Note};
use capture_store::segment::{SealPolicy, SegmentSpec};
use capture_store::sessions::{LogPolicy, PendingSeal, SessionLog};
use capture_store::store::{OwnedStore, Purpose, RunId, random_u128};
use crossbeam::channel::{Receiver, Sender, unbounded};
use tracing::{info, warn};

use crate::account::WorkerCounts;
use crate::anchor::{Anchors, Place};
use crate::blind::{Blindness, Subject};
use crate::budget::{Disk, Keeper};
use crate::canary;
use crate::config::{Config, Space};
use crate::confine::Kept;
use crate::flush::{Flush, FlushThread, FlushTotals, ReplayedFiles};
use crate::interval::{Intervals, Probe};
use crate::keeper::{KeeperNews, Lane, Making, Preparer, Sealer};
use crate::names::InterfaceNames;
use crate::silence::SignsOfLife;
use crate::simulate::{Simulation, Summary};
use crate::status::Totals;
use crate::units::{Bytes, Grouped};
use crate::worker::{ReplayClock, Shared};

/// A run before its threads are started.
pub struct Run {
    /// The store, locked for this run.
    pub store: Arc<OwnedStore>,
    /// Its name.
    pub id: RunId,
    /// Rules for sessions; the worker's number is still to be filled in.
    flow: FlowConfig,
    /// Bytes kept of each frame.
    snaplen: u32,
    /// Length of a ledger interval.
    interval: NanosDelta,
    /// Where heads of the ledger are kept besides, and how often.
    anchors: (Vec<Place>, Duration),
    /// What is only simulated, if anything is.
    simulation: Option<Simulation>,
    /// Capabilities that the threads keep.
    pub kept: Kept,
    /// One for each worker.
    pub workers: Vec<Arc<Shared>>,
    /// One for each worker.
    pub lanes: Vec<Arc<Lane>>,
    /// Interfaces by number.
    pub names: Arc<InterfaceNames>,
    /// Replayed files.
    pub files: ReplayedFiles,
    /// What the flush thread counts.
    pub totals: Arc<FlushTotals>,
    /// Times in which the sensor could not see.
    pub blind: Arc<Blindness>,
    /// What the store takes on disk.
    pub disk: Arc<Disk>,
    /// Things to be said in the ledger.
    pub notes: Sender<Note>,
    notes_out: Receiver<Note>,
    news: Sender<KeeperNews>,
    news_out: Receiver<KeeperNews>,
    seals: Sender<PendingSeal>,
    seals_out: Receiver<PendingSeal>,
}

impl Run {
    /// Takes the store for writing, recovers what an earlier run left open, and says so.
    /// `sources` is how many sources each worker has.
    ///
    /// # Errors
    /// The store cannot be used, and why.
    pub fn open(config: &Config, started: Nanos, sources: &[usize]) -> Result<Self> {
        let purpose = match config.simulation {
            Some(_) => Purpose::Simulation,
            None => Purpose::Record,
        };
        let (sensor, key) = (config.sensor.as_deref(), config.key.as_deref());
        let store = OwnedStore::open_for(&config.store, sensor, key, purpose)?;
        Self::over(store, config, started, sources)
    }

    fn over(store: OwnedStore, config: &Config, started: Nanos, sources: &[usize]) -> Result<Self> {
        let unused = |_: &std::io::Error| store.remove_if_unused();
        let id = RunId::new(started).inspect_err(unused).context("cannot name the run")?;
        let uid_seed = random_u128().inspect_err(unused).context("cannot read random numbers")?;
        let (notes, notes_out) = unbounded();
        let (news, news_out) = unbounded();
        let (seals, seals_out) = unbounded();
        let recovery = store.recovery();
        if recovery.was_unclean() {
            warn!(
                "the last run ended uncleanly{}; recovered {} segments with {} frames ({}), {} files \
                 of the session log with {} rows; {} lost{}",
                if recovery.rebooted { ", and the machine was restarted" } else { "" },
                recovery.segments,
                Grouped(recovery.frames),
                Bytes(recovery.bytes),
                recovery.live_files,
                Grouped(recovery.rows),
                Bytes(recovery.all_bytes_lost()),
                match recovery.frames_lost {
                    0 => String::new(),
                    frames => format!(", with about {} frames", Grouped(frames)),
                },
            );
            for left in &recovery.left {
                warn!("not recovered and left as it is: {left}");
            }
        }
        let mut flow = config.flow.clone();
        flow.hash_seed = store.identity().hash_seed();
        flow.uid_seed = uid_seed;
        let workers = (0_u16..).zip(sources);
        let workers: Vec<_> =
            workers.map(|(worker, sources)| Arc::new(Shared::new(worker, *sources))).collect();
        let lanes = workers.iter().map(|worker| Arc::new(Lane::new(worker.worker))).collect();
        let disk = Arc::new(Disk::default());
        disk.look(&store);
        let blind = Blindness::default();
        if let Some(simulation) = &config.simulation {
            // From before the first line until after the last one: every line says it.
            let subject = Subject::sensor(BlindCause::Simulated);
            blind.begin(subject, started, &simulation.to_string());
        }
        Ok(Self {
            kept: Kept::for_store(&config.store),
            id,
            flow,
            snaplen: config.snaplen.unwrap_or(capture_store::pcap::MAX_SNAPLEN),
            interval: config.ledger_interval,
            simulation: config.simulation,
            anchors: (config.anchors.clone(), config.anchor_interval),
            workers,
            lanes,
            names: Arc::default(),
            files: Arc::new(Mutex::new(Vec::new())),
            totals: Arc::default(),
            blind: Arc::new(blind),
            disk,
            notes,
            notes_out,
            news,
            news_out,
            seals,
            seals_out,
            store: Arc::new(store),
        })
    }

    /// The run could not begin: a store that was made for it goes again.
    pub fn give_up(&self) {
        self.store.remove_if_unused();
    }

    /// Bytes that the store takes now.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.disk.packets().saturating_add(self.disk.sessions())
    }

    /// Session rules of one worker.
    #[must_use]
    pub fn flow(&self, worker: u16) -> FlowConfig {
        FlowConfig { worker, halves: self.workers.len() > 1, ..self.flow.clone() }
    }

    /// What a segment of one worker shall be.
    #[must_use]
    pub fn segment_spec(&self, worker: u16, bytes: u64, link: LinkType) -> SegmentSpec {
        let provenance =
            Provenance { run: Some(self.id.tag()), vlan_in_key: Some(self.flow.vlan_in_key) };
        SegmentSpec { snaplen: self.snaplen, provenance, ..SegmentSpec::new(worker, bytes, link) }
    }

    /// Bytes kept of each frame.
    #[must_use]
    pub fn snaplen(&self) -> u32 {
        self.snaplen
    }

    /// How segments of one worker are made.
    ///
    /// # Errors
    /// The worker's directory cannot be used.
    pub fn making(&self, worker: u16, lane: &Arc<Lane>, bytes: u64) -> Result<Making> {
        Ok(Making {
            lane: Arc::clone(lane),
            dir: self.store.layout().worker(worker),
            next_sequence: self.store.next_sequence(worker)?,
            spec: self.segment_spec(worker, bytes, LinkType::ETHERNET),
            in_memory: self.simulates_disk(),
        })
    }

    /// Starts the thread that prepares segments, with the first of each worker ready.
    ///
    /// # Errors
    /// The disk cannot be used, and why.
    pub fn start_preparer(&self, segment_bytes: u64) -> Result<Preparer> {
        let lanes = (0_u16..).zip(&self.lanes);
        let makings: Result<Vec<_>> =
            lanes.map(|(worker, lane)| self.making(worker, lane, segment_bytes)).collect();
        Preparer::start(makings?, self.news.clone(), self.kept)
    }

    /// Starts the thread that seals files and keeps the budgets.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start_sealer(&self, space: Space) -> Result<Sealer> {
        let mut keeper = Keeper::new(Arc::clone(&self.store), space, Arc::clone(&self.disk));
        let kept = self.kept;
        let mut confined = false;
        let after = move |news: &Sender<KeeperNews>| {
            if !std::mem::replace(&mut confined, true) {
                kept.confine();
            }
            keeper.keep(news)
        };
        let (seals, news) = (self.seals_out.clone(), self.news.clone());
        let store = Arc::clone(&self.store);
        // What no disk has nobody seals.
        let lanes = if self.simulates_disk() { &[][..] } else { &self.lanes };
        Sealer::start(store, lanes, seals, SealPolicy::default(), news, after)
    }

    fn flush(
        &self,
        mode: &'static str,
        clock: &str,
        from: Nanos,
        probe: Box<dyn Probe>,
        signs: SignsOfLife,
        canaries: canary::Watch,
    ) -> Result<Flush> {
        let sensor = &self.store.identity().sensor;
        let usual = JoinConfig::default();
        let join = JoinConfig {
            workers: u16::try_from(self.workers.len()).unwrap_or(u16::MAX),
            // Whoever wants to be told soon is not kept waiting for what may never come.
            wait: usual.wait.min(self.flow.interim),
            ..usual
        };
        let policy =
            LogPolicy { community_id_seed: self.flow.community_id_seed, ..LogPolicy::default() };
        let start = Note::Start {
            program: concat!("stillwired ", env!("CARGO_PKG_VERSION")).to_owned(),
            policy: format!("{}{}{}", self.policy(), signs.policy(), canaries.policy()),
            identity: Some(self.store.store().identity_hash().context("cannot read sensor.json")?),
        };
        let _ = self.notes.send(start);
        let (places, interval) = &self.anchors;
        let anchors =
            Anchors::start(places, *interval, self.store.store(), &self.notes, self.kept)?;
        Ok(Flush {
            workers: self.workers.clone(),
            joiner: Joiner::new(join),
            log: SessionLog::new(&self.store, &self.id, policy),
            ledger: LedgerWriter::open(&self.store)?,
            intervals: Intervals::new(sensor, &self.id, mode, clock, from),
            probe,
            blind: Arc::clone(&self.blind),
            signs,
            canaries,
            anchors,
            news: self.news_out.clone(),
            seals: self.seals.clone(),
            unsealed: self.seals_out.clone(),
            notes: self.notes_out.clone(),
            names: Arc::clone(&self.names),
            files: Arc::clone(&self.files),
            totals: Arc::clone(&self.totals),
            interval: self.interval,
        })
    }

    fn simulates_disk(&self) -> bool {
        self.simulation.is_some_and(|simulation| simulation.disk)
    }

    /// What is recorded and what is left out, in words.
    fn policy(&self) -> String {
        let frames = self.frames_policy();
        match &self.simulation {
            Some(simulation) => format!("SIMULATION, {simulation}: {frames}"),
            None => frames,
        }
    }

    fn frames_policy(&self) -> String {
        if self.snaplen >= capture_store::pcap::MAX_SNAPLEN {
            "every frame, whole".to_owned()
        } else {
            format!("every frame, its first {} bytes", self.snaplen)
        }
    }

    /// Starts the flush thread of a capture that begins at `from`. `signs` is the rule about
    /// interfaces that are silent, `canaries` those that are believed.
    ///
    /// # Errors
    /// The ledger cannot be read, or the thread not be started.
    pub fn start_flush(
        &self,
        from: Nanos,
        clock: &str,
        probe: Box<dyn Probe>,
        signs: SignsOfLife,
        canaries: canary::Watch,
    ) -> Result<FlushThread> {
        let flush = self.flush("capture", clock, from, probe, signs, canaries)?;
        let kept = self.kept;
        FlushThread::start(move |stop, begun| {
            kept.confine();
            flush.capture(stop, || drop(begun), crate::live::clock)
        })
    }

    /// Starts the flush thread of a replay whose first frame is of `from`.
    ///
    /// # Errors
    /// The ledger cannot be read, or the thread not be started.
    pub fn start_replay_flush(&self, from: Nanos, clock: Arc<ReplayClock>) -> Result<FlushThread> {
        let probe = Box::new(crate::interval::NoKernel);
        // Nobody can say how long a file was silent.
        let (signs, canaries) = (SignsOfLife::default(), canary::Watch::new(Vec::new()));
        let flush = self.flush("replay", "packet", from, probe, signs, canaries)?;
        let worker = thread::current();
        FlushThread::start(move |stop, _| flush.replay(stop, &clock, &worker))
    }

    /// The workers' counters, summed.
    #[must_use]
    pub fn counts(&self) -> WorkerCounts {
        let mut sum = WorkerCounts {
            engine_now: Nanos::MAX,
            complete_through: Nanos::MAX,
            ..WorkerCounts::default()
        };
        for worker in &self.workers {
            sum.add(&worker.counters.read());
        }
        sum
    }

    /// What the status line shows.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let counts = self.counts();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            frames: counts.received,
            wire_bytes: counts.wire_bytes,
            ring_losses: load(&self.totals.ring_losses),
            dropped: counts.dropped_frames(),
            sessions: counts.sessions,
            rows: load(&self.totals.rows),
            rows_lost: counts.rows_lost.saturating_add(load(&self.totals.rows_unwritable)),
            packet_bytes: self.disk.packets(),
            session_bytes: self.disk.sessions(),
        }
    }

    /// What a simulation has found out: frames came for so long, and everything was written and
    /// sealed after so long. To be asked for when every thread has ended; `None` if nothing was
    /// simulated.
    #[must_use]
    pub fn summary(&self, lasted: Duration, ended: Duration) -> Option<Summary> {
        let simulation = self.simulation?;
        let totals = self.totals();
        let workers = self.workers.iter();
        Some(Summary {
            simulation,
            lasted,
            settled: ended.saturating_sub(lasted),
            ring_losses: totals.ring_losses,
            rows_lost: totals.rows_lost,
            workers: workers.map(|one| (one.counters.read(), one.time_on_core())).collect(),
        })
    }

    /// Says at the end what there was, and complains about what does not add up.
    pub fn say_farewell(&self, quiet: bool) {
        let (counts, totals) = (self.counts(), self.totals());
        let undecodable = counts.undecodable_frames();
        if !quiet {
            info!(
                "{} frames ({}), {} recorded, {} lost before the worker, {} not recorded, {} not \
                 decodable; {} sessions in {} rows{}",
                Grouped(counts.received),
                Bytes(counts.wire_bytes),
                Grouped(counts.recorded),
                Grouped(totals.ring_losses),
                Grouped(totals.dropped),
                Grouped(undecodable),
                Grouped(counts.created),
                Grouped(totals.rows),
                if totals.rows_lost > 0 {
                    format!(", {} rows lost", Grouped(totals.rows_lost))
                } else {
                    String::new()
                },
            );
        }
        let imbalances = self.totals.imbalances.load(Ordering::Relaxed);
        if imbalances > 0 {
            warn!(
                "{imbalances} equations of the account did not hold; `stillwire coverage` shows when"
            );
        }
    }
}

/// What a panic said.
#[must_use]
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given")
}

#[cfg(test)]
mod tests {
    use capture_flow::frame::IfaceId;
    use capture_flow::key::{Address, Protocol};
    use capture_flow::record::{ConnState, History, RowReason, SessionRecord, Side, Uid};
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::config::ReplayConfig;

    fn config(store: &std::path::Path) -> Config {
        let store = store.to_string_lossy();
        let words = ["stillwired", "replay", "--quiet", "--store", &store, "some.pcap"];
        match Cli::parse_from(words).command {
            Command::Replay(args) => ReplayConfig::new(*args).expect("valid").common,
            _ => panic!("it is a replay"),
        }
    }

    fn record() -> SessionRecord {
        let side = Side {
            addr: Address::Ip([10, 0, 0, 1].into()),
            port: 1,
            l2_addr: None,
            bytes: None,
            pkts: 1,
            ip_bytes: 20,
            local: None,
        };
        SessionRecord {
            uid: Uid(1),
            iface: IfaceId(0),
            ts: Nanos(5),
            last_ts: Nanos(6),
            duration: None,
            orig: side,
            resp: side,
            protocol: Protocol::UDP,
            service: None,
            detail: None,
            conn_state: ConnState::S0,
            history: History::default(),
            missed_bytes: 0,
            vlan: None,
            inner_vlan: None,
            tunnel_parents: None,
            direction_certain: true,
            fragment_overlap: false,
            join_certain: true,
            update: 0,
            reason: RowReason::Timeout,
            frames: 1,
            frame_bytes: 60,
            pcap_first: None,
            pcap_last: None,
            flushed_at: Nanos(7),
        }
    }

    #[test]
    fn what_comes_to_be_sealed_after_the_sealer_has_ended_is_sealed_all_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        let run = Run::open(&config(&dir.path().join("store")), Nanos(1), &[1]).expect("a run");
        let other = RunId::parse("20070202T060000Z-0badcafe").expect("a name");
        let mut log = SessionLog::new(&run.store, &other, LogPolicy::default());
        log.append(&record(), "x").expect("room");
        let (_, pending) = log.close().expect("closed");
        let tail = pending[0].path().to_owned();
        // There is no sealer.
        pending.into_iter().for_each(|pending| run.seals.send(pending).expect("sent"));
        let flush = run.start_replay_flush(Nanos(1), Arc::default()).expect("a thread");
        flush.stop(true).expect("everything is written and sealed");
        assert!(!tail.exists());
        let ledger = capture_store::ledger::read(run.store.store(), Nanos::MIN, Nanos::MAX);
        let notes = ledger.expect("readable").lines.into_iter().flat_map(|line| line.notes);
        let notes: Vec<Note> = notes.collect();
        let sealed = |note: &Note| matches!(note, Note::Sealed(file) if file.items == 1);
        assert_eq!(notes.iter().filter(|note| sealed(note)).count(), 1, "{notes:?}");
        assert!(notes.contains(&Note::CleanStop));
    }

    #[test]
    fn a_run_that_gives_up_leaves_no_store_that_it_made() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = dir.path().join("a/store");
        let run = Run::open(&config(&store), Nanos(1), &[1]).expect("a run");
        let preparer = run.start_preparer(1 << 20).expect("a segment");
        assert!(!preparer.stop());
        run.give_up();
        assert!(!dir.path().join("a").exists());
    }
}
