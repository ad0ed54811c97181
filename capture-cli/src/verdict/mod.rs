//! `prove`: whether a session was there, and how far an answer of none can be trusted.
//!
//! The rules are written down for users in docs/VERDICT.md. In one sentence: `absent` is said only
//! where no session matched, nothing could have matched, and the whole window is covered; whatever
//! leaves that open makes it `unproven`.

mod open;
mod show;
mod unread;
mod wait;
mod words;

use std::cell::OnceCell;
use std::sync::Arc;

use anyhow::Context as _;
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::Store;
use capture_store::key::PublicKey;
use capture_store::ledger::{
    self, BlindCause, Chain, FilesCheck, LedgerLine, LedgerRead, SealedFile, Vouched,
};
use capture_store::sessions::Which;

pub use open::Presence;
pub(crate) use show::possible_line;
pub use show::{write_json, write_text};
pub use unread::UnreadFrame;
pub use wait::{now, wait};
pub(crate) use words::end_in_words;

use crate::columns::Order;
use crate::coverage::{AskedAt, Coverage, Gap, Reason};
use crate::filter::{Doubt, Expr, Truth};
use crate::query;
use crate::row::Row;
use crate::times::Window;

/// How long before a session's first frame something must have been missed for that frame not to
/// be the first of its session: the sensor's idle limit for UDP and ICMP.
const IDLE: NanosDelta = NanosDelta::from_secs(60);

/// The answer in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No session matched, none could have, and the whole window is covered.
    Absent,
    /// At least one session certainly matched.
    Present,
    /// Nothing certainly matched, and something could have.
    Unproven,
}

impl Verdict {
    /// The name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Present => "present",
            Self::Unproven => "unproven",
        }
    }

    /// The program's exit code.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Absent => 0,
            Self::Present => 3,
            Self::Unproven => 4,
        }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// Which sessions.
    pub filter: Expr,
    /// The filter as it was written.
    pub text: String,
    /// First moment of the window.
    pub from: Nanos,
    /// Its last moment.
    pub to: Nanos,
}

/// A session of the answer.
#[derive(Clone, Debug)]
pub struct Session {
    /// The store it came from, by its place in the list asked.
    pub store: usize,
    /// Its newest row.
    pub row: Row,
    /// Why it counts to the window.
    pub presence: Presence,
}

/// Something that could match.
#[derive(Clone, Debug)]
pub enum Possible {
    /// A session that the filter does not rule out.
    Session {
        /// The session.
        session: Box<Session>,
        /// Why it is not certain.
        why: &'static str,
    },
    /// A frame that counts to no session, or carries a tunnel that was not read.
    Frame(UnreadFrame),
    /// Frames that counted to no session and cannot be looked at any more.
    Frames {
        /// Whose.
        sensor: String,
        /// How many.
        count: u64,
        /// Around this time, cut to the window.
        span: (Nanos, Nanos),
    },
}

/// What one sensor's store contributes.
#[derive(Clone, Debug)]
pub struct Witness {
    /// The sensor.
    pub sensor: String,
    /// Its store.
    pub store: String,
    /// How the window is covered.
    pub coverage: Coverage,
    /// The ledger's lines from a while before the window to its end, and whether they hold.
    pub chain: Chain,
    /// The files of the session log that hold sessions of the window, against the ledger.
    pub files: FilesCheck,
    /// The sealed files that hold frames or sessions of the window, as the ledger names them.
    pub sealed: Vec<SealedFile>,
    /// What the runs of the window recorded, in their own words.
    pub policies: Vec<String>,
    /// When the window will be covered, where only time is missing.
    pub ask_again_at: Option<Nanos>,
}

/// A verdict with everything it rests on.
#[derive(Clone, Debug)]
pub struct Proof {
    /// What was asked.
    pub question: Question,
    /// The answer.
    pub verdict: Verdict,
    /// Sessions that certainly match, by time.
    pub sessions: Vec<Session>,
    /// What else could.
    pub possible: Vec<Possible>,
    /// Each store asked.
    pub witnesses: Vec<Witness>,
    /// When it was asked.
    pub asked_at: Nanos,
    /// What is worth knowing although nothing is wrong.
    pub notes: Vec<String>,
}

impl Witness {
    /// The hash of the ledger's last line.
    #[must_use]
    pub fn head(&self) -> Option<&str> {
        self.chain.head.as_ref().map(|head| head.hash.as_str())
    }
}

impl Possible {
    fn session(store: usize, row: &Row, presence: Presence, why: &'static str) -> Self {
        let session = Session { store, row: row.clone(), presence };
        Self::Session { session: Box::new(session), why }
    }
}

