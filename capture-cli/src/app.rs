//! The commands.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::key::PublicKey;
use capture_store::{Store, ledger};
use clap::{CommandFactory, Parser};

use crate::args::{
    Cli, Command, CoverageArgs, Evidence, PacketsArgs, ProveArgs, ReportArgs, SessionsArgs,
    TextOrJson, VerifyArgs, Where,
};
use crate::columns::Order;
use crate::coverage::{self, AskedAt, Coverage};
use crate::filter::{self, Expr};
use crate::output::{self, Format};
use crate::packets;
use crate::query::{self, Answer, Question};
use crate::report;
use crate::row::Row;
use crate::terminal::Look;
use crate::text::visible;
use crate::times::{Clock, Window};
use crate::verdict::{self, Verdict};
use crate::verify;

/// Rows of a table on a terminal unless `--limit` says otherwise.
const SCREENFUL: usize = 1000;

/// Exit codes (DESIGN §7): 0 is done.
const FAILED: u8 = 1;
const USAGE: u8 = 2;

/// How a command ended.
enum End {
    /// All of it was done.
    Done,
    /// It was done, but the answer is not complete; standard error says why.
    Incomplete,
    /// A verdict, which has a code of its own.
    Verdict(Verdict),
    /// The command line makes no sense.
    Usage(String),
}

/// Runs the command line.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let clock = match Clock::system(cli.tz.as_deref()) {
        Ok(clock) => clock,
        Err(error) => {
            complain(&format!("--tz: {error}"));
            return ExitCode::from(USAGE);
        }
    };
    let ended = match cli.command {
        Command::Sessions(args) => sessions(&args, &cli.stores, &clock),
        Command::Packets(args) => packets(&args, &cli.stores, &clock),
        Command::Prove(args) => prove(&args, &cli.stores, &clock),
        Command::Report(args) => report(&args, &cli.stores, &clock),
        Command::Coverage(args) => coverage(&args, &cli.stores, &clock),
        Command::Verify(args) => verify(&args, &cli.stores, &clock),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "stillwire", &mut text);
            print(&text)
        }
        Command::Man { dir } => man(dir.as_deref()),
    };
    match ended {
        Ok(End::Done) => ExitCode::SUCCESS,
        Ok(End::Incomplete) => ExitCode::from(FAILED),
        Ok(End::Verdict(verdict)) => ExitCode::from(verdict.exit_code()),
        Ok(End::Usage(why)) => {
            complain(&why);
            ExitCode::from(USAGE)
        }
        // Who closes the pipe has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::from(FAILED)
        }
    }
}

/// Says something on standard error; there is nobody to tell if that fails.
fn complain(text: &str) {
    let lines: Vec<_> = text.split('\n').map(visible).collect();
    let _ = writeln!(io::stderr(), "stillwire: {}", lines.join("\n"));
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe)
    })
}

fn print(text: &[u8]) -> anyhow::Result<End> {
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    out.flush()?;
    Ok(End::Done)
}

fn man(dir: Option<&Path>) -> anyhow::Result<End> {
    match dir {
        Some(dir) => {
            std::fs::create_dir_all(dir)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
                .with_context(|| format!("cannot write manual pages to {}", dir.display()))?;
            Ok(End::Done)
        }
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut text)?;
            print(&text)
        }
    }
}

/// What every question needs, once the command line is known to make sense.
struct Asked {
    window: Window,
    filter: Expr,
}

/// Reads filter and times; a usage error says what is wrong with them.
fn asked(place: &Where, filter: &[String], clock: &Clock) -> Result<Asked, String> {
    let window = clock
        .window(place.from.as_deref(), place.to.as_deref())
        .map_err(|error| error.to_string())?;
    let text = filter.join(" ");
    let parsed = filter::parse(&text).map_err(|error| error.render(&text))?;
    if let Some(note) = parsed.note {
        complain(&note);
    }
    Ok(Asked { window, filter: parsed.expr })
}

