//! A verdict for people and for tools.

use std::io::{self, Write};

use capture_flow::time::Nanos;
use serde_json::{Value, json};

use super::{Possible, Proof, Session, UnreadFrame, Verdict, Witness};
use crate::coverage::{self, gap_json};
use crate::output::{self, Format};
use crate::row::Row;
use crate::terminal::{Look, Paint};
use crate::text::visible;
use crate::times::{Clock, rfc3339};

/// Most sessions, frames and gaps listed for people; the JSON has them all.
const LISTED: usize = 20;

/// One object (DESIGN §7).
///
/// # Errors
/// Those of the output.
pub fn write_json(proof: &Proof, clock: &Clock, out: &mut impl Write) -> io::Result<()> {
    let (covered_ns, window_ns) = proof.covered();
    let mut gaps: Vec<_> = proof.gaps().collect();
    gaps.sort_by_key(|gap| (gap.from, gap.to));
    let lines = proof.witnesses.iter().fold(0_u64, |sum, w| sum.saturating_add(w.chain.lines));
    let head = match proof.witnesses.as_slice() {
        [one] => one.head(),
        _ => None,
    };
    let object = json!({
        "question": {
            "filter": proof.question.text,
            "from": rfc3339(proof.question.from),
            "to": rfc3339(proof.question.to),
        },
        "verdict": proof.verdict.as_str(),
        "sentence": proof.sentence(clock),
        "sessions": proof.sessions.iter().map(session_json).collect::<Vec<_>>(),
        "possible": proof.possible.iter().map(possible_json).collect::<Vec<_>>(),
        "coverage": {
            "covered_s": covered_ns as f64 / 1e9,
            "window_s": window_ns as f64 / 1e9,
            "gaps": gaps.iter().map(|gap| gap_json(gap)).collect::<Vec<_>>(),
        },
        "ledger": {
            "lines": lines,
            "chain": if proof.chain_is_valid() { "valid" } else { "broken" },
            "head": head,
        },
        "sensors": proof.witnesses.iter().map(witness_json).collect::<Vec<_>>(),
        "asked_at": rfc3339(proof.asked_at),
        "ask_again_at": proof.ask_again_at().map(rfc3339),
        "notes": proof.notes,
    });
    serde_json::to_writer(&mut *out, &object)?;
    out.write_all(b"\n")
}

/// A session's row with why it counts.
fn session_json(session: &Session) -> Value {
    let mut value = serde_json::to_value(&session.row).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.insert("presence".to_owned(), session.presence.as_str().into());
    }
    value
}

fn possible_json(possible: &Possible) -> Value {
    match possible {
        Possible::Session { session, why } => {
            let mut value = session_json(session);
            if let Some(object) = value.as_object_mut() {
                object.insert("kind".to_owned(), "session".into());
                object.insert("why".to_owned(), (*why).into());
            }
            value
        }
        Possible::Frame(frame) => frame_json(frame),
        Possible::Frames { sensor, count, span } => json!({
            "kind": "frames", "sensor": sensor, "count": count,
            "from": rfc3339(span.0), "to": rfc3339(span.1),
            "why": "they could not be read and are not in the packets any more",
        }),
    }
}

fn frame_json(frame: &UnreadFrame) -> Value {
    let (src, dst) = frame
        .ends()
        .map_or((None, None), |(src, dst)| (Some(src.to_string()), Some(dst.to_string())));
    let ports = frame.ports();
    json!({
        "kind": "frame", "ts": rfc3339(frame.ts), "bytes": frame.wire_len, "why": frame.why(),
        "src": src, "dst": dst,
        "src_port": ports.map(|(src, _)| src), "dst_port": ports.map(|(_, dst)| dst),
        "ip_proto": frame.protocol(),
        "pcap": {
            "worker": frame.at.worker, "segment": frame.at.segment, "offset": frame.at.offset,
        },
    })
}

