//! Sessions whose rows end before the window although they may have frames in it.

use capture_flow::time::{Nanos, NanosDelta};
use capture_store::Store;

use crate::columns::Order;
use crate::query::{Found, Question, ask};
use crate::times::Window;

/// How long before the window the newest row of such a session can end: longer than the interim
/// interval and than any idle limit that a sensor comes with, but for interactive sessions.
const LOOK_BACK: NanosDelta = NanosDelta::from_secs(3600);

/// Sessions that match, were not over with the newest row that is known of them, and had no frame
/// in the window by then: they live, or were cut off with their run.
///
/// # Errors
/// A store's directories cannot be read.
pub fn unfinished_before(stores: &[Store], question: &Question) -> anyhow::Result<Vec<Found>> {
    let Some(from) = question.window.from else { return Ok(Vec::new()) };
    let before = Window {
        from: Some(Nanos(from.0.saturating_sub(LOOK_BACK.0))),
        to: Some(Nanos(from.0.saturating_sub(1))),
    };
    let question = Question {
        filter: question.filter.clone(),
        window: before,
        which: question.which.clone(),
        ..*question
    };
    // What cannot be read was told when the window itself was asked for.
    let mut found = ask(stores, &question, &Order::TIME, None)?.found;
    found.retain(|found| !found.row.is_final && found.row.last_ts < from);
    Ok(found)
}