fn sessions(args: &SessionsArgs, before: &[PathBuf], clock: &Clock) -> anyhow::Result<End> {
    let order = match args.sort.as_deref().map_or(Ok(Order::TIME), Order::parse) {
        Ok(order) => order,
        Err(why) => return Ok(End::Usage(format!("--sort: {why}"))),
    };
    let Asked { window, filter } = match asked(&args.place, &args.filter, clock) {
        Ok(asked) => asked,
        Err(why) => return Ok(End::Usage(why)),
    };
    let on_screen = args.format == Format::Table && io::stdout().is_terminal();
    let limit = match args.limit {
        Some(0) => None,
        Some(limit) => Some(limit),
        None => on_screen.then_some(SCREENFUL),
    };
    let stores = opened(&args.place.stores(before))?;
    let question = Question::new(filter, window, args.possible);
    let mut answer = query::ask(&stores, &question, &order, limit)?;
    let rows: Vec<Row> = answer.found.drain(..).map(|found| found.row).collect();
    let mut out = BufWriter::new(io::stdout().lock());
    let omitted = output::write(args.format, &rows, clock, &Look::of_stdout(), &mut out)?;
    out.flush()?;
    drop(out);
    if omitted.no_session_in_zeek > 0 {
        complain(&format!(
            "{} sessions left out: conn.log has no place for those without IP, tunnel carriers, ESP \
             and incomplete datagrams",
            omitted.no_session_in_zeek
        ));
    }
    let more = answer.total.saturating_sub(rows.len() as u64);
    if more > 0 {
        complain(&format!("{more} more sessions match: --limit 0 lists all"));
    }
    if rows.is_empty() && args.format == Format::Table {
        complain("no session matches; `stillwire coverage` shows what the record covers");
    }
    if answer.possible > 0 {
        complain(&possible(answer.possible));
    }
    for store in &stores {
        if let Some(note) = not_yet(store, question.window, clock) {
            complain(&note);
        }
    }
    Ok(told(&answer))
}

/// How far back the ledger is read to learn whether a sensor runs.
const RECENT: NanosDelta = NanosDelta::from_secs(600);

/// A warning where the window reaches into time through which the log of a running sensor is not
/// complete: a session gets its first row when it ends or at its first interim interval.
fn not_yet(store: &Store, window: Window, clock: &Clock) -> Option<String> {
    // What the ledger cannot tell, `coverage` complains about.
    let read = ledger::read(store, clock.now() - RECENT, Nanos::MAX).ok()?;
    let last = read.lines.last()?;
    if last.notes.contains(&ledger::Note::CleanStop) {
        return None;
    }
    let through = last.complete_through.unwrap_or(last.from);
    (window.end() > through).then(|| {
        format!(
            "sensor {}: the log is complete through {}; sessions with frames after that may not \
             be listed yet",
            store.identity().sensor,
            clock.long(through)
        )
    })
}

fn possible(count: u64) -> String {
    let sessions = if count == 1 { "session" } else { "sessions" };
    format!(
        "{count} more {sessions} could match (guessed direction, unknown service, missing ports): \
         --possible includes them"
    )
}

/// Tells what the stores could not give.
fn told(answer: &Answer) -> End {
    for note in &answer.notes {
        complain(note);
    }
    for damage in &answer.damage {
        complain(&format!("the answer is not complete: {damage}"));
    }
    if answer.damage.is_empty() { End::Done } else { End::Incomplete }
}

