//! `report`: a verdict as one HTML page for the ticket.
//!
//! The page needs nothing but itself: no script, no font, no picture from elsewhere, and it says so
//! to the browser, too. Everything in it that came from the wire is hostile; the template escapes
//! whatever it is given.

mod page;
mod strip;

use std::io::{self, Write};

pub use page::Context;

use crate::verdict::Proof;

/// Writes the page.
///
/// # Errors
/// Those of the output.
pub fn write(proof: &Proof, context: &Context<'_>, out: &mut impl Write) -> io::Result<()> {
    out.write_all(page::page(proof, context).into_string().as_bytes())
}