impl Proof {
    /// Whether a session of a store is in the answer, for certain or not.
    fn names(&self, store: usize, uid: &str) -> bool {
        let is = |session: &Session| session.store == store && &*session.row.uid == uid;
        let possible = self.possible.iter().any(|possible| match possible {
            Possible::Session { session, .. } => is(session),
            Possible::Frame(_) | Possible::Frames { .. } => false,
        });
        possible || self.sessions.iter().any(is)
    }

    /// The gaps that keep an answer of none from being certain, of all sensors, by time. What
    /// concerns packets alone is not among them.
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        let all = self.witnesses.iter().flat_map(|witness| &witness.coverage.gaps);
        all.filter(|gap| !gap.packets_only)
    }

    /// Nanoseconds of the window that no such gap touches, and of the window.
    #[must_use]
    pub fn covered(&self) -> (u64, u64) {
        let window = (self.question.from, self.question.to);
        crate::coverage::covered(Some(window), self.gaps())
    }

    /// Whether every ledger holds as far as it was read.
    #[must_use]
    pub fn chain_is_valid(&self) -> bool {
        self.witnesses.iter().all(|witness| witness.chain.is_valid())
    }
}

/// Answers a question from the stores of one or several sensors. Several are asked as witnesses of
/// one wire each: the window is covered only where every one of them covers it. `key` is the key
/// to trust; `None` takes the one that each store names.
///
/// # Errors
/// A store's directories cannot be read. Damaged files are part of the answer.
pub fn prove(
    stores: &[Store],
    question: Question,
    key: Option<&PublicKey>,
    now: Nanos,
) -> anyhow::Result<Proof> {
    let mut proof = Proof {
        verdict: Verdict::Unproven,
        sessions: Vec::new(),
        possible: Vec::new(),
        witnesses: Vec::new(),
        asked_at: now,
        notes: Vec::new(),
        question,
    };
    for (place, store) in stores.iter().enumerate() {
        witness(store, place, key, now, &mut proof)
            .with_context(|| format!("cannot ask {}", store.layout().root().display()))?;
    }
    proof.sessions.sort_by(|a, b| Order::TIME.compare(&a.row, &b.row));
    let open = proof.gaps().next().is_some() || !proof.possible.is_empty() || stores.is_empty();
    proof.verdict = match (proof.sessions.is_empty(), open) {
        (false, _) => Verdict::Present,
        (true, true) => Verdict::Unproven,
        (true, false) => Verdict::Absent,
    };
    Ok(proof)
}

