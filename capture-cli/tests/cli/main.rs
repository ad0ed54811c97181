//! The program `stillwire` on small stores.

mod coverage;
mod packets;
mod sessions;
mod support;
