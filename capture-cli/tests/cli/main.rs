//! The program `stillwire` on small stores.

mod coverage;
mod forged;
mod lost;
mod packets;
mod prove;
mod sessions;
mod support;
