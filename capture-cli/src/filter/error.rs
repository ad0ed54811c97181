//! A filter that cannot be read: what is wrong, where, and what was probably meant.

use std::fmt::Write as _;
use std::ops::Range;

use unicode_width::UnicodeWidthStr;

use crate::text::visible;

/// Why a filter was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FilterError {
    /// What is wrong.
    pub message: String,
    /// Bytes of the filter it is about; an empty range at the end where something is missing.
    pub span: Range<usize>,
    /// What to write instead.
    pub help: Option<String>,
}

impl FilterError {
    pub(super) fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { message: message.into(), span, help: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The message with the filter and a caret under the place, for people.
    #[must_use]
    pub fn render(&self, filter: &str) -> String {
        let start = floor(filter, self.span.start);
        let end = floor(filter, self.span.end).max(start);
        let before = visible(&filter[..start]);
        let marked = visible(&filter[start..end]);
        let after = visible(&filter[end..]);
        let mut text = format!("filter: {}\n  {before}{marked}{after}\n  ", visible(&self.message));
        let carets = marked.width().max(1);
        let _ = write!(text, "{:indent$}{:^<carets$}", "", "", indent = before.width());
        if let Some(help) = &self.help {
            let _ = write!(text, "\nhelp: {}", visible(help));
        }
        text
    }
}

fn floor(text: &str, mut at: usize) -> usize {
    at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The candidate that looks most like a mistyped word, if any is near.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&word, candidate), candidate))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}
