//! The window as a strip: what covers it, and what does not.

use capture_flow::time::Nanos;
use maud::{Markup, html};

use crate::coverage::{Coverage, Gap};
use crate::times::Clock;

/// Units of the drawing's width.
const WIDTH: f64 = 1000.0;
/// Below this a gap could not be seen.
const LEAST: f64 = 2.0;
/// Most gaps drawn one by one; the table under the strip has them all.
const DRAWN: usize = 2000;
/// Moments named under the strip.
const TICKS: i64 = 5;

/// Where a moment lies.
fn place(at: Nanos, (from, to): (Nanos, Nanos)) -> f64 {
    let whole = ((to - from).0 as f64).max(1.0);
    (((at - from).0 as f64) / whole * WIDTH).clamp(0.0, WIDTH)
}

fn drawn(gap: &Gap, window: (Nanos, Nanos)) -> Markup {
    let (from, to) = (place(gap.from, window), place(gap.to, window));
    let width = (to - from).max(LEAST);
    let x = from.min(WIDTH - width);
    let class = if gap.reason.is_blind() { "blind" } else { "lossy" };
    html! {
        rect class=(class) x=(format!("{x:.2}")) y="0" width=(format!("{width:.2}")) height="40" {
            title { (gap.reason.as_str()) }
        }
    }
}

/// One sensor's strip.
pub(super) fn strip(coverage: &Coverage, clock: &Clock) -> Markup {
    let Some(window) = coverage.window else { return html! {} };
    let (covered, whole) = coverage.covered();
    let percent = if covered == whole {
        "100 %".to_owned()
    } else {
        let share = (covered as f64 / whole.max(1) as f64 * 1000.0).floor().min(999.0) / 10.0;
        format!("{share:.1} %")
    };
    // Blind time lies over lossy time.
    let counts = |gap: &&Gap| !gap.packets_only;
    let mut gaps: Vec<&Gap> = coverage.gaps.iter().filter(counts).take(DRAWN).collect();
    gaps.sort_by_key(|gap| gap.reason.is_blind());
    let span = (window.1 - window.0).0;
    let format = if span > 86_400 * 1_000_000_000 { "%m-%d %H:%M" } else { "%H:%M:%S" };
    html! {
        div class="strip" {
            div class="who" {
                b { (crate::text::visible(&coverage.sensor)) }
                span { (percent) " covered" }
            }
            svg viewBox="0 0 1000 46" preserveAspectRatio="none" role="img"
                aria-label=(format!("{percent} of the window is covered")) {
                rect class="covered" x="0" y="0" width="1000" height="40" {}
                @for gap in gaps { (drawn(gap, window)) }
                @for tick in 0..=TICKS {
                    @let x = format!("{:.2}", WIDTH / TICKS as f64 * tick as f64);
                    line class="axis" x1=(x) x2=(x) y1="40" y2="46" {}
                }
            }
            div class="ticks" {
                @for tick in 0..=TICKS {
                    span { (clock.stamp(Nanos(window.0.0 + span / TICKS * tick), format)) }
                }
            }
        }
    }
}
