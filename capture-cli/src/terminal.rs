//! What the terminal can show.

use std::fmt;
use std::io::IsTerminal;

use anstyle::{AnsiColor, Style};

/// Width assumed where the output is no terminal.
const PIPE_WIDTH: usize = 160;

/// How to write for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Columns that fit a line; `None` where nothing needs to fit.
    pub width: Option<usize>,
    /// Whether to use colour.
    pub colour: bool,
}

impl Look {
    /// For files and pipes.
    pub const PLAIN: Self = Self { width: None, colour: false };

    /// For standard output as it is now. Colour only on a terminal, and not where `NO_COLOR`
    /// (no-color.org) is set or the terminal is dumb. `COLUMNS` overrides the width.
    #[must_use]
    pub fn of_stdout() -> Self {
        let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
        if !std::io::stdout().is_terminal() {
            return Self { width: columns, colour: false };
        }
        let seen = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { width: columns.or(seen).or(Some(80)), colour: !refused }
    }

    /// Columns to fill with a picture.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width.unwrap_or(PIPE_WIDTH).clamp(20, 400)
    }

    /// The text in a style, where colours are wanted.
    #[must_use]
    pub fn paint<T: fmt::Display>(&self, paint: Paint, text: T) -> Painted<T> {
        Painted { style: if self.colour { paint.style() } else { Style::new() }, text }
    }
}

/// What a colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// A heading.
    Heading,
    /// All is well.
    Good,
    /// Something is missing.
    Warn,
    /// Nothing is known.
    Bad,
    /// Beside the point.
    Faint,
}

impl Paint {
    const fn style(self) -> Style {
        match self {
            Self::Heading => Style::new().bold(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Warn => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default(),
            Self::Faint => Style::new().dimmed(),
        }
    }
}

/// Text with its style around it.
pub struct Painted<T> {
    style: Style,
    text: T,
}

impl<T: fmt::Display> fmt::Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.style.render())?;
        self.text.fmt(f)?;
        write!(f, "{}", self.style.render_reset())
    }
}