fn packets(args: &PacketsArgs, before: &[PathBuf], clock: &Clock) -> anyhow::Result<End> {
    let Asked { window, filter } = match asked(&args.place, &args.filter, clock) {
        Ok(asked) => asked,
        Err(why) => return Ok(End::Usage(why)),
    };
    let file = args.write.as_deref().filter(|path| *path != Path::new("-"));
    if args.write.is_none() && io::stdout().is_terminal() {
        return Ok(End::Usage(
            "packets are binary: write them to a file with -w FILE, or pipe them, for example \
             into `tcpdump -nr -`"
                .to_owned(),
        ));
    }
    let stores = opened(&args.place.stores(before))?;
    let question = Question::new(filter, window, args.possible);
    let mut answer = query::ask(&stores, &question, &Order::TIME, None)?;
    answer.found.append(&mut packets::unfinished_before(&stores, &question)?);
    if answer.possible > 0 {
        complain(&possible(answer.possible));
    }
    let written = match file {
        Some(path) => {
            let out =
                File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            packets::write(&stores, &answer.found, window, &mut BufWriter::new(out))
                .with_context(|| format!("cannot write {}", path.display()))?
        }
        None => {
            let mut out = BufWriter::with_capacity(1 << 18, io::stdout().lock());
            packets::write(&stores, &answer.found, window, &mut out)?
        }
    };
    if written.sessions == 0 {
        complain("no session matches");
    }
    for note in &written.notes {
        complain(note);
    }
    if written.beyond_rows > 0 {
        complain(&format!(
            "{} packets are later than the newest row of their session, which is not its last: \
             the session lives, or was cut off with its run",
            written.beyond_rows
        ));
    }
    for damage in &written.damage {
        complain(&format!("the output is not complete: {damage}"));
    }
    if written.retired > 0 {
        complain(&format!(
            "{} of {} sessions: packets were retired to keep the budget",
            written.retired, written.sessions
        ));
    }
    if written.never_kept > 0 {
        complain(&format!(
            "{} of {} sessions: packets could not be kept when they arrived (`stillwire coverage` \
             says why)",
            written.never_kept, written.sessions
        ));
    }
    if written.short > 0 {
        complain(&format!(
            "{} of {} sessions lack {} packets that they had: not kept when they arrived \
             (`stillwire coverage` says why), or retired",
            written.short, written.sessions, written.short_frames
        ));
    }
    if let Some(path) = file {
        complain(&format!(
            "{} packets of {} sessions written to {}",
            written.frames,
            written.sessions,
            path.display()
        ));
    }
    for store in &stores {
        if let Some(note) = not_yet(store, question.window, clock) {
            complain(&note);
        }
    }
    let ended = told(&answer);
    Ok(if written.is_complete() { ended } else { End::Incomplete })
}

/// A verdict, and the stores that it is from.
struct Proved {
    proof: verdict::Proof,
    stores: Vec<Store>,
}

/// Seeks a verdict; a usage error says what is wrong with the question.
fn sought(
    filter: &[String],
    args: &Evidence,
    before: &[PathBuf],
    clock: &Clock,
) -> anyhow::Result<Result<Proved, String>> {
    let place = args.place.as_where();
    let Asked { window, filter: expr } = match asked(&place, filter, clock) {
        Ok(asked) => asked,
        Err(why) => return Ok(Err(why)),
    };
    let (Some(from), Some(to)) = (window.from, window.to) else {
        return Ok(Err("a verdict needs a window: --from and --to".to_owned()));
    };
    let limit = match args.wait.as_deref().map(patience).transpose() {
        Ok(limit) => limit,
        Err(why) => return Ok(Err(format!("--wait: {why}"))),
    };
    let key = match args.public_key.as_deref().map(PublicKey::parse) {
        Some(None) => return Ok(Err("--public-key: 64 hexadecimal digits".to_owned())),
        key => key.flatten(),
    };
    let stores = opened(&place.stores(before))?;
    let mut now = clock.now();
    if let Some(limit) = limit {
        if !verdict::wait(&stores, to, limit)? {
            complain("waited in vain: the log is not complete through the window yet");
        }
        now = verdict::now();
    }
    let question = verdict::Question { filter: expr, text: filter.join(" "), from, to };
    let proof = verdict::prove(&stores, question, key.as_ref(), now)?;
    Ok(Ok(Proved { proof, stores }))
}

/// Opens the stores for reading, and says which of them are no record of anything.
fn opened(paths: &[PathBuf]) -> anyhow::Result<Vec<Store>> {
    let stores = query::open(paths)?;
    for store in stores.iter().filter(|store| store.identity().simulated) {
        complain(&format!(
            "{} is a simulation's store: nothing in it is evidence",
            store.layout().root().display()
        ));
    }
    Ok(stores)
}