fn witness(
    store: &Store,
    place: usize,
    key: Option<&PublicKey>,
    now: Nanos,
    proof: &mut Proof,
) -> anyhow::Result<()> {
    let question = proof.question.clone();
    let window = (question.from, question.to);
    let closed = Window { from: Some(window.0), to: Some(window.1) };
    let sensor = store.identity().sensor.clone();
    let at = AskedAt::of(store, now);
    // Before the sessions: rows that come meanwhile are more than the ledger promises, not less.
    // To the ledger's end, because what is written later tells about times before.
    let key = key.copied().or_else(|| store.identity().public_key());
    // Sessions that are followed into the window and out of it lie in files of other times.
    let followed = (window.0 - open::FOLLOWED, window.1 + open::FOLLOWED);
    let (read, chain) =
        ledger::read_chained(store, key.as_ref(), followed.0, window.0 - IDLE, Nanos::MAX)
            .context("cannot read the ledger")?;
    let mut coverage = Coverage::of(&sensor, &read, closed, at);
    coverage.add_chain(&chain);
    if key.is_none() {
        let detail = "the store names no key, so nobody vouches for it; give --public-key";
        coverage.add(window, Reason::ChainBroken, detail.to_owned());
    }
    let vouched = Vouched::of_chain(&read);
    let files = ledger::check_sessions(store, key.as_ref(), &vouched, followed.0, followed.1)
        .context("cannot check the files of the session log")?;
    let holds = |file: &&SealedFile| closed.overlaps(file.first_ts, file.last_ts);
    let sealed = vouched.present().filter(holds).cloned().collect();
    coverage.add_files(&files);
    let runs = open::Runs::of(&read.lines, open::alive(&read.lines, at));

    let asked = |which| query::Question {
        filter: question.filter.clone(),
        window: Window { from: Some(followed.0), to: Some(followed.1) },
        possible: true,
        doubting: true,
        which,
    };
    let stores = std::slice::from_ref(store);
    let trusted = Arc::new(files.trusted.clone());
    // Rows that nobody vouches for (yet) may add sessions to the answer, and hide none.
    let vouched_for =
        query::ask(stores, &asked(Which::Trusted(trusted.clone())), &Order::TIME, None)?;
    let others = query::ask(stores, &asked(Which::Others(trusted)), &Order::TIME, None)?;
    // A file that was there when it was checked may have been retired before it was read.
    for file in vouched.present().filter(holds) {
        if file.path.starts_with("sessions/") && !store.layout().root().join(&file.path).exists() {
            let span = (file.first_ts.max(window.0), file.last_ts.min(window.1));
            coverage.add(span, Reason::SessionsRetired, format!("{} while asked", file.path));
        }
    }
    for damage in &vouched_for.damage {
        coverage.add(window, Reason::SessionsUnreadable, damage.clone());
    }
    let said = [&vouched_for.notes, &others.notes, &others.damage].into_iter().flatten();
    proof.notes.extend(said.cloned());
    let rows: Vec<&Row> = vouched_for.found.iter().map(|found| &found.row).collect();
    // The mark of the store, and of its lines: either alone is enough not to believe it.
    let marked =
        |line: &LedgerLine| line.blind.iter().any(|blind| blind.cause == BlindCause::Simulated);
    let simulated = store.identity().simulated || read.lines.iter().any(marked);
    if store.identity().simulated {
        coverage.add(window, Reason::Simulated, String::new());
    }
    let mut judge = Judge::new(store, &question.filter, key, at, closed);
    judge.simulated = simulated;
    let mut took = vec![false; rows.len()];
    for (row, took) in rows.iter().zip(&mut took) {
        *took = judge.weigh(place, row, &runs, proof);
    }
    for (later, earlier) in open::went_on(&rows, window) {
        let known = earlier.filter(|at| took.get(*at) == Some(&false));
        match (earlier, known) {
            // It is in the answer already.
            (Some(_), None) => {}
            (_, Some(at)) => {
                if let Some(row) = rows.get(at) {
                    judge.take(place, row, Presence::WentOn, proof);
                }
            }
            (None, _) => {
                if let Some(row) = rows.get(later) {
                    let why = "it goes on behind the window, and its begin was not seen";
                    proof.possible.push(Possible::session(place, row, Presence::WentOn, why));
                }
            }
        }
    }
    for found in &others.found {
        if !proof.names(place, &found.row.uid) {
            judge.weigh(place, &found.row, &runs, proof);
        }
    }

    let retired = coverage.packets_retired_through;
    let unread = unread::find(store, place, &read.lines, window, retired)?;
    proof.notes.extend(unread.damage);
    let could = |frame: &UnreadFrame| frame.could_match(&question.filter);
    proof.possible.extend(unread.frames.into_iter().filter(could).map(Possible::Frame));
    if unread.missing > 0 {
        let span = unread_span(&read, window);
        let sensor = sensor.clone();
        proof.possible.push(Possible::Frames { sensor, count: unread.missing, span });
    }
    // Frames that rule themselves out must be what was recorded. Hashing their segments takes
    // long, and is done only where the answer depends on it.
    let is_open = coverage.gaps.iter().any(|gap| !gap.packets_only);
    if !is_open && proof.sessions.is_empty() && proof.possible.is_empty() {
        let from = window.0 - IDLE;
        for problem in
            unread::check_segments(store, key.as_ref(), &vouched, &unread.segments, from)?
        {
            coverage.add(unread_span(&read, window), Reason::PacketsChanged, problem);
        }
    }

    let ask_again_at = wait::ask_again_at(&read, &coverage, window.1, now);
    proof.witnesses.push(Witness {
        sensor,
        store: store.layout().root().display().to_string(),
        coverage,
        chain,
        files,
        sealed,
        policies: policies(&read),
        ask_again_at,
    });
    // Giving back the memory of a day's lines takes longer than the rest from here on.
    let _ = std::thread::Builder::new().spawn(move || drop(read));
    Ok(())
}

/// The lines within the window that counted frames without a session, from first to last.
fn unread_span(read: &LedgerRead, window: (Nanos, Nanos)) -> (Nanos, Nanos) {
    let counted = read.lines.iter().filter(|line| {
        line.overlaps(window.0, window.1) && line.workers.iter().any(|worker| worker.unread() > 0)
    });
    let (mut from, mut to) = (window.1, window.0);
    for line in counted {
        (from, to) = (from.min(line.from), to.max(line.to));
    }
    (from.max(window.0), to.min(window.1))
}

fn policies(read: &LedgerRead) -> Vec<String> {
    let mut policies: Vec<String> = Vec::new();
    for note in read.lines.iter().flat_map(|line| &line.notes) {
        if let ledger::Note::Start { program, policy, .. } = note {
            let text = format!("{program}: {policy}");
            if !policies.contains(&text) {
                policies.push(text);
            }
        }
    }
    policies
}

/// Decides about sessions of the window.
struct Judge<'a> {
    store: &'a Store,
    filter: &'a Expr,
    key: Option<PublicKey>,
    at: AskedAt,
    window: Window,
    /// Times in which the sensor may have missed frames, once somebody has asked: around the
    /// window, as far as sessions are followed.
    missed: OnceCell<Vec<(Nanos, Nanos)>>,
    /// Whether its rows are a simulation's: then none is certain.
    simulated: bool,
}