fn witness_json(witness: &Witness) -> Value {
    let (covered_ns, window_ns) = witness.coverage.covered();
    json!({
        "sensor": witness.sensor,
        "store": witness.store,
        "lines": witness.chain.lines,
        "chain": witness.chain.as_str(),
        "head": witness.head(),
        "signed": witness.chain.unsigned == 0,
        "files_checked": witness.files.files,
        "covered_s": covered_ns as f64 / 1e9,
        "window_s": window_ns as f64 / 1e9,
        "complete_through": witness.coverage.complete_through.map(rfc3339),
        "packets_retired_through": witness.coverage.packets_retired_through.map(rfc3339),
        "ask_again_at": witness.ask_again_at.map(rfc3339),
        "frames": witness.coverage.kept,
        "policies": witness.policies,
    })
}

/// The word, the sentence, and what they rest on.
///
/// # Errors
/// Those of the output.
pub fn write_text(
    proof: &Proof,
    clock: &Clock,
    look: &Look,
    out: &mut impl Write,
) -> io::Result<()> {
    let paint = match proof.verdict {
        Verdict::Absent => Paint::Good,
        Verdict::Present => Paint::Warn,
        Verdict::Unproven => Paint::Bad,
    };
    writeln!(out, "{}", look.paint(paint, proof.verdict.as_str()))?;
    writeln!(out, "{}", proof.sentence(clock))?;
    let sessions: Vec<Row> =
        proof.sessions.iter().take(LISTED).map(|session| session.row.clone()).collect();
    if !sessions.is_empty() {
        writeln!(out)?;
        let _ = output::write(Format::Table, &sessions, clock, look, out)?;
        more(proof.sessions.len(), out)?;
    }
    if !proof.possible.is_empty() {
        writeln!(out, "\n{}", look.paint(Paint::Heading, "could match"))?;
        for possible in proof.possible.iter().take(LISTED) {
            writeln!(out, "  {}", possible_line(possible, clock))?;
        }
        more(proof.possible.len(), out)?;
    }
    for witness in &proof.witnesses {
        writeln!(out)?;
        coverage::write_short(&witness.coverage, clock, look, out)?;
        let (lines, chain) = (witness.chain.lines, witness.chain.as_str());
        let head = witness.head().unwrap_or("none");
        let signed = if witness.chain.unsigned == 0 { "" } else { ", not all of it signed" };
        writeln!(out, "ledger: {lines} lines, chain {chain}{signed}, head {head}")?;
    }
    for note in &proof.notes {
        writeln!(out, "note: {}", visible(note))?;
    }
    Ok(())
}

fn more(all: usize, out: &mut impl Write) -> io::Result<()> {
    match all.saturating_sub(LISTED) {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more: --format json lists them all"),
    }
}

/// Something that could match, on one line.
#[must_use]
pub(crate) fn possible_line(possible: &Possible, clock: &Clock) -> String {
    match possible {
        Possible::Session { session, why } => {
            format!("{}: {why}", super::words::session_in_words(session, clock))
        }
        Possible::Frame(frame) => {
            let ends = match (frame.ends(), frame.ports()) {
                (Some((src, dst)), Some((from, to))) => {
                    format!("{src} port {from} to {dst} port {to}")
                }
                (Some((src, dst)), None) => format!("{src} to {dst}"),
                (None, _) => "no readable addresses".to_owned(),
            };
            format!(
                "frame at {}, {} bytes, {ends}: {} (segment w{:02}/{:020}, offset {})",
                time(clock, frame.ts),
                frame.wire_len,
                frame.why(),
                frame.at.worker,
                frame.at.segment,
                frame.at.offset
            )
        }
        Possible::Frames { sensor, count, span } => format!(
            "{count} frames that could not be read, from {} to {}: they are not in the packets of \
             sensor {} any more",
            time(clock, span.0),
            time(clock, span.1),
            visible(sensor)
        ),
    }
}

fn time(clock: &Clock, at: Nanos) -> String {
    clock.long(at).to_string()
}
