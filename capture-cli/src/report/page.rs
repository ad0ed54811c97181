//! The page.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::strip::strip;
use crate::coverage::Gap;
use crate::text::visible;
use crate::times::{Clock, length, rfc3339};
use crate::verdict::{Possible, Proof, Session, Verdict, Witness, end_in_words, possible_line};

const STYLE: &str = include_str!("style.css");
/// Nothing is loaded from anywhere, whatever stands in the page.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Most sessions, frames, gaps and files in one table: a page must stay one that can be opened.
const LISTED: usize = 2000;
const FILES: usize = 500;

/// What the page says beside the proof.
pub struct Context<'a> {
    /// The zone of its times.
    pub clock: &'a Clock,
    /// The sensors' public keys, as the stores name them.
    pub keys: &'a [Option<String>],
}

fn words(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Absent => "Absent",
        Verdict::Present => "Present",
        Verdict::Unproven => "Unproven",
    }
}

fn meaning(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Absent => {
            "Nothing matched, nothing could have matched, and the record of the whole window is complete."
        }
        Verdict::Present => "At least one session matched for certain.",
        Verdict::Unproven => {
            "Nothing matched for certain, but the record leaves open that something was there."
        }
    }
}

/// The page of a verdict.
pub(super) fn page(proof: &Proof, context: &Context<'_>) -> Markup {
    let clock = context.clock;
    let title = format!("{}: {}", words(proof.verdict), visible(&proof.question.text));
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="referrer" content="no-referrer";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    header {
                        span { b { "Stillwire" } " evidence" }
                        span { "asked " (clock.prose(proof.asked_at)) }
                    }
                    (verdict(proof, clock))
                    (coverage(proof, clock))
                    (sessions(proof, clock))
                    (possible(proof, clock))
                    (gaps(proof, clock))
                    (account(proof))
                    (ledger(proof, context))
                    (recheck(proof))
                    footer class="note" {
                        "Made by stillwire " (env!("CARGO_PKG_VERSION")) ". Times are in "
                        (clock.zone_name()) ". The rules by which a verdict is reached: docs/VERDICT.md."
                    }
                }
            }
        }
    }
}

fn verdict(proof: &Proof, clock: &Clock) -> Markup {
    let (covered, whole) = proof.covered();
    let seconds = |ns: u64| length(ns as f64 / 1e9);
    html! {
        section id="verdict" class=(format!("verdict {}", proof.verdict.as_str()))
            data-verdict=(proof.verdict.as_str()) {
            h1 { (words(proof.verdict)) }
            p id="sentence" { (proof.sentence(clock)) }
            p class="note" { (meaning(proof.verdict)) }
        }
        dl {
            dt { "Question" } dd { code { (filter(proof)) } }
            dt { "From" } dd { (clock.prose(proof.question.from)) }
            dt { "To" } dd { (clock.prose(proof.question.to)) }
            dt { "Covered" } dd { (seconds(covered)) " of " (seconds(whole)) }
            dt { "Sensors" } dd {
                @for (number, witness) in proof.witnesses.iter().enumerate() {
                    @if number > 0 { ", " }
                    (visible(&witness.sensor))
                }
            }
        }
    }
}

fn filter(proof: &Proof) -> String {
    match visible(&proof.question.text).into_owned() {
        text if text.is_empty() => "any session".to_owned(),
        text => text,
    }
}

fn coverage(proof: &Proof, clock: &Clock) -> Markup {
    html! {
        h2 { "Coverage" }
        @for witness in &proof.witnesses { (strip(&witness.coverage, clock)) }
        div class="legend" {
            span { i class="i-covered" {} "covered" }
            span { i class="i-lossy" {} "something lost" }
            span { i class="i-blind" {} "nothing known" }
        }
    }
}

fn cut(all: usize, listed: usize) -> Markup {
    html! {
        @if all > listed {
            p class="note" { "and " (all - listed) " more, left out here: " code { "stillwire prove --format json" } " has them" }
        }
    }
}