fn prove(args: &ProveArgs, before: &[PathBuf], clock: &Clock) -> anyhow::Result<End> {
    let Proved { proof, .. } = match sought(&args.filter, &args.evidence, before, clock)? {
        Ok(proved) => proved,
        Err(why) => return Ok(End::Usage(why)),
    };
    let mut out = BufWriter::new(io::stdout().lock());
    match args.format {
        TextOrJson::Text => verdict::write_text(&proof, clock, &Look::of_stdout(), &mut out)?,
        TextOrJson::Json => verdict::write_json(&proof, clock, &mut out)?,
    }
    out.flush()?;
    Ok(End::Verdict(proof.verdict))
}

fn report(args: &ReportArgs, before: &[PathBuf], clock: &Clock) -> anyhow::Result<End> {
    let Proved { proof, stores } = match sought(&args.filter, &args.evidence, before, clock)? {
        Ok(proved) => proved,
        Err(why) => return Ok(End::Usage(why)),
    };
    let keys: Vec<_> = stores.iter().map(|store| store.identity().public_key.clone()).collect();
    let context = report::Context { clock, keys: &keys };
    if args.output == Path::new("-") {
        let mut out = BufWriter::new(io::stdout().lock());
        report::write(&proof, &context, &mut out)?;
        out.flush()?;
    } else {
        let mut page = Vec::new();
        report::write(&proof, &context, &mut page)?;
        std::fs::write(&args.output, page)
            .with_context(|| format!("cannot write {}", args.output.display()))?;
        complain(&format!("{}: written to {}", proof.verdict.as_str(), args.output.display()));
    }
    Ok(End::Verdict(proof.verdict))
}

/// A length of time on the command line: `90`, `90s`, `2m`, `1h`.
fn patience(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..) {
        Some("" | "s") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        _ => return Err(format!("{text:?} is no length of time; for example 90s, 2m or 1h")),
    };
    let count: u64 = digits.parse().map_err(|_| format!("{text:?} is no length of time"))?;
    Ok(Duration::from_secs(count.saturating_mul(unit)))
}

fn coverage(args: &CoverageArgs, before: &[PathBuf], clock: &Clock) -> anyhow::Result<End> {
    let Asked { window, .. } = match asked(&args.place, &[], clock) {
        Ok(asked) => asked,
        Err(why) => return Ok(End::Usage(why)),
    };
    let stores = opened(&args.place.stores(before))?;
    let sensors: Vec<Coverage> = stores
        .iter()
        .map(|store| of_store(store, window, clock.now()))
        .collect::<anyhow::Result<_>>()?;
    let mut out = BufWriter::new(io::stdout().lock());
    match args.format {
        TextOrJson::Text => {
            coverage::write_text(&sensors, clock, &Look::of_stdout(), &mut out)?;
        }
        TextOrJson::Json => coverage::write_json(&sensors, &mut out)?,
    }
    out.flush()?;
    Ok(End::Done)
}

fn of_store(store: &Store, window: Window, now: Nanos) -> anyhow::Result<Coverage> {
    let at = AskedAt::of(store, now);
    // To the ledger's end: what is written later tells about times before.
    let from = window.start();
    let (read, chain) =
        ledger::read_chained(store, None, from, from, Nanos::MAX).with_context(|| {
            format!("cannot read the ledger of {}", store.layout().root().display())
        })?;
    let mut coverage = Coverage::of(&store.identity().sensor, &read, window, at);
    coverage.add_chain(&chain);
    Ok(coverage)
}

fn verify(args: &VerifyArgs, before: &[PathBuf], clock: &Clock) -> anyhow::Result<End> {
    let public_key = match args.public_key.as_deref().map(verify::read_key).transpose() {
        Ok(key) => key,
        Err(why) => return Ok(End::Usage(format!("--public-key: {why}"))),
    };
    let options = verify::Options { public_key, anchors: args.anchors.clone() };
    let mut whole = true;
    for path in args.stores(before) {
        let report = verify::verify_path(&path, &options)?;
        whole &= report.is_whole();
        let mut out = BufWriter::new(io::stdout().lock());
        match args.format {
            TextOrJson::Text => {
                verify::write_text(&report, clock, &Look::of_stdout(), &mut out)?;
            }
            TextOrJson::Json => verify::write_json(&report, &mut out)?,
        }
        out.flush()?;
    }
    Ok(if whole { End::Done } else { End::Incomplete })
}
