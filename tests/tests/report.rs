//! The page of `stillwire report` in a real browser.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use stillwire_tests::netns::run;
use stillwire_tests::sensor;
use stillwire_tests::traffic::{Frames, Pace};

/// The document as Chromium has built it, its scripts run if there were any.
fn dom(dir: &Path, page: &Path) -> Result<String> {
    let profile = format!("--user-data-dir={}", dir.join("profile").display());
    let url = format!("file://{}", page.display());
    let mut chromium = Command::new("chromium");
    chromium.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    chromium.args([
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
    ]);
    run(chromium.args([&profile, "--dump-dom", &url]))
}

/// The text between two pieces of a document.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> Result<&'a str> {
    let rest = text.split_once(begin).with_context(|| format!("no {begin:?}"))?.1;
    Ok(rest.split_once(end).with_context(|| format!("no {end:?}"))?.0)
}

#[test]
fn a_page_of_evidence_stands_alone_and_says_what_was_found() -> Result<()> {
    let dir = sensor::store_dir()?;
    let capture = dir.path().join("traffic.pcap");
    Frames { count: 300, bytes: 100, flows: 3, pace: Pace::Flood }.write(&capture)?;
    let store = dir.path().join("store");
    sensor::replay(&store, &[&capture])?;
    let rows = sensor::sessions(&store, "udp")?;
    let time = |row: &serde_json::Value, name: &str| {
        row[name].as_str().map(str::to_owned).context("a time")
    };
    let (from, to) = (time(&rows[0], "ts")?, time(&rows[0], "last_ts")?);
    let page = dir.path().join("evidence.html");
    let report = |filter: &str, to: &str| -> Result<(Option<i32>, String)> {
        let file = page.to_string_lossy();
        let args = ["report", filter, "--from", &from, "--to", to, "-o", &file, "--tz", "UTC"];
        let ended = sensor::stillwire_ended(&store, &args)?;
        Ok((ended.code, dom(dir.path(), &page).with_context(|| ended.stderr)?))
    };

    let (code, present) = report("udp port 2000", &to)?;
    assert_eq!(code, Some(3));
    ensure!(present.contains("data-verdict=\"present\"") && present.contains("<h1>Present</h1>"));
    let sessions = between(&present, "<table id=\"sessions\">", "</table>")?;
    assert_eq!(sessions.matches("<tr data-uid=").count(), 3, "{sessions}");
    for row in &rows {
        let uid = row["uid"].as_str().context("a uid")?;
        ensure!(sessions.contains(uid), "{uid} is not in {sessions}");
    }
    ensure!(present.contains("10.1.0.2:2000") && present.contains("chain <b>valid</b>"));

    // Absent within the record, unproven behind its end.
    let (code, absent) = report("tcp port 22", &to)?;
    assert_eq!(code, Some(0));
    ensure!(absent.contains("data-verdict=\"absent\"") && !absent.contains("<table id=\"gaps\">"));
    let (code, open) = report("tcp port 22", "2100-01-01")?;
    assert_eq!(code, Some(4));
    ensure!(between(&open, "<table id=\"gaps\">", "</table>")?.contains("no_sensor"));

    // What an attacker could have put there stays text, and nothing is fetched from anywhere.
    let hostile = "iface \"<script>document.title='run'</script><img src=http://192.0.2.1/x>\"";
    let (code, page) = report(hostile, &to)?;
    // A row has the interface of the session's first frame only.
    assert_eq!(code, Some(4));
    ensure!(page.contains("&lt;script&gt;document.title"), "{page}");
    for document in [&present, &absent, &open, &page] {
        let lower = document.to_ascii_lowercase();
        let active = ["<script", "<img", "<link", "<iframe", " src=", " href=", "url(", "@import"];
        for what in active {
            let shown = lower.replace("&lt;img src=http", "");
            ensure!(!shown.contains(what), "{what} in {document}");
        }
        ensure!(!lower.contains("<title>run"), "a script ran");
        ensure!(lower.contains("content-security-policy"));
    }
    Ok(())
}