fn sessions(proof: &Proof, clock: &Clock) -> Markup {
    html! {
        h2 { "Sessions that match" }
        @if proof.sessions.is_empty() {
            p class="note" { "None." }
        } @else {
            div class="wide" {
                table id="sessions" {
                    thead { tr {
                        th { "First frame" } th { "Lasting" } th { "Proto" } th { "Originator" }
                        th { "Responder" } th { "Service" } th { "State" }
                        th class="n" { "Packets" } th { "uid" }
                    } }
                    tbody {
                        @for session in proof.sessions.iter().take(LISTED) { (one(session, clock)) }
                    }
                }
            }
            (cut(proof.sessions.len(), LISTED))
        }
    }
}

fn one(session: &Session, clock: &Clock) -> Markup {
    let row = &session.row;
    html! {
        tr data-uid=(visible(&row.uid)) {
            td class="t" { (clock.short(row.ts)) }
            td class="t" title=(clock.prose(row.last_ts)) {
                (length((row.last_ts - row.ts).0 as f64 / 1e9))
            }
            td { (visible(&row.proto)) }
            td class="end" { (end_in_words(row, &row.orig)) }
            td class="end" { (end_in_words(row, &row.resp)) }
            td { (row.service.as_deref().map_or("–".into(), visible)) }
            td { (visible(&row.conn_state)) @if !row.is_final { " …" } }
            td class="n t" { (row.orig.pkts) " / " (row.resp.pkts) }
            td class="t" { code { (visible(&row.uid)) } }
        }
    }
}

fn possible(proof: &Proof, clock: &Clock) -> Markup {
    html! {
        @if !proof.possible.is_empty() {
            h2 { "What could match" }
            table id="possible" {
                thead { tr { th { "Kind" } th { "What, and why it is open" } } }
                tbody {
                    @for what in proof.possible.iter().take(LISTED) {
                        tr {
                            td class="t" { (kind(what)) }
                            td { (possible_line(what, clock)) }
                        }
                    }
                }
            }
            (cut(proof.possible.len(), LISTED))
        }
    }
}

fn kind(possible: &Possible) -> &'static str {
    match possible {
        Possible::Session { .. } => "session",
        Possible::Frame(_) => "frame",
        Possible::Frames { .. } => "frames",
    }
}

fn gaps(proof: &Proof, clock: &Clock) -> Markup {
    let mut gaps: Vec<&Gap> = proof.gaps().collect();
    gaps.sort_by_key(|gap| (gap.from, gap.to));
    html! {
        h2 { "Gaps" }
        @if gaps.is_empty() {
            p class="note" { "None: every second of the window is accounted for." }
        } @else {
            table id="gaps" {
                thead { tr {
                    th { "From" } th { "To" } th { "Lasting" } th { "Reason" } th { "What happened" }
                    th class="n" { "Frames lost" }
                } }
                tbody {
                    @for gap in gaps.iter().take(LISTED) {
                        tr {
                            td class="t" { (clock.short(gap.from)) }
                            td class="t" { (clock.short(gap.to)) }
                            td class="t" { (length((gap.to - gap.from).0 as f64 / 1e9)) }
                            td { span class=(if gap.reason.is_blind() { "reason" } else { "reason lossy" }) {
                                (gap.reason.as_str())
                            } }
                            td {
                                (gap.reason.explain())
                                @if !gap.detail.is_empty() { ": " (visible(&gap.detail)) }
                                @if proof.witnesses.len() > 1 { " (sensor " (visible(&gap.sensor)) ")" }
                            }
                            td class="n" { @if gap.frames_lost > 0 { (gap.frames_lost) } @else { "–" } }
                        }
                    }
                }
            }
            (cut(gaps.len(), LISTED))
        }
    }
}

/// What the sensors counted in the lines that touch the window.
fn account(proof: &Proof) -> Markup {
    html! {
        h2 { "Account" }
        table {
            thead { tr {
                th { "Sensor" } th class="n" { "Frames taken" } th class="n" { "in sessions" }
                th class="n" { "not readable" } th class="n" { "Packets kept" } th class="n" { "not kept" }
                th class="n" { "Frames lost" }
            } }
            tbody {
                @for witness in &proof.witnesses {
                    @let kept = &witness.coverage.kept;
                    tr {
                        td { (visible(&witness.sensor)) }
                        td class="n" { (kept.decoded.saturating_add(kept.undecodable)) }
                        td class="n" { (kept.decoded) }
                        td class="n" { (kept.undecodable) }
                        td class="n" { (kept.written) }
                        td class="n" { (kept.dropped) }
                        td class="n" { (witness.coverage.frames_lost()) }
                    }
                }
            }
        }
        p class="note" { "Counted over every interval of the ledger that touches the window." }
        @for witness in &proof.witnesses {
            @for policy in &witness.policies {
                p class="note" { "Policy of " (visible(&witness.sensor)) ": " (visible(policy)) }
            }
            @if let Some(at) = witness.coverage.packets_retired_through {
                p class="note" { "Packets up to " (rfc3339(at)) " were retired to keep the budget; the sessions were not." }
            }
        }
    }
}

