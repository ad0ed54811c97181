//! Canaries: small signed frames by which a host of the segment shows, at intervals, that the wire
//! between it and the sensor is alive.
//!
//! Silence alone cannot tell a still wire from a dead tap. `stillwired canary` ([`send`]) speaks
//! on any host of the segment; the sensor's workers recognise its frames ([`Inbox`]), and the
//! flush thread believes those whose signature and time hold ([`Watch`]).

mod frame;
mod inbox;
mod send;
mod watch;

pub use frame::{CANARY_LEN, Canary, DESTINATION, ETHER_TYPE, payload};
pub use inbox::{Arrived, Inbox};
pub use send::{CanaryConfig, canary};
pub use watch::Watch;