impl<'a> Judge<'a> {
    fn new(
        store: &'a Store,
        filter: &'a Expr,
        key: Option<PublicKey>,
        at: AskedAt,
        window: Window,
    ) -> Self {
        Self { store, filter, key, at, window, missed: OnceCell::new(), simulated: false }
    }

    /// Takes a session into the answer if it was there in the window; says whether it was, for
    /// certain.
    fn weigh(&mut self, store: usize, row: &Row, runs: &open::Runs, proof: &mut Proof) -> bool {
        let presence = if self.window.overlaps(row.ts, row.last_ts) {
            Presence::Frames
        } else if self.window.overlaps(row.ts, open::open_until(row, runs)) {
            Presence::Open
        } else {
            if self.window.overlaps(row.ts, open::may_be_open_until(row)) {
                let why = "it was open when the sensor lost sight of it";
                proof.possible.push(Possible::session(store, row, Presence::Open, why));
            }
            return false;
        };
        self.take(store, row, presence, proof);
        true
    }

    fn take(&mut self, store: usize, row: &Row, presence: Presence, proof: &mut Proof) {
        let direction = self.doubts_direction(row);
        let sure = self.filter.judge(row, Doubt { direction, goes_on: false, link: true });
        if sure == Truth::True && self.simulated {
            let why = "it is a simulation's, and may never have been on any wire";
            proof.possible.push(Possible::session(store, row, presence, why));
            return;
        }
        if sure == Truth::True {
            proof.sessions.push(Session { store, row: row.clone(), presence });
            return;
        }
        let more = Doubt { direction, goes_on: true, link: true };
        if sure == Truth::Maybe
            || (self.filter.judge(row, more) != Truth::False
                && (row.may_go_on() || self.missed_some(row, (row.ts, row.last_ts))))
        {
            let why = why_uncertain(row, direction, sure);
            proof.possible.push(Possible::session(store, row, presence, why));
        }
    }

    /// Whether the first frame seen of a session without a handshake may not have been its first:
    /// then either end can have begun it. Asked only where that matters to the filter.
    fn doubts_direction(&self, row: &Row) -> bool {
        let tcp = row.protocol == capture_flow::key::Protocol::TCP;
        if tcp || !row.direction_certain || row.is_fragments_only() {
            return false;
        }
        let logged = self.filter.judge(row, Doubt::default());
        let turned = Doubt { direction: true, ..Doubt::default() };
        logged != self.filter.judge(row, turned) && self.missed_some(row, (row.ts - IDLE, row.ts))
    }

    /// Whether the session's sensor may have missed frames in a time, inside the window or not.
    fn missed_some(&self, row: &Row, (from, to): (Nanos, Nanos)) -> bool {
        let around = (
            self.window.start() - open::FOLLOWED - IDLE,
            self.window.end() + open::FOLLOWED + IDLE,
        );
        let missed = self.missed.get_or_init(|| self.missed_between(&row.sensor, around));
        let outside = from < around.0 || to > around.1;
        let overlaps = |time: &(Nanos, Nanos)| time.0 <= to && time.1 >= from;
        missed.iter().any(overlaps)
            || (outside && self.missed_between(&row.sensor, (from, to)).iter().any(overlaps))
    }

    fn missed_between(&self, sensor: &str, (from, to): (Nanos, Nanos)) -> Vec<(Nanos, Nanos)> {
        let time = Window { from: Some(from), to: Some(to) };
        match ledger::read_chained(self.store, self.key.as_ref(), from, from, Nanos::MAX) {
            Ok((read, chain)) => {
                let mut coverage = Coverage::of(sensor, &read, time, self.at);
                coverage.add_chain(&chain);
                let counts = coverage.gaps.iter().filter(|gap| !gap.packets_only);
                counts.map(|gap| (gap.from, gap.to)).collect()
            }
            Err(_) => vec![(from, to)],
        }
    }
}

fn why_uncertain(row: &Row, direction: bool, sure: Truth) -> &'static str {
    if row.is_fragments_only() {
        "fragments of datagrams that never became complete: ports and service are not known"
    } else if row.may_hide_ip() {
        "frames that may carry IP which could not be read"
    } else if direction || !row.direction_certain {
        "which end began it is a guess"
    } else if sure == Truth::Maybe {
        "what the filter asks for was not seen of it"
    } else if row.is_final && !row.may_go_on() {
        "some of its frames may have been missed"
    } else if &*row.end_reason == "evicted" {
        "it was written out early because the session table was full"
    } else {
        "it was not over when it was logged"
    }
}