fn ledger(proof: &Proof, context: &Context<'_>) -> Markup {
    html! {
        h2 { "Ledger and files" }
        @for (number, witness) in proof.witnesses.iter().enumerate() {
            (one_ledger(witness, context.keys.get(number).and_then(Option::as_deref)))
            @let files = &witness.sealed;
            @if !files.is_empty() {
                div class="wide" {
                    table {
                        thead { tr { th { "Sealed file" } th class="n" { "Bytes" } th { "BLAKE3" } } }
                        tbody {
                            @for file in files.iter().take(FILES) {
                                tr {
                                    td { code { (visible(&file.path)) } }
                                    td class="n" { (file.bytes) }
                                    td { code { (file.blake3.as_deref().map_or("not hashed".into(), visible)) } }
                                }
                            }
                        }
                    }
                }
                (cut(files.len(), FILES))
            }
        }
    }
}

fn one_ledger(witness: &Witness, key: Option<&str>) -> Markup {
    let chain = &witness.chain;
    html! {
        dl {
            dt { "Sensor" } dd { (visible(&witness.sensor)) }
            dt { "Ledger" } dd {
                (chain.lines) " lines, chain " b { (chain.as_str()) }
                @if chain.unsigned > 0 { ", " (chain.unsigned) " lines not signed" } @else { ", signed" }
            }
            dt { "Head" } dd { code { (witness.head().unwrap_or("none")) } }
            dt { "Public key" } dd { code { (key.map_or("none".into(), visible)) } }
            dt { "Session files" } dd {
                (witness.files.files) " checked against their hashes"
                @if witness.files.pending > 0 { ", " (witness.files.pending) " sealed a moment ago" }
                @if !witness.files.findings.is_empty() { ", " (witness.files.findings.len()) " not as the ledger says" }
            }
        }
    }
}

/// The commands that repeat it.
fn recheck(proof: &Proof) -> Markup {
    let stores: Vec<String> = proof
        .witnesses
        .iter()
        .map(|witness| format!("--store {}", quoted(&witness.store)))
        .collect();
    let stores = stores.join(" ");
    let (from, to) = (rfc3339(proof.question.from), rfc3339(proof.question.to));
    let text = quoted(&proof.question.text);
    let prove = format!("stillwire prove {text} {stores} --from {from} --to {to}");
    let packets =
        format!("stillwire packets {text} {stores} --from {from} --to {to} -w packets.pcap");
    let verify: Vec<String> = proof
        .witnesses
        .iter()
        .map(|witness| format!("stillwire verify --store {}", quoted(&witness.store)))
        .collect();
    html! {
        h2 { "To check it again" }
        pre id="recheck" {
            code { "# the same question\n" (prove) "\n\n# ledger, signatures and files\n" (verify.join("\n"))
                @if !proof.sessions.is_empty() { "\n\n# the packets\n" (packets) }
            }
        }
        p class="note" {
            "Ledger lines and files are plain: the ledger is NDJSON of which each line names the BLAKE3 of the \
             line before, sessions are Parquet, packets are pcap."
        }
    }
}

/// An argument as a POSIX shell takes it.
fn quoted(text: &str) -> String {
    let text = visible(text);
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:+=@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn what_is_to_be_pasted_is_one_argument() {
        assert_eq!(quoted("/srv/store"), "/srv/store");
        assert_eq!(quoted("host 10.0.0.1"), "'host 10.0.0.1'");
        assert_eq!(quoted("a'; rm -rf /"), "'a'\\''; rm -rf /'");
        assert_eq!(quoted(""), "''");
    }
}
